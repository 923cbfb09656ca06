"""The command line: everything an operator or a newcomer runs."""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn
from uuid import UUID

import psycopg
import sqlalchemy.exc
import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text
from temporalio.service import RPCError
from typer.core import TyperGroup

import settings
import worker as worker_process
from api.codec import create_codec_app
from api.server import serve, serve_app
from cli import commands as commanding
from cli import events, keys, operate
from cli.output import standard_output
from cli.send import send_files
from db.bindings import BindingFilter
from db.erasure import NotErasableError
from domain.provisioning_status import ProvisioningStatus
from embedded.processes import ServerError  # the standard library alone: there without the embedded servers
from observability import telemetry
from orchestration.client import end_process
from orchestration.codec import UnreadablePayloadError
from orchestration.requests import UnknownCommandError

_REFUSALS: Final = (
    *worker_process.REFUSALS,
    operate.UnknownDeviceError,
    keys.UnknownKeyError,
    events.NotRefusedError,
    commanding.CorrelationIdTakenError,
    UnknownCommandError,
    UnreadablePayloadError,
    NotErasableError,
    ServerError,
)


class _Commands(TyperGroup):
    """Says every setting below the commands, and what is refused in a sentence instead of a stack trace."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        Console().print(_settings_help())

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (psycopg.Error, sqlalchemy.exc.DBAPIError) as error:
            cause = getattr(error, "orig", None) or error
            _refuse(f"the database (DATABASE_URL) refuses or does not answer: {str(cause).strip()}")
        except _REFUSALS as error:
            _refuse(str(error))
        except RPCError as error:
            _refuse(f"Temporal refuses or does not answer: {error.message}")


def _refuse(why: str) -> NoReturn:
    Console(stderr=True).print(Text.assemble(("error: ", "red"), why), soft_wrap=True)
    raise typer.Exit(2)


def _settings_help() -> Group:
    def line(indent: int, *parts: str | tuple[str, str]) -> Padding:
        return Padding(Text.assemble(*parts), (0, 1, 0, indent))

    lines = [
        line(1, ("Settings", "bold")),
        line(
            1,
            "Environment variables, or lines of the TOML file that IOT_AWS_CONFIG_FILE names: "
            "IOT_AWS_SHADOW__POLL_BATCH_SIZE is there poll_batch_size under [shadow]. "
            "The environment wins.",
        ),
    ]
    for about, knobs in settings.describe():
        lines += [line(0), line(1, (about, "italic"))]
        for variable, default, allowed in knobs:
            given = ("[required]", "red") if default is None else (f"[default: {default}]", "dim")
            lines += [line(3, (variable, "bold cyan")), line(7, f"{allowed} ", given)]
    lines += [
        line(0),
        line(
            1,
            "Temporal and AWS are found as their own tools find them: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, "
            "TEMPORAL_API_KEY, …; AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL, …",
        ),
    ]
    return Group(*lines)


app = typer.Typer(
    name="thingbridge",
    cls=_Commands,
    help="The AWS IoT Core companion of a device platform: one durable saga per device event.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    # A stack trace with local variables could show a key.
    pretty_exceptions_show_locals=False,
)

app.add_typer(keys.app, name="keys")
app.add_typer(events.app, name="events")

DataFolder = Annotated[Path, typer.Option("--data", help="Where the embedded servers keep their data.")]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Preferred; where it is taken, a free one is used.")
]


@app.command()
def dev(
    data: DataFolder = Path(".thingbridge/dev"),
    temporal_port: Port = 7233,
    ui_port: Port = 8233,
    aws_port: Port = 4566,
    api_port: Port = 8080,
) -> None:
    """Run everything here, embedded: Temporal and its UI, PostgreSQL, an AWS emulator, a worker, HTTP.

    Stays up until Ctrl-C and prints the addresses. The data outlives it,
    and is taken up at the next start.
    """
    from cli.stack import run_dev  # the embedded servers are no part of a production install

    run_dev(data, temporal_port=temporal_port, ui_port=ui_port, aws_port=aws_port, api_port=api_port)


@app.command()
def demo(
    data: DataFolder = Path(".thingbridge/demo"),
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="Lifecycle events, one JSON object a line; default: the sample fleet.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Stay up afterwards, to look around, until Ctrl-C.")
    ] = False,
) -> None:
    """Run everything as `dev` does, then drive a sample fleet from its events to decommissioning.

    The first device is sent before the IoT policy exists: it fails, and is
    retried to success. Ends with a table of every device, and exit code 0 only
    where each ended as it must. An earlier demo's data in the folder is removed.
    """
    from cli.demo import run_demo

    raise typer.Exit(run_demo(data, fleet, stay=stay))


@app.command()
def worker() -> None:
    """Run a worker on the workflows and activities, until SIGTERM or Ctrl-C; then finish what is at work.

    Needs DATABASE_URL, IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME and AWS_REGION,
    and what `thingbridge migrate` makes.
    """
    loaded = settings.Settings.load()
    worker_process.configure_telemetry(loaded)
    asyncio.run(worker_process.serve(loaded))


@app.command()
def api(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8080,
) -> None:
    """Serve HTTP: the doors under /api to holders of a key (`thingbridge keys`); /docs says what there is.

    Liveness is at /healthz; readiness at /readyz, with what does not answer, by
    its name; Prometheus finds its metrics at /metrics. Needs DATABASE_URL.
    """
    loaded = settings.ApiSettings.load()
    telemetry.configure(loaded.log.level, loaded.log.format, measured=True)
    serve(loaded, host, port)


@app.command()
def codec(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8081,
    ui_origin: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGIN",
            help="Temporal's UI, as https://HOST or http://HOST:PORT, whose pages may ask; default: none.",
        ),
    ] = None,
) -> None:
    """Serve as the codec server: shows operators what is encrypted, in Temporal's UI and command line.

    Needs IOT_AWS_ENCRYPTION__KEYS and DATABASE_URL; see docs/encryption.md.
    """
    if ui_origin is not None and not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", ui_origin):
        raise typer.BadParameter("must be an origin, without a path", param_hint="--ui-origin")
    loaded = settings.CodecSettings.load()
    telemetry.configure(loaded.log.level, loaded.log.format)
    serve_app(create_codec_app(loaded, ui_origin), host, port)


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema, and register Temporal's search attributes.

    Run it again as often as you like: what is there stays. Needs DATABASE_URL.
    """
    loaded = settings.DatabaseSettings.load()
    telemetry.configure("WARNING", loaded.log.format)
    asyncio.run(operate.migrate(loaded, standard_output()))


@app.command()
def send(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.jsonl",
            help="Lifecycle events, one JSON object a line; several files are sent together.",
            exists=True,
            dir_okay=False,
        ),
    ],
) -> None:
    """Send lifecycle events to the devices' workflows.

    A line that is no valid event is reported with file, line and field; the
    others are sent all the same, and the exit code is then 1. Sending a file
    twice changes nothing.
    """
    raise typer.Exit(asyncio.run(send_files(settings.ClientSettings.load(), files)))


@app.command()
def command(
    operation: Annotated[str, typer.Argument(metavar="OPERATION", help="What the device is to do.")],
    device: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="For one device, whose binding is Active.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="For all that are in a thing group now.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY", help="For all that a fleet-indexing query finds, now or while it is tracked."
        ),
    ] = None,
    parameters: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help="A JSON object for the device.")
    ] = "{}",
    correlation_id: Annotated[
        UUID | None,
        typer.Option(metavar="UUID", help="Makes a repeat the same command; default: a random one."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit code 0 only where it succeeded.")
    ] = False,
) -> None:
    """Send a command to a device, a thing group or all that a query finds, as an AWS IoT job.

    Prints the job's id, which is also its workflow's. A correlation id that
    was sent before starts nothing: its job is the answer. Where it is another
    command's, that is an error.
    """
    read = commanding.read_command(
        operation,
        device=device,
        group=group,
        query=query,
        parameters=parameters,
        correlation_id=correlation_id,
    )
    raise typer.Exit(asyncio.run(commanding.send(settings.CommandSettings.load(), read, wait=wait)))


@app.command()
def cancel(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The command's job.")],
) -> None:
    """Cancel a command, and its job in AWS, where it has not ended."""
    asyncio.run(commanding.cancel(settings.ClientSettings.load(), job_id))


@app.command()
def bindings(
    status: Annotated[
        ProvisioningStatus | None,
        typer.Option(metavar="STATUS", help=f"Only those in this status: {', '.join(ProvisioningStatus)}."),
    ] = None,
    device: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Only this device's, with its transitions.")
    ] = None,
    tenant: Annotated[UUID | None, typer.Option(metavar="UUID", help="Only this tenant's.")] = None,
    serial: Annotated[
        str | None, typer.Option(metavar="SERIAL", help="Only those of this serial number.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest first.")] = 50,
) -> None:
    """List the bindings: where each device stands in AWS, and why it failed.

    Needs DATABASE_URL.
    """
    operate.list_bindings(
        settings.DatabaseSettings.load(),
        standard_output(),
        BindingFilter(status=status, device_id=device, tenant_id=tenant, serial_number=serial),
        limit=limit,
    )


@app.command()
def retry(
    device_id: Annotated[UUID, typer.Argument(metavar="DEVICE_ID", help="The device whose saga failed.")],
) -> None:
    """Have a failed device's saga go on from where it failed, once what it failed for is mended.

    Needs DATABASE_URL. How it goes on is seen with
    `thingbridge bindings --device DEVICE_ID`.
    """
    asyncio.run(operate.retry(settings.DatabaseSettings.load(), standard_output(), device_id))


@app.command()
def erase(
    device_id: Annotated[
        UUID | None, typer.Argument(metavar="DEVICE_ID", help="A device that is Decommissioned.")
    ] = None,
    tenant: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Every decommissioned device of this tenant.")
    ] = None,
) -> None:
    """Erase what names a decommissioned device, or a tenant's, from every table, for good.

    Its serial number goes on being denied, by a hash under
    IOT_AWS_ERASURE__HASH_KEY. Of a tenant's devices those that are not
    decommissioned are left, and the exit code is then 1. What remains in
    Temporal until its retention is over stands in docs/erasure.md. Needs
    DATABASE_URL.
    """
    if (device_id is None) == (tenant is None):
        raise typer.BadParameter("name either a device or a --tenant")
    loaded = settings.DatabaseSettings.load()
    if device_id is not None:
        operate.erase(loaded, standard_output(), device_id)
    elif tenant is not None:
        raise typer.Exit(int(operate.erase_tenant(loaded, standard_output(), tenant) > 0))


def main() -> None:
    """Run the command line in this process, and end it."""
    try:
        app()
    except SystemExit as end:
        end_process(end.code if isinstance(end.code, int) else int(end.code is not None))

"""Everything on this machine: the embedded servers, and a worker and the HTTP API in this process."""

import asyncio
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from sqlmodel import Session

from api.server import serving
from cli.output import runnable, standard_output
from db.api_keys import create_key
from db.engine import open_engine
from db.migrate import upgrade
from domain.operator_error import OperatorError
from embedded.policy import create_device_policy
from embedded.processes import ServerError, choose_ports, ignoring_interrupts
from embedded.stack import Addresses, Stack, isolate
from observability import telemetry
from orchestration.client import connect
from orchestration.search_attributes import register_search_attributes
from settings import ApiSettings, Settings
from worker import serve

_POLICY_VARIABLE: Final = "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"
_UI_VARIABLE: Final = "IOT_AWS_API__TEMPORAL_UI_URL"
_DEFAULT_POLICY: Final = "thingbridge-device"
# Shorter than the default of production: here no quota is shared, and a developer waits for the result.
_JOB_INTERVAL_VARIABLE: Final = "IOT_AWS_JOBS__STATUS_POLL_INTERVAL_SECONDS"
_JOB_INTERVAL: Final = "15"


def run_dev(
    data: Path, *, temporal_port: int, ui_port: int, aws_port: int, mqtt_port: int, api_port: int
) -> None:
    """Run the stack, a worker and the HTTP API until Ctrl-C.

    Raises:
        OperatorError: a server did not start, or the folder cannot be used.
    """
    console = standard_output()
    with running_stack(
        data, console, temporal_port=temporal_port, ui_port=ui_port, aws_port=aws_port, mqtt_port=mqtt_port
    ) as addresses:
        settings = Settings.load()
        telemetry.configure(settings.log.level, "text", measured=True)
        create_device_policy(addresses.aws_endpoint_url, settings.provisioning.device_policy_name)
        with running_api(api_port) as url:
            print_addresses(console, addresses, url, data)
            asyncio.run(serve(settings))
        console.print("stopping")


@contextmanager
def running_stack(
    data: Path,
    console: Console,
    *,
    temporal_port: int = 7233,
    ui_port: int = 8233,
    aws_port: int = 4566,
    mqtt_port: int = 8883,
) -> Iterator[Addresses]:
    """Run the embedded servers, migrated; the environment of this process then refers to them alone.

    Raises:
        OperatorError: a server did not start, or the folder cannot be used.
    """
    try:
        with (
            console.status("starting Temporal, PostgreSQL and the AWS emulator") as status,
            Stack(
                data,
                temporal_port=temporal_port,
                ui_port=ui_port,
                aws_port=aws_port,
                mqtt_port=mqtt_port,
                on_progress=status.update,
            ) as addresses,
        ):
            isolate(os.environ, addresses)
            os.environ.setdefault(_POLICY_VARIABLE, _DEFAULT_POLICY)
            os.environ.setdefault(_JOB_INTERVAL_VARIABLE, _JOB_INTERVAL)
            os.environ.setdefault(_UI_VARIABLE, f"{addresses.temporal_ui_url}/namespaces/default")
            status.update("migrating")
            engine = open_engine(addresses.database_url)
            upgrade(engine)
            engine.dispose()
            asyncio.run(_register())
            _write_environment(_environment_file(data), addresses)
            status.stop()
            yield addresses
    except ServerError as error:
        raise OperatorError(str(error)) from None


@contextmanager
def running_api(port: int = 8080) -> Iterator[str]:
    """Run the HTTP API on this port, or on a free one if it is in use; yield its URL."""
    (free,) = choose_ports(port)
    with ExitStack() as stack:
        url = stack.enter_context(serving(ApiSettings.load(), free))
        try:
            yield url
        finally:
            # A second Ctrl-C would leave the thread of the API behind, whose log is about to be closed.
            with ignoring_interrupts():
                stack.close()


def print_addresses(console: Console, addresses: Addresses, api_url: str, data: Path) -> None:
    """Print the address of every server, and the commands that use them from another shell."""
    thingbridge = runnable("thingbridge")
    commands = (
        f"cd {shlex.quote(str(Path.cwd()))}; set -a; . {shlex.quote(str(_environment_file(data)))}; set +a",
        f"{thingbridge} bindings",
        f"{thingbridge} --help",
        f"{runnable('temporal')} workflow list",
    )
    console.print(
        f"HTTP API       {api_url}/docs, with the key {_operator_key(data, addresses)}\n"
        f"metrics        {api_url}/metrics, of worker and API\n"
        f"Temporal UI    {addresses.temporal_ui_url}\n"
        f"Temporal       {addresses.temporal_address}\n"
        f"PostgreSQL     {addresses.database_url}\n"
        f"AWS emulator   {addresses.aws_endpoint_url}\n"
        f"MQTT           localhost:{addresses.mqtt_port}, CA file {escape(addresses.ca_file)}\n"
        f"data           {escape(str(data.absolute()))}\n"
        "In another shell:\n"
        + "".join(f"  [bold]{escape(command)}[/bold]\n" for command in commands)
        + "Ctrl-C stops everything.",
        highlight=False,
        soft_wrap=True,
    )


def _operator_key(data: Path, addresses: Addresses) -> str:
    """Return the key of the first start: only a dev stack keeps a key where it can be read."""
    file = data / "operator-key"
    if not file.exists():
        engine = open_engine(addresses.database_url)
        with Session(engine) as session, session.begin():
            key = create_key(session, None, "dev")
        engine.dispose()
        file.touch(mode=0o600)
        file.write_text(key)
    return file.read_text()


async def _register() -> None:
    # Without encryption keys, since no payload is read or written.
    await register_search_attributes(await connect(None))


def _environment_file(data: Path) -> Path:
    return data.absolute() / "environment"


def _write_environment(file: Path, addresses: Addresses) -> None:
    variables = {**addresses.environment(), _POLICY_VARIABLE: os.environ[_POLICY_VARIABLE]}
    file.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))

"""Everything on this machine: the embedded servers, and a worker and the HTTP doors in this process."""

import asyncio
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from sqlmodel import Session

from api.server import serving
from cli.output import standard_output
from db.api_keys import create_key
from db.engine import open_engine
from db.migrate import upgrade
from embedded.policy import create_device_policy
from embedded.processes import choose_ports
from embedded.stack import Addresses, Stack, isolate
from observability import telemetry
from orchestration.client import connect
from orchestration.search_attributes import register_search_attributes
from settings import ApiSettings, Settings
from worker import serve

_POLICY_VARIABLE: Final = "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"
_UI_VARIABLE: Final = "IOT_AWS_API__TEMPORAL_UI_URL"
_DEFAULT_POLICY: Final = "thingbridge-device"
# Nobody wants to look at a job for five minutes here, and no quota is to be spared.
_JOB_INTERVAL_VARIABLE: Final = "IOT_AWS_JOBS__STATUS_POLL_INTERVAL_SECONDS"
_JOB_INTERVAL: Final = "15"


def run_dev(data: Path, *, temporal_port: int, ui_port: int, aws_port: int, api_port: int) -> None:
    """Keep the stack, a worker and the HTTP doors up until Ctrl-C."""
    console = standard_output()
    with stack_up(
        data, console, temporal_port=temporal_port, ui_port=ui_port, aws_port=aws_port
    ) as addresses:
        loaded = Settings.load()
        telemetry.configure(loaded.log.level, "text", measured=True)
        create_device_policy(addresses.aws_endpoint_url, loaded.provisioning.device_policy_name)
        with http_up(api_port) as url:
            print_addresses(console, addresses, url, data)
            asyncio.run(serve(loaded))
        console.print("stopping")


@contextmanager
def stack_up(
    data: Path, console: Console, *, temporal_port: int = 7233, ui_port: int = 8233, aws_port: int = 4566
) -> Iterator[Addresses]:
    """The embedded servers, migrated; this process's environment points at them and at nothing else."""
    with (
        console.status("starting Temporal, PostgreSQL and the AWS emulator") as status,
        Stack(
            data,
            temporal_port=temporal_port,
            ui_port=ui_port,
            aws_port=aws_port,
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
        _write_environment(data / "environment", addresses)
        status.stop()
        yield addresses


@contextmanager
def http_up(port: int = 8080) -> Iterator[str]:
    """The HTTP doors, on this port or, where it is taken, on another; the address they are at."""
    (free,) = choose_ports(port)
    with serving(ApiSettings.load(), free) as url:
        yield url


def print_addresses(console: Console, addresses: Addresses, http_url: str, data: Path) -> None:
    """Say where everything is, and how another shell gets there."""
    console.print(
        f"HTTP           {http_url}/docs, with the key {_operator_key(data, addresses)}\n"
        f"metrics        {http_url}/metrics, of worker and HTTP\n"
        f"Temporal UI    {addresses.temporal_ui_url}\n"
        f"Temporal       {addresses.temporal_address}\n"
        f"PostgreSQL     {addresses.database_url}\n"
        f"AWS emulator   {addresses.aws_endpoint_url}\n"
        f"data           {data.absolute()}\n"
        f"In another shell: [bold]set -a; . {shlex.quote(str(data / 'environment'))}; set +a[/bold], "
        "then `thingbridge send`, `bindings`, `retry`, or `temporal`. Ctrl-C stops all.",
        highlight=False,
        soft_wrap=True,
    )


def _operator_key(data: Path, addresses: Addresses) -> str:
    """The key that was made at the first start: only here, for play, is one kept to be read."""
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
    # No payload comes into it.
    await register_search_attributes(await connect(None))


def _write_environment(file: Path, addresses: Addresses) -> None:
    variables = {**addresses.environment(), _POLICY_VARIABLE: os.environ[_POLICY_VARIABLE]}
    file.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))

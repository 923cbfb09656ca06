"""A production on this machine, without containers: set up as an operator does, loaded, and broken.

    uv run python -m benchmarks.production_run --devices 500 [--no-faults] [--keep]

Temporal on a file, Debian's PostgreSQL, AWS behind the emulator, two workers, the HTTP doors and a webhook's
receiver are processes of their own, configured by settings alone. First a single device goes through the
steps of docs/handbook.md. Then a fleet lives its lives while, in turn, the receiver is killed, the AWS
credentials are rotated, and every part is killed, restarted or frozen. At the end, what came of every device
is looked at from outside. Exits with 1 where anything is not as it must be.
"""

import asyncio
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final
from uuid import uuid4

import typer
from botocore.exceptions import ClientError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine
from sqlmodel import Session, select
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from benchmarks.production.checks import (
    AwsAccount,
    Finding,
    check_events,
    check_rows,
    check_secrecy,
    check_workflows,
    read_deliveries,
    read_histories,
)
from benchmarks.production.fleet import (
    POLICY,
    FleetDevice,
    FleetProvisioning,
    HttpApi,
    Life,
    Platform,
    Watcher,
    again_until,
    make_fleet,
)
from benchmarks.production.servers import (
    THINGBRIDGE,
    PostgresCluster,
    Server,
    aws_emulator,
    temporal_server,
)
from db.engine import open_engine
from db.models import AwsThingBinding, RetiredCertificate
from domain.provisioning_status import ProvisioningStatus
from embedded import REGION
from embedded.emulator.client import aws_client
from embedded.emulator.control import EmulatorControl
from embedded.policy import create_device_policy
from embedded.processes import HOST, child_environment, choose_ports, is_ok
from embedded.simulated_device import SimulatedDevice
from embedded.stack import temporal_executable
from orchestration.client import end_process

_FLEET_SECRET: Final = "thingbridge/fleet-credentials"  # noqa: S105  # its name
_GRACE_SECONDS: Final = 70
"""Longer than the minute after which the bridge reads its keys again."""
_NAMESPACE: Final = "devices"
_LOAD_SECONDS: Final = 900.0
_SETTLE_SECONDS: Final = 300.0
_VIOLATIONS_SHOWN: Final = 10
_LOG_WIDTH: Final = 120


def main(
    devices: Annotated[int, typer.Option(min=20, help="Devices of the load.")] = 500,
    *,
    faults: Annotated[bool, typer.Option(help="Break each part in turn during the load.")] = True,
    keep: Annotated[
        bool, typer.Option(help="Keep the folder with logs and data, and say where it is.")
    ] = False,
) -> None:
    """Run, print what was looked at, and judge."""
    # What this process has of a developer's own AWS, Temporal or bridge is not for this run.
    kept = {name: value for name, value in child_environment().items() if not name.startswith("IOT_AWS_")}
    os.environ.clear()
    folder = Path(tempfile.mkdtemp(prefix="thingbridge-production-"))
    folder.chmod(0o711)  # PostgreSQL's own user passes through
    # Where python is told to write no bytecode, each start of a process would compile everything anew.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "NO_PROXY": HOST, "no_proxy": HOST}
    os.environ.update(kept)
    console = Console(emoji=False)  # the ARN of a secret holds :secret:
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is to be stopped then too
    run = _Run(console, folder, devices)
    try:
        right = asyncio.run(run.run(faults=faults))
    finally:
        run.stop_all()
        if keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    end_process(0 if right else 1)


@dataclass(frozen=True)
class _Fault:
    """Something that breaks, and is mended."""

    what: str
    happen: Callable[[], Awaitable[None]]
    lasts: bool = False
    """Whether the load goes on, and other things break, before it is mended."""


class _Run:
    def __init__(self, console: Console, folder: Path, devices: int) -> None:
        self._console = console
        self._folder = folder
        self._began = time.monotonic()
        ports = choose_ports(0, 0, 0, 0, 0)
        self._temporal_port, ui_port, aws_port, self._api_port, self._sink_port = ports
        self._endpoint = f"http://{HOST}:{aws_port}"
        self._emulator = EmulatorControl(self._endpoint)
        self._webhook_secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        self._fleet_keys: list[tuple[str, str]] = []
        self._fleet_secret_arn = ""
        self._api_keys: list[str] = []
        self._fleet = make_fleet(devices, first_number=10)
        self._first = FleetDevice(1, Life.DECOMMISSIONED, None, datetime.now(UTC), uuid4())
        self._enrolled = FleetDevice(2, Life.ENROLLED, uuid4(), datetime.now(UTC))
        self._first.failed_first = self._first.commanded_by_hand = True
        self._restarted_by_itself = 0
        self._down: set[str] = set()
        self._workers_killed: list[datetime] = []
        self._in_flight = 0

        self._postgres = PostgresCluster(folder / "postgres", folder / "postgres.log")
        self._temporal = temporal_server(folder, self._temporal_port, ui_port)
        self._aws = aws_emulator(folder, aws_port)
        self._sink = self._receiver()
        # Made once their settings are known.
        self._workers: list[Server] = []
        self._api: Server

    async def run(self, *, faults: bool) -> bool:
        """All of it; whether everything is as it must be."""
        await self._set_up()
        engine = open_engine(self._postgres.url)
        watcher = Watcher(engine)
        doors = HttpApi(f"http://{HOST}:{self._api_port}", self._api_keys[0])
        provisioning = FleetProvisioning(self._endpoint, doors)
        background = [asyncio.create_task(watcher.run()), asyncio.create_task(self._keep_up())]
        try:
            await self._first_devices(watcher, doors, provisioning)
            await self._load(watcher, doors, provisioning, faults=faults)
            await self._settle(watcher)
            denied = Finding("the serial number of each decommissioned device is denied")
            for device in self._all_devices():
                if device.is_decommissioned:
                    denied.require(await provisioning.is_denied(device), device.serial_number)
        finally:
            for task in background:
                task.cancel()
        self._say("the bridge is stopped, and all that it left is looked at")
        for server in self._bridges():
            await asyncio.to_thread(server.stop)
        findings = [denied, *await self._findings(engine)]
        engine.dispose()
        return self._judge(findings, doors)

    def stop_all(self) -> None:
        """End whatever still runs."""
        for server in (*self._workers, self._sink, self._temporal, self._aws):
            server.stop()
        self._postgres.stop()

    # the steps of an operator

    async def _set_up(self) -> None:
        self._say(f"PostgreSQL, {self._postgres.origin}: {self._postgres.version()}")
        await asyncio.to_thread(self._postgres.start)
        await asyncio.to_thread(self._postgres.create_database)
        self._say("Temporal on a file, and AWS behind the emulator")
        await asyncio.to_thread(self._temporal.start)
        await asyncio.to_thread(self._aws.start)
        await asyncio.to_thread(self._put_new_keys)
        await self._temporal_tool(
            "operator", "namespace", "create", "--namespace", _NAMESPACE, "--retention", "7d"
        )
        await asyncio.to_thread(self._sink.start)
        await self._thingbridge("migrate")
        self._workers = [self._bridge(f"worker-{number}", "worker") for number in (1, 2)]
        self._api = self._bridge("api", "api", "--host", HOST, "--port", str(self._api_port))
        for server in self._bridges():
            self._say(f"$ {server.command_line}")
            await asyncio.to_thread(server.start)
        made = await self._thingbridge("keys", "create", "--operator", "--label", "platform", secret=True)
        self._api_keys.append(made.strip())
        await self._thingbridge("keys", "list")

    async def _first_devices(self, watcher: Watcher, doors: HttpApi, provisioning: FleetProvisioning) -> None:
        """One device by hand through all there is, before there is a policy; one that enrols by itself."""
        device, enrolled = self._first, self._enrolled
        file = self._folder / "first.jsonl"
        file.write_text(json.dumps(device.event("Provisioned")) + "\n")
        await self._thingbridge("send", str(file))
        await watcher.wait_for_status(device, ProvisioningStatus.FAILED)
        await self._thingbridge("bindings", "--status", "Failed")
        failed = 'ProvisioningStatus="Failed" AND ExecutionStatus="Running"'
        await self._temporal_tool("workflow", "list", "--query", failed)
        self._say(f"the IoT policy {POLICY} is made")
        await asyncio.to_thread(create_device_policy, self._endpoint, POLICY)
        await self._thingbridge("retry", str(device.device_id))
        await watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
        await self._thingbridge("bindings", "--device", str(device.device_id))
        await self._thingbridge("send", str(file))
        self._say("POST /api/iot/device-events DeviceActivatedEvent")
        await doors.tell(device, "Activated")
        self._say("POST /api/iot/fleet-provisioning/verify and /registered")
        await provisioning.enrol(enrolled)
        taking = asyncio.create_task(self._take_a_job(device))
        await self._thingbridge("command", "reboot", "--device", str(device.device_id), "--wait")
        await taking
        bound = await doors.call("GET", f"/bindings/{device.device_id}")
        self._say(f"GET /api/iot/bindings/{device.device_id}: {bound['provisioningStatus']}")
        self._say("POST /api/iot/device-events DeviceDecommissionedEvent")
        await doors.tell(device, "Decommissioned")
        await watcher.wait_for_status(device, ProvisioningStatus.DECOMMISSIONED)
        await watcher.until(lambda records: records.unpublished == 0)

    async def _take_a_job(self, device: FleetDevice) -> None:
        simulated = SimulatedDevice(self._endpoint, device.thing_name)
        await again_until(lambda: asyncio.to_thread(simulated.take_one), pause=1)

    # the load, and what breaks meanwhile

    async def _load(
        self, watcher: Watcher, doors: HttpApi, provisioning: FleetProvisioning, *, faults: bool
    ) -> None:
        planned = list(self._faults()) if faults else []
        waves = _in_waves(self._fleet, len(planned) + 2)
        platform = Platform(watcher, doors, provisioning, self._send_file, self._folder, self._endpoint)
        living: list[asyncio.Task[None]] = []
        lasting: list[asyncio.Task[None]] = []
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("devices"),
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            bar = progress.add_task("the fleet lives", total=len(self._fleet))
            showing = asyncio.create_task(self._show(progress, bar, platform))
            try:
                async with asyncio.timeout(_LOAD_SECONDS):
                    for number, wave in enumerate(waves):
                        living.append(asyncio.create_task(platform.live(wave)))
                        self._in_flight += len(wave)
                        await self._is_under_way(watcher, wave)
                        if 0 < number <= len(planned):
                            fault = planned[number - 1]
                            happening = asyncio.create_task(self._break(fault, platform))
                            lasting.append(happening)
                            if not fault.lasts:
                                await happening
                    await asyncio.gather(*living, *lasting)
            except TimeoutError:
                self._say(
                    f"[red]after {_LOAD_SECONDS:.0f} s {platform.ended} devices are where they must be[/red]"
                )
            finally:
                showing.cancel()
                progress.update(bar, completed=platform.ended)
                for task in (*living, *lasting):
                    task.cancel()

    async def _is_under_way(self, watcher: Watcher, wave: Sequence[FleetDevice]) -> None:
        """Wait until the bridge is in the midst of a wave."""
        ids = {device.device_id for device in wave if not device.is_enrolled}
        await watcher.until(lambda records: 4 * len(ids & records.statuses.keys()) >= len(ids))

    async def _show(self, progress: Progress, bar: TaskID, platform: Platform) -> None:
        while True:
            progress.update(bar, completed=platform.ended)
            await asyncio.sleep(0.5)

    def _faults(self) -> Iterator[_Fault]:
        first, second = self._workers
        yield _Fault("the webhook's receiver is killed, and away for 30 s", self._sink_down, lasts=True)
        yield _Fault(f"{first.name} is killed", lambda: self._killed(first, away=3))
        yield _Fault(
            f"the AWS keys are rotated, and the old ones refused after {_GRACE_SECONDS} s",
            lambda: self._rotate(_GRACE_SECONDS),
            lasts=True,
        )
        yield _Fault("the API is killed", lambda: self._killed(self._api, away=3))
        yield _Fault("Temporal is killed", lambda: self._killed(self._temporal, away=5))
        yield _Fault("PostgreSQL is restarted, -m fast", self._restart_postgres)
        yield _Fault("AWS is frozen for 8 s", self._freeze_aws)
        yield _Fault(f"{second.name} is killed", lambda: self._killed(second, away=3))
        yield _Fault("the AWS keys are rotated, and the old ones refused at once", lambda: self._rotate(0))

    async def _break(self, fault: _Fault, platform: Platform) -> None:
        self._say(f"[yellow]{fault.what}[/yellow], with {self._in_flight - platform.ended} devices in flight")
        began = time.monotonic()
        await fault.happen()
        self._say(f"  mended after {time.monotonic() - began:.1f} s: {fault.what}")

    async def _killed(self, server: Server, away: float) -> None:
        self._down.add(server.name)
        server.kill()
        if server in self._workers:
            self._workers_killed.append(datetime.now(UTC))
        await asyncio.sleep(away)
        await asyncio.to_thread(server.start)
        self._down.discard(server.name)

    async def _sink_down(self) -> None:
        await self._killed(self._sink, away=30)

    async def _restart_postgres(self) -> None:
        await asyncio.to_thread(self._postgres.restart)

    async def _freeze_aws(self) -> None:
        self._aws.freeze()
        await asyncio.sleep(8)
        self._aws.thaw()

    async def _rotate(self, grace_seconds: float) -> None:
        old, _ = self._fleet_keys[-1]
        await asyncio.to_thread(self._put_new_keys)
        await asyncio.sleep(grace_seconds)
        await asyncio.to_thread(self._emulator.revoke_key, old)

    async def _keep_up(self) -> None:
        """Start again what has ended by itself, as a container's engine does."""
        while True:
            for server in self._bridges():
                if server.has_ended and server.name not in self._down:
                    self._restarted_by_itself += 1
                    self._say(f"[yellow]{server.name} has ended by itself, and is started again[/yellow]")
                    with suppress(Exception):
                        await asyncio.to_thread(server.start)
            await asyncio.sleep(1)

    async def _settle(self, watcher: Watcher) -> None:
        """Wait until every event is sent, and no workflow of a device or a command is at work."""
        client = await self._connect()
        at_work = "ExecutionStatus = 'Running' AND WorkflowType IN ('DeviceLifecycle', 'DeviceCommand')"
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await watcher.until(lambda records: records.unpublished == 0)
                await again_until(lambda: self._nothing_matches(client, at_work), pause=1)
        except TimeoutError:
            self._say(f"[red]not at rest after {_SETTLE_SECONDS:.0f} s[/red]")

    @staticmethod
    async def _nothing_matches(client: Client, query: str) -> bool:
        return (await client.count_workflows(query)).count == 0

    # what came of it

    def _all_devices(self) -> list[FleetDevice]:
        return [self._first, self._enrolled, *self._fleet]

    async def _findings(self, engine: Engine) -> list[Finding]:
        fleet = self._all_devices()
        deliveries = read_deliveries(self._folder / "deliveries.jsonl")
        repeats = len(deliveries) - len({delivery.headers.get("webhook-id") for delivery in deliveries})
        self._say(f"{len(deliveries)} deliveries, {repeats} of them repeats")
        findings = [*check_events(fleet, deliveries, engine), *check_rows(fleet, engine)]
        account = await asyncio.to_thread(AwsAccount, self._endpoint)
        findings += await asyncio.to_thread(lambda: list(account.check(fleet, {_FLEET_SECRET})))
        with Session(engine) as session:
            arns = [
                *session.exec(select(AwsThingBinding.certificate_arn)),
                *session.exec(select(RetiredCertificate.certificate_arn)),
            ]
        findings.append(await asyncio.to_thread(account.check_unknown, arns, self._workers_killed))
        self._say(f"{len(account.unknown)} certificates were lost with a killed worker: INACTIVE, in no row")
        findings.append(self._check_keys())
        client = await self._connect()
        findings.append(await check_workflows(client))
        histories = await read_histories(client)
        places = [
            *histories.items(),
            *((file.name, file.read_text(errors="replace")) for file in self._folder.glob("*.log")),
            ("the deliveries", (self._folder / "deliveries.jsonl").read_text(errors="replace")),
            ("the database", (await asyncio.to_thread(self._postgres.dump)).decode(errors="replace")),
        ]
        owned = {
            "the database's password": self._postgres.password,
            "the webhook's secret": self._webhook_secret,
            **{f"secret AWS key {number}": key for number, (_, key) in enumerate(self._fleet_keys, 1)},
            **{f"API key {number}": key for number, key in enumerate(self._api_keys, 1)},
        }
        keys = list(account.keys.values())
        findings += await asyncio.to_thread(lambda: list(check_secrecy(places, keys, owned)))
        return findings

    def _check_keys(self) -> Finding:
        found = Finding("no call was signed with AWS keys that were replaced in good time")
        refused = self._emulator.refused_keys()
        first, _ = self._fleet_keys[0]
        found.require(not refused.get(first), f"{refused.get(first)} calls")
        if len(self._fleet_keys) > 1:
            found.require(self._is_refused(self._fleet_keys[0]), "AWS takes the replaced keys still")
        for number, (key, _) in enumerate(self._fleet_keys[1:-1], 2):
            self._say(
                f"{refused.get(key, 0)} calls were signed with key {number}, refused at once, and done again"
            )
        return found

    def _is_refused(self, keys: tuple[str, str]) -> bool:
        try:
            aws_client("iot", self._endpoint, keys=keys).list_things()
        except ClientError:
            return True
        return False

    def _judge(self, findings: Sequence[Finding], doors: HttpApi) -> bool:
        table = Table("what must hold", "looked at", "violations")
        for finding in findings:
            colour = "red" if finding.violations or not finding.looked_at else "green"
            count = f"[{colour}]{len(finding.violations)}[/{colour}]"
            table.add_row(finding.what, str(finding.looked_at), count)
        self._console.print(table)
        for finding in findings:
            for violation in finding.violations[:_VIOLATIONS_SHOWN]:
                self._console.print(f"[red]{escape(finding.what)}[/red]: {escape(violation)}", soft_wrap=True)
        self._console.print(
            f"{len(self._all_devices())} devices in {time.monotonic() - self._began:.0f} s; "
            f"{doors.sent_again} HTTP calls sent again; "
            f"{self._restarted_by_itself} processes ended by themselves and were started again"
        )
        right = all(finding.looked_at and not finding.violations for finding in findings)
        self._console.print("[green]all holds[/green]" if right else "[red]not all holds[/red]")
        return right

    # the parts

    def _bridges(self) -> list[Server]:
        return [*self._workers, self._api]

    def _settings(self) -> dict[str, str]:
        """What an operator writes into the environment of each process of the bridge."""
        return {
            "TEMPORAL_ADDRESS": f"{HOST}:{self._temporal_port}",
            "TEMPORAL_NAMESPACE": _NAMESPACE,
            "DATABASE_URL": self._postgres.url,
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "embedded",
            "AWS_SECRET_ACCESS_KEY": "embedded",
            "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME": POLICY,
            "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS": "10",
            "IOT_AWS_JOBS__STATUS_POLL_INTERVAL_SECONDS": "15",
            "IOT_AWS_EVENTS__SINK": "webhook",
            "IOT_AWS_EVENTS__WEBHOOK_URL": f"http://{HOST}:{self._sink_port}/events",
            "IOT_AWS_EVENTS__WEBHOOK_SECRET": self._webhook_secret,
            "IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN": self._fleet_secret_arn,
            "IOT_AWS_CREDENTIALS__ROTATION_CHECK_INTERVAL_MINUTES": "1",
        }

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._settings()}

    def _bridge(self, name: str, *arguments: str) -> Server:
        def answers(said: str) -> bool:
            return is_ok(self._api_port, "/readyz") if name == "api" else '"worker started"' in said

        log_file = self._folder / f"{name}.log"
        return Server(name, [THINGBRIDGE, *arguments], self._environment(), log_file, answers)

    def _receiver(self) -> Server:
        command = [sys.executable, "-m", "benchmarks.production.receiver", "--port", str(self._sink_port)]
        command += ["--file", str(self._folder / "deliveries.jsonl")]
        environment = {**os.environ, "WEBHOOK_SECRET": self._webhook_secret}
        return Server(
            "receiver",
            command,
            environment,
            self._folder / "receiver.log",
            lambda _: is_ok(self._sink_port, "/"),
        )

    def _put_new_keys(self) -> None:
        """Put new AWS keys into the secret from which the bridge reads them."""
        keys = "AKIA" + secrets.token_hex(8).upper(), secrets.token_urlsafe(30)
        held = json.dumps(dict(zip(("accessKeyId", "secretAccessKey"), keys, strict=True)))
        client = aws_client("secretsmanager", self._endpoint)
        if self._fleet_keys:
            client.put_secret_value(SecretId=_FLEET_SECRET, SecretString=held)
        else:
            self._fleet_secret_arn = client.create_secret(Name=_FLEET_SECRET, SecretString=held)["ARN"]
        self._fleet_keys.append(keys)

    async def _connect(self) -> Client:
        address = f"{HOST}:{self._temporal_port}"
        return await Client.connect(address, namespace=_NAMESPACE, data_converter=pydantic_data_converter)

    async def _send_file(self, file: Path) -> None:
        """`thingbridge send`, and again until Temporal has every line: a repeat changes nothing."""

        async def sent() -> bool:
            return (await self._call("send", str(file))).returncode == 0

        await again_until(sent, pause=1)

    async def _thingbridge(self, *arguments: str, secret: bool = False) -> str:
        return await self._tool(THINGBRIDGE, *arguments, secret=secret)

    async def _temporal_tool(self, *arguments: str) -> str:
        return await self._tool(Path(temporal_executable()), *arguments)

    async def _tool(self, program: Path, *arguments: str, secret: bool = False) -> str:
        """A command of an operator's, with what it says."""
        self._say(f"$ {program.name} {shlex.join(arguments)}")
        done = await self._call(*arguments, program=program)
        if done.returncode:
            raise RuntimeError(f"{program.name} {arguments[0]} ended with {done.returncode}: {done.stderr}")
        for line in () if secret else done.stdout.splitlines():
            self._console.print(f"    {line}", markup=False, soft_wrap=True)
        return done.stdout

    async def _call(self, *arguments: str, program: Path = THINGBRIDGE) -> subprocess.CompletedProcess[str]:
        def call() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )

        return await asyncio.to_thread(call)

    def _say(self, what: str) -> None:
        seconds = int(time.monotonic() - self._began)
        self._console.print(f"[dim]{seconds // 60:02}:{seconds % 60:02}[/dim] {what}", soft_wrap=True)


def _in_waves(fleet: Sequence[FleetDevice], count: int) -> list[Sequence[FleetDevice]]:
    """The fleet in so many parts, or fewer where it is small."""
    size = max(1, -(-len(fleet) // count))
    return [fleet[start : start + size] for start in range(0, len(fleet), size)]


if __name__ == "__main__":
    typer.run(main)

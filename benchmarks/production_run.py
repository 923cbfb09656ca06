"""A production run on this machine without containers: set up as by an operator, under load and with faults.

    uv run python -m benchmarks.production_run --devices 500 [--no-faults] [--keep]

Temporal on a file, PostgreSQL from Debian, the AWS emulator, two workers, the HTTP API and a webhook receiver
run as separate processes, configured only by settings. First, one device goes through the steps of
docs/handbook.md. Then a fleet of devices runs its scenarios while the receiver is killed, the AWS credentials
are rotated, and each server is killed, restarted or frozen in turn. At the end, the result of every device is
checked from outside. The exit code is 1 if a check fails.
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
    Platform,
    Scenario,
    Watcher,
    make_fleet,
    poll_until,
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
from domain.names import CLAIM_CERTIFICATE_CHECK_SCHEDULE
from domain.provisioning_status import ProvisioningStatus
from embedded import REGION
from embedded.aws_client import aws_client
from embedded.emulator_control import EmulatorControl
from embedded.policy import create_device_policy
from embedded.processes import HOST, child_environment, choose_ports, is_ok
from embedded.simulated_device import SimulatedDevice
from embedded.stack import temporal_executable
from orchestration.client import end_process

_FLEET_SECRET: Final = "thingbridge/fleet-credentials"  # noqa: S105  # the name, not the value
_GRACE_SECONDS: Final = 70
"""Longer than the interval of one minute at which the bridge reads its keys."""
_NAMESPACE: Final = "devices"
_LOAD_SECONDS: Final = 900.0
_IDLE_TIMEOUT_SECONDS: Final = 300.0
_VIOLATIONS_SHOWN: Final = 10
_LOG_WIDTH: Final = 120


def main(
    devices: Annotated[int, typer.Option(min=20, help="Number of devices in the load.")] = 500,
    *,
    faults: Annotated[
        bool, typer.Option(help="Inject a fault into each server in turn during the load.")
    ] = True,
    keep: Annotated[
        bool, typer.Option(help="Keep the folder with logs and data, and print its path.")
    ] = False,
) -> None:
    """Run, print the checks and their results, and exit with 0 if all are satisfied."""
    # The developer's own settings of AWS, Temporal and the bridge must not reach this run.
    kept = {name: value for name, value in child_environment().items() if not name.startswith("IOT_AWS_")}
    os.environ.clear()
    folder = Path(tempfile.mkdtemp(prefix="thingbridge-production-"))
    folder.chmod(0o711)  # the user of PostgreSQL must traverse it
    # Without bytecode files, each start of a process would compile all modules again.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "NO_PROXY": HOST, "no_proxy": HOST}
    os.environ.update(kept)
    console = Console(emoji=False)  # the ARN of a secret contains ":secret:"
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers must be stopped then too
    run = _Run(console, folder, devices)
    try:
        passed = asyncio.run(run.run(faults=faults))
    finally:
        run.stop_all()
        if keep:
            console.print(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    end_process(0 if passed else 1)


@dataclass(frozen=True)
class _Fault:
    """A fault with its repair."""

    description: str
    inject: Callable[[], Awaitable[None]]
    in_background: bool = False
    """Whether the load and the next faults continue before this one is repaired."""


class _Run:
    def __init__(self, console: Console, folder: Path, devices: int) -> None:
        self._console = console
        self._folder = folder
        self._began = time.monotonic()
        ports = choose_ports(0, 0, 0, 0, 0, 0)
        self._temporal_port, ui_port, aws_port, mqtt_port, self._api_port, self._sink_port = ports
        self._endpoint = f"http://{HOST}:{aws_port}"
        self._emulator = EmulatorControl(self._endpoint)
        self._webhook_secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        self._fleet_keys: list[tuple[str, str]] = []
        self._fleet_secret_arn = ""
        self._api_keys: list[str] = []
        self._fleet = make_fleet(devices, first_number=10)
        self._first = FleetDevice(1, Scenario.DECOMMISSIONED, None, datetime.now(UTC), uuid4())
        self._enrolled = FleetDevice(2, Scenario.ENROLLED, uuid4(), datetime.now(UTC))
        self._first.failed_once = self._first.commanded_by_operator = True
        self._restarts = 0
        self._down: set[str] = set()
        self._workers_killed: list[datetime] = []
        self._started = 0

        self._postgres = PostgresCluster(folder / "postgres", folder / "postgres.log")
        self._temporal = temporal_server(folder, self._temporal_port, ui_port)
        self._aws = aws_emulator(folder, aws_port, mqtt_port)
        self._sink = self._receiver()
        # Created in `_set_up`, when their settings are known.
        self._workers: list[Server] = []
        self._api: Server

    async def run(self, *, faults: bool) -> bool:
        """Run everything, and return whether all checks passed."""
        await self._set_up()
        engine = open_engine(self._postgres.url)
        watcher = Watcher(engine)
        api = HttpApi(f"http://{HOST}:{self._api_port}", self._api_keys[0])
        provisioning = FleetProvisioning(self._endpoint, api)
        background = [asyncio.create_task(watcher.run()), asyncio.create_task(self._restart_ended())]
        try:
            await self._first_devices(watcher, api, provisioning)
            await self._load(watcher, api, provisioning, faults=faults)
            await self._check_claims()
            await self._wait_until_idle(watcher)
            denied = Finding("`/verify` denies the serial number of each decommissioned device")
            for device in self._all_devices():
                if device.is_decommissioned:
                    denied.require(await provisioning.is_denied(device), device.serial_number)
        finally:
            for task in background:
                task.cancel()
        self._print("stopping the bridge and checking the results")
        for server in self._bridges():
            await asyncio.to_thread(server.stop)
        findings = [denied, *await self._findings(engine)]
        engine.dispose()
        return self._report(findings, api)

    def stop_all(self) -> None:
        """Stop every server that still runs."""
        for server in (*self._workers, self._sink, self._temporal, self._aws):
            server.stop()
        self._postgres.stop()

    # The steps of an operator

    async def _set_up(self) -> None:
        self._print(f"starting PostgreSQL {self._postgres.origin}: {self._postgres.version()}")
        await asyncio.to_thread(self._postgres.start)
        await asyncio.to_thread(self._postgres.create_database)
        self._print("starting Temporal on a file and the AWS emulator")
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
            self._print(f"$ {server.command_line}")
            await asyncio.to_thread(server.start)
        created = await self._thingbridge("keys", "create", "--operator", "--label", "platform", secret=True)
        self._api_keys.append(created.strip())
        await self._thingbridge("keys", "list")

    async def _first_devices(self, watcher: Watcher, api: HttpApi, provisioning: FleetProvisioning) -> None:
        """Run one device through the operator commands, at first without an IoT policy, and enrol another."""
        device, enrolled = self._first, self._enrolled
        file = self._folder / "first.jsonl"
        file.write_text(json.dumps(device.event("Provisioned")) + "\n")
        await self._thingbridge("send", str(file))
        await watcher.wait_for_status(device, ProvisioningStatus.FAILED)
        await self._thingbridge("bindings", "--status", "Failed")
        failed = 'ProvisioningStatus="Failed" AND ExecutionStatus="Running"'
        await self._temporal_tool("workflow", "list", "--query", failed)
        self._print(f"creating the IoT policy {POLICY}")
        await asyncio.to_thread(create_device_policy, self._endpoint, POLICY)
        await self._thingbridge("retry", str(device.device_id))
        await watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
        await self._thingbridge("bindings", "--device", str(device.device_id))
        await self._thingbridge("send", str(file))
        self._print("POST /api/iot/device-events DeviceActivatedEvent")
        await api.post_event(device, "Activated")
        self._print("POST /api/iot/fleet-provisioning/verify and /registered")
        await provisioning.enrol(enrolled)
        job = asyncio.create_task(self._execute_job(device))
        await self._thingbridge("command", "reboot", "--device", str(device.device_id), "--wait")
        await job
        binding = await api.call("GET", f"/bindings/{device.device_id}")
        self._print(f"GET /api/iot/bindings/{device.device_id}: {binding['provisioningStatus']}")
        self._print("POST /api/iot/device-events DeviceDecommissionedEvent")
        await api.post_event(device, "Decommissioned")
        await watcher.wait_for_status(device, ProvisioningStatus.DECOMMISSIONED)
        await watcher.until(lambda records: records.unpublished == 0)

    async def _execute_job(self, device: FleetDevice) -> None:
        simulated = SimulatedDevice(self._endpoint, device.thing_name)
        await poll_until(lambda: asyncio.to_thread(simulated.execute_next_job), pause=1)

    # The load and the faults

    async def _load(
        self, watcher: Watcher, api: HttpApi, provisioning: FleetProvisioning, *, faults: bool
    ) -> None:
        planned = list(self._faults()) if faults else []
        waves = _in_waves(self._fleet, len(planned) + 2)
        platform = Platform(watcher, api, provisioning, self._send_file, self._folder, self._endpoint)
        wave_tasks: list[asyncio.Task[None]] = []
        fault_tasks: list[asyncio.Task[None]] = []
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("devices"),
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            bar = progress.add_task("devices finished", total=len(self._fleet))
            progress_task = asyncio.create_task(self._show(progress, bar, platform))
            try:
                async with asyncio.timeout(_LOAD_SECONDS):
                    for number, wave in enumerate(waves):
                        wave_tasks.append(asyncio.create_task(platform.run_wave(wave)))
                        self._started += len(wave)
                        await self._wait_until_started(watcher, wave)
                        if 0 < number <= len(planned):
                            fault = planned[number - 1]
                            fault_task = asyncio.create_task(self._inject(fault, platform))
                            fault_tasks.append(fault_task)
                            if not fault.in_background:
                                await fault_task
                    await asyncio.gather(*wave_tasks, *fault_tasks)
            except TimeoutError:
                self._print(
                    f"[red]only {platform.finished} of {len(self._fleet)} devices finished "
                    f"within {_LOAD_SECONDS:.0f} s[/red]"
                )
            finally:
                progress_task.cancel()
                progress.update(bar, completed=platform.finished)
                for task in (*wave_tasks, *fault_tasks):
                    task.cancel()

    async def _wait_until_started(self, watcher: Watcher, wave: Sequence[FleetDevice]) -> None:
        """Wait until a quarter of the devices of a wave have a binding."""
        ids = {device.device_id for device in wave if not device.is_enrolled}
        await watcher.until(lambda records: 4 * len(ids & records.statuses.keys()) >= len(ids))

    async def _show(self, progress: Progress, bar: TaskID, platform: Platform) -> None:
        while True:
            progress.update(bar, completed=platform.finished)
            await asyncio.sleep(0.5)

    def _faults(self) -> Iterator[_Fault]:
        first, second = self._workers
        yield _Fault("the webhook receiver is killed for 30 s", self._stop_receiver, in_background=True)
        yield _Fault(f"{first.name} is killed", lambda: self._kill(first, pause=3))
        yield _Fault(
            f"the AWS keys are rotated, and the old ones are revoked after {_GRACE_SECONDS} s",
            lambda: self._rotate(_GRACE_SECONDS),
            in_background=True,
        )
        yield _Fault("the API is killed", lambda: self._kill(self._api, pause=3))
        yield _Fault("Temporal is killed", lambda: self._kill(self._temporal, pause=5))
        yield _Fault("PostgreSQL is restarted in fast mode", self._restart_postgres)
        yield _Fault("the AWS emulator is frozen for 8 s", self._freeze_aws)
        yield _Fault(f"{second.name} is killed", lambda: self._kill(second, pause=3))
        yield _Fault(
            "the AWS keys are rotated, and the old ones are revoked at once", lambda: self._rotate(0)
        )

    async def _inject(self, fault: _Fault, platform: Platform) -> None:
        unfinished = self._started - platform.finished
        self._print(f"[yellow]fault: {fault.description}[/yellow], with {unfinished} devices in progress")
        began = time.monotonic()
        await fault.inject()
        self._print(f"  repaired after {time.monotonic() - began:.1f} s: {fault.description}")

    async def _kill(self, server: Server, pause: float) -> None:
        self._down.add(server.name)
        server.kill()
        if server in self._workers:
            self._workers_killed.append(datetime.now(UTC))
        await asyncio.sleep(pause)
        await asyncio.to_thread(server.start)
        self._down.discard(server.name)

    async def _stop_receiver(self) -> None:
        await self._kill(self._sink, pause=30)

    async def _restart_postgres(self) -> None:
        await asyncio.to_thread(self._postgres.restart)

    async def _freeze_aws(self) -> None:
        self._aws.freeze()
        await asyncio.sleep(8)
        self._aws.resume()

    async def _rotate(self, grace_seconds: float) -> None:
        old, _ = self._fleet_keys[-1]
        await asyncio.to_thread(self._put_new_keys)
        await asyncio.sleep(grace_seconds)
        await asyncio.to_thread(self._emulator.revoke_key, old)

    async def _restart_ended(self) -> None:
        """Restart processes of the bridge that have ended, as a container engine does."""
        while True:
            for server in self._bridges():
                if server.has_ended and server.name not in self._down:
                    self._restarts += 1
                    self._print(f"[yellow]{server.name} has ended unexpectedly and is restarted[/yellow]")
                    with suppress(Exception):
                        await asyncio.to_thread(server.start)
            await asyncio.sleep(1)

    async def _check_claims(self) -> None:
        """Run the daily claim certificate check now, and wait for its end.

        It signals the devices that enrolled while Temporal was away for longer than /registered waits.
        """
        schedule = (await self._connect()).get_schedule_handle(CLAIM_CERTIFICATE_CHECK_SCHEDULE)
        before = (await schedule.describe()).info.num_actions
        await schedule.trigger()
        self._print(f"schedule {CLAIM_CERTIFICATE_CHECK_SCHEDULE} is triggered")

        async def ended() -> bool:
            info = (await schedule.describe()).info
            return info.num_actions > before and not info.running_actions

        await poll_until(ended, pause=1)

    async def _wait_until_idle(self, watcher: Watcher) -> None:
        """Wait until every event is published and no workflow of a device or command is running."""
        client = await self._connect()
        running = "ExecutionStatus = 'Running' AND WorkflowType IN ('DeviceLifecycle', 'DeviceCommand')"
        try:
            async with asyncio.timeout(_IDLE_TIMEOUT_SECONDS):
                await watcher.until(lambda records: records.unpublished == 0)
                await poll_until(lambda: self._nothing_matches(client, running), pause=1)
        except TimeoutError:
            self._print(f"[red]events or workflows are still open after {_IDLE_TIMEOUT_SECONDS:.0f} s[/red]")

    @staticmethod
    async def _nothing_matches(client: Client, query: str) -> bool:
        return (await client.count_workflows(query)).count == 0

    # The checks

    def _all_devices(self) -> list[FleetDevice]:
        return [self._first, self._enrolled, *self._fleet]

    async def _findings(self, engine: Engine) -> list[Finding]:
        fleet = self._all_devices()
        deliveries = read_deliveries(self._folder / "deliveries.jsonl")
        repeats = len(deliveries) - len({delivery.headers.get("webhook-id") for delivery in deliveries})
        self._print(f"{len(deliveries)} deliveries, {repeats} of them repeated")
        findings = [*check_events(fleet, deliveries, engine), *check_rows(fleet, engine)]
        account = await asyncio.to_thread(AwsAccount, self._endpoint)
        findings += await asyncio.to_thread(lambda: list(account.check(fleet, {_FLEET_SECRET})))
        with Session(engine) as session:
            arns = [
                *session.exec(select(AwsThingBinding.certificate_arn)),
                *session.exec(select(RetiredCertificate.certificate_arn)),
            ]
        findings.append(await asyncio.to_thread(account.check_unknown, arns, self._workers_killed))
        self._print(
            f"{len(account.unknown)} INACTIVE certificates are unrecorded because a worker was killed"
        )
        findings.append(self._check_keys())
        client = await self._connect()
        findings.append(await check_workflows(client))
        histories = await read_histories(client)
        texts = [
            *histories.items(),
            *((file.name, file.read_text(errors="replace")) for file in self._folder.glob("*.log")),
            ("the deliveries", (self._folder / "deliveries.jsonl").read_text(errors="replace")),
            ("the database", (await asyncio.to_thread(self._postgres.dump)).decode(errors="replace")),
        ]
        bridge_secrets = {
            "the database's password": self._postgres.password,
            "the webhook's secret": self._webhook_secret,
            **{f"secret AWS key {number}": key for number, (_, key) in enumerate(self._fleet_keys, 1)},
            **{f"API key {number}": key for number, key in enumerate(self._api_keys, 1)},
        }
        keys = list(account.keys.values())
        findings += await asyncio.to_thread(lambda: list(check_secrecy(texts, keys, bridge_secrets)))
        return findings

    def _check_keys(self) -> Finding:
        finding = Finding("no call was signed with AWS keys after their grace period")
        refused = self._emulator.refused_keys()
        first, _ = self._fleet_keys[0]
        finding.require(not refused.get(first), f"{refused.get(first)} calls")
        if len(self._fleet_keys) > 1:
            finding.require(self._is_refused(self._fleet_keys[0]), "AWS still accepts the replaced keys")
        for number, (key, _) in enumerate(self._fleet_keys[1:-1], 2):
            self._print(
                f"{refused.get(key, 0)} calls were signed with key {number} after it was revoked, and retried"
            )
        return finding

    def _is_refused(self, keys: tuple[str, str]) -> bool:
        try:
            aws_client("iot", self._endpoint, keys=keys).list_things()
        except ClientError:
            return True
        return False

    def _report(self, findings: Sequence[Finding], api: HttpApi) -> bool:
        table = Table("check", "items", "violations")
        for finding in findings:
            colour = "red" if finding.violations or not finding.checked else "green"
            count = f"[{colour}]{len(finding.violations)}[/{colour}]"
            table.add_row(escape(finding.rule), str(finding.checked), count)
        self._console.print(table)
        for finding in findings:
            for violation in finding.violations[:_VIOLATIONS_SHOWN]:
                self._console.print(f"[red]{escape(finding.rule)}[/red]: {escape(violation)}", soft_wrap=True)
        self._console.print(
            f"{len(self._all_devices())} devices in {time.monotonic() - self._began:.0f} s; "
            f"{api.retries} HTTP requests were retried; "
            f"{self._restarts} processes ended unexpectedly and were restarted"
        )
        passed = all(finding.checked and not finding.violations for finding in findings)
        self._console.print("[green]all checks passed[/green]" if passed else "[red]some checks failed[/red]")
        return passed

    # The servers

    def _bridges(self) -> list[Server]:
        return [*self._workers, self._api]

    def _settings(self) -> dict[str, str]:
        """Return the environment variables that an operator sets for each process of the bridge."""
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
        def answers(output: str) -> bool:
            return is_ok(self._api_port, "/readyz") if name == "api" else '"worker started"' in output

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
        """Store new AWS keys in the secret from which the bridge reads them."""
        keys = "AKIA" + secrets.token_hex(8).upper(), secrets.token_urlsafe(30)
        content = json.dumps(dict(zip(("accessKeyId", "secretAccessKey"), keys, strict=True)))
        client = aws_client("secretsmanager", self._endpoint)
        if self._fleet_keys:
            client.put_secret_value(SecretId=_FLEET_SECRET, SecretString=content)
        else:
            self._fleet_secret_arn = client.create_secret(Name=_FLEET_SECRET, SecretString=content)["ARN"]
        self._fleet_keys.append(keys)

    async def _connect(self) -> Client:
        address = f"{HOST}:{self._temporal_port}"
        return await Client.connect(address, namespace=_NAMESPACE, data_converter=pydantic_data_converter)

    async def _send_file(self, file: Path) -> None:
        """Run `thingbridge send` until it succeeds. It is idempotent."""

        async def sent() -> bool:
            return (await self._call("send", str(file))).returncode == 0

        await poll_until(sent, pause=1)

    async def _thingbridge(self, *arguments: str, secret: bool = False) -> str:
        return await self._tool(THINGBRIDGE, *arguments, secret=secret)

    async def _temporal_tool(self, *arguments: str) -> str:
        return await self._tool(Path(temporal_executable()), *arguments)

    async def _tool(self, program: Path, *arguments: str, secret: bool = False) -> str:
        """Run and print an operator command with its output, and return the output."""
        self._print(f"$ {program.name} {shlex.join(arguments)}")
        done = await self._call(*arguments, program=program)
        if done.returncode:
            raise RuntimeError(
                f"{program.name} {arguments[0]} ended with exit code {done.returncode}: {done.stderr}"
            )
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

    def _print(self, text: str) -> None:
        seconds = int(time.monotonic() - self._began)
        self._console.print(f"[dim]{seconds // 60:02}:{seconds % 60:02}[/dim] {text}", soft_wrap=True)


def _in_waves(fleet: Sequence[FleetDevice], count: int) -> list[Sequence[FleetDevice]]:
    """Divide the fleet into this number of waves, or fewer if it is small."""
    size = max(1, -(-len(fleet) // count))
    return [fleet[start : start + size] for start in range(0, len(fleet), size)]


if __name__ == "__main__":
    typer.run(main)

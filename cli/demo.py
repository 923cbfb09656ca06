"""The demo: a sample fleet, from provisioning to decommission, through the real workflows."""

import asyncio
import fcntl
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from temporalio.client import Client

from cli.connected_devices import ConnectedDevices
from cli.desired_state import DesiredStateDemo
from cli.enrolment_act import EnrolmentAct, require_clone
from cli.exit_codes import INTERRUPTED
from cli.output import runnable, standard_output
from cli.stack import print_addresses, running_api, running_stack
from db.engine import open_engine
from db.models import AwsThingBinding
from domain.device_state import DesiredStatus, DeviceState
from domain.failure import FailureCode
from domain.lifecycle_event import InvalidEventError, LifecycleEvent, LifecycleEventType
from domain.names import device_workflow_id
from domain.operator_error import OperatorError
from domain.provisioning_status import ProvisioningStatus
from embedded.inventory import Inventory, reported_status, take_inventory
from embedded.policy import create_device_policy
from embedded.stack import Addresses
from observability import telemetry
from orchestration.client import connect
from orchestration.requests import send_event, send_retry
from orchestration.workers import stop_on_signals
from settings import Settings
from worker import run_worker

_TIMEOUT_SECONDS: Final = 80.0
_POLL_SECONDS: Final = 0.25
_MARKER: Final = ".thingbridge-demo"


class Connection(StrEnum):
    """The MQTT connection of a device at the end."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """AWS ended it and refused the next one."""
    NONE = "not connected"


@dataclass(frozen=True)
class Expectation:
    """The expected end of a device, derived from its events alone."""

    state: DeviceState
    status: ProvisioningStatus | None

    @property
    def reported(self) -> DesiredStatus | None:
        """Return the status that its shadow must report."""
        return (
            self.state.desired.status
            if self.status is ProvisioningStatus.ACTIVE and self.state.desired
            else None
        )

    @property
    def connection(self) -> Connection:
        """Return how its MQTT connection must end, if it has one."""
        decommissioned = self.status is ProvisioningStatus.DECOMMISSIONED
        return Connection.REFUSED if decommissioned else Connection.CONNECTED


@dataclass(frozen=True)
class Outcome:
    """The end of a device."""

    expected: Expectation
    binding: AwsThingBinding | None
    reported: str | None
    attempts: int
    retried: int
    connection: Connection | None = None
    """The end of its device's MQTT connection; None if it was not expected to have one."""

    @property
    def fault(self) -> str | None:
        """Return the difference from the expectation, or None if there is none."""
        status = self.binding.provisioning_status if self.binding else None
        if status != self.expected.status:
            return f"must be {self.expected.status or 'without a binding'}"
        if self.reported != self.expected.reported:
            return f"shadow reports {self.reported}, must be {self.expected.reported}"
        if self.connection not in {None, self.expected.connection}:
            return f"is {self.connection} over MQTT, must be {self.expected.connection}"
        return None


def run_demo(data: Path, fleet: Path | None, *, stay: bool, enrolment: bool = False) -> int:
    """Run the demo in an empty folder, print its table, and return the exit code.

    Raises:
        typer.BadParameter: the folder contains something else, or the fleet's file is wrong.
        OperatorError: a server did not start, the folder cannot be used, or a device cannot enrol itself
            because this is no clone of the repository.
    """
    console = standard_output()
    with as_file(files("cli") / "fleet.jsonl") as sample:
        events = _read(fleet or sample)
    first = next((event for event in events if event.type is LifecycleEventType.PROVISIONED), None)
    if first is None:
        raise typer.BadParameter(
            f"{fleet} contains no {LifecycleEventType.PROVISIONED}", param_hint="--fleet"
        )
    if enrolment:
        require_clone()
    _empty(data)
    with running_stack(data, console) as addresses, (data / "logs" / "worker.log").open("w") as log:
        telemetry.configure("INFO", "json", log, measured=True)
        with running_api() as url:

            def print_addresses_to_stay() -> None:
                print_addresses(console, addresses, url, data)

            code = asyncio.run(
                _drive(
                    console,
                    addresses,
                    events,
                    first,
                    enrolment=(url, data / "device") if enrolment else None,
                    on_stay=print_addresses_to_stay if stay else None,
                )
            )
    again = f"{runnable('thingbridge')} dev --data {shlex.quote(str(data))}"
    console.print(f"[dim]everything is stopped; to follow the links: {escape(again)}[/dim]", soft_wrap=True)
    return code


def _read(file: Path) -> list[LifecycleEvent]:
    events: list[LifecycleEvent] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            events += [LifecycleEvent.from_json(line)] if line.strip() else []
        except InvalidEventError as error:
            raise typer.BadParameter(f"{file}:{number}: {error}", param_hint="--fleet") from None
    return events


async def _drive(
    console: Console,
    addresses: Addresses,
    events: Sequence[LifecycleEvent],
    first: LifecycleEvent,
    *,
    enrolment: tuple[str, Path] | None,
    on_stay: Callable[[], None] | None,
) -> int:
    """Run a worker and the demo; then call `on_stay`, if given, and keep the worker running until Ctrl-C."""
    interrupted = asyncio.create_task(stop_on_signals().wait())
    settings = Settings.load()
    client = await connect(settings.encryption.decoded_keys)
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, client, stop))
    engine = open_engine(addresses.database_url)
    devices = ConnectedDevices(addresses)
    demo = _Demo(console, addresses, settings, client, engine, devices, events, first)

    async def drive() -> int:
        code = await demo.run()
        if enrolment is None:
            return code
        act = EnrolmentAct(console, addresses, settings, client, engine, *enrolment)
        return code if await act.run() else 1

    driving = asyncio.create_task(drive())
    try:
        # A worker that cannot start ends the demo at once, with its error.
        await asyncio.wait({working, driving, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if on_stay and driving.done() and driving.exception() is None:
            on_stay()
            await asyncio.wait({working, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        driving.cancel()
        interrupted.cancel()
        stop.set()
        await working
        await asyncio.wait({driving, interrupted})
        await asyncio.to_thread(devices.stop)
        engine.dispose()
    return INTERRUPTED if driving.cancelled() else driving.result()


class _Demo:
    def __init__(
        self,
        console: Console,
        addresses: Addresses,
        settings: Settings,
        client: Client,
        engine: Engine,
        devices: ConnectedDevices,
        events: Sequence[LifecycleEvent],
        first: LifecycleEvent,
    ) -> None:
        self._console = console
        self._addresses = addresses
        self._settings = settings
        self._client = client
        self._engine = engine
        self._devices = devices
        self._events, self._decommissions = split_at_decommission(events)
        self._first = first
        self._expected = expectations(events)
        decommissioned_later = {event.device_id for event in self._decommissions}
        self._connecting = {
            device_id
            for device_id, expected in self._expected.items()
            if expected.status is ProvisioningStatus.ACTIVE or device_id in decommissioned_later
        }
        """The devices that must connect."""

    async def run(self) -> int:
        first = self._first
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("devices"),
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            bar = progress.add_task("one device, no IoT policy yet", total=len(self._expected))
            await self._send([first])
            bindings = await self._until(
                lambda bindings: self._status(bindings, first.device_id) is ProvisioningStatus.FAILED
            )
            failed = bindings.get(first.device_id)
            reason = f"{failed.failure_code}: {failed.failure_reason}" if failed else ""
            failed_first = failed is not None and failed.failure_code == FailureCode.POLICY_NOT_FOUND
            verdict = "failed as expected" if failed_first else "[red]must fail without a policy[/red]"
            progress.console.print(f"{verdict}: {escape(reason)}", soft_wrap=True)

            policy = self._settings.provisioning.device_policy_name
            await asyncio.to_thread(create_device_policy, self._addresses.aws_endpoint_url, policy)
            progress.update(bar, description="policy created, device retried, fleet sent")
            await send_retry(self._client, first.device_id, self._settings.worker.task_queue)
            await self._send(self._events)

            starting = asyncio.create_task(self._start_devices())
            reconciling = asyncio.create_task(self._change_desired_state(progress.console))

            def all_reached(
                reached: Callable[[UUID, AwsThingBinding | None], bool],
            ) -> Callable[[dict[UUID, AwsThingBinding]], bool]:
                def condition(bindings: dict[UUID, AwsThingBinding]) -> bool:
                    count = sum(reached(device_id, bindings.get(device_id)) for device_id in self._expected)
                    progress.update(bar, completed=count)
                    return count == len(self._expected)

                return condition

            await self._until(all_reached(self._has_connected))
            connected = sum(self._connection(each) is Connection.CONNECTED for each in self._connecting)
            progress.console.print(f"{connected} devices connected over MQTT, each with its own certificate")
            if self._decommissions:
                progress.update(bar, description="devices decommissioned")
                await self._send(self._decommissions)
            bindings = await self._until(all_reached(self._has_ended))
            await self._until_idle()
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            progress.update(bar, description="a device ends its job")
            reconciled = await reconciling
        outcomes = [
            await self._outcome(expected, bindings.get(device_id))
            for device_id, expected in self._expected.items()
        ]
        workflows = f"{self._addresses.temporal_ui_url}/namespaces/{self._client.namespace}/workflows"
        self._console.print(fleet_table(outcomes, workflows, complete=not self._console.is_terminal))
        inventory = await asyncio.to_thread(take_inventory, self._addresses.aws_endpoint_url)
        agreed = self._compare(inventory, bindings.values())
        ends = Counter(outcome.connection for outcome in outcomes)
        self._console.print(
            f"{ends[Connection.CONNECTED]} devices are connected over MQTT; {ends[Connection.REFUSED]} were "
            "decommissioned: AWS ended their connections, and refuses new ones"
        )
        wrong = [outcome for outcome in outcomes if outcome.fault]
        if wrong:
            self._console.print(f"[red]{len(wrong)} of {len(outcomes)} devices did not end as expected[/red]")
        else:
            self._console.print(f"[green]all {len(outcomes)} devices ended as expected[/green]")
        return 0 if failed_first and reconciled and agreed and not wrong else 1

    async def _change_desired_state(self, console: Console) -> bool:
        """Change the desired state of the first active device, while the others are provisioned."""
        active = [
            device_id
            for device_id, expected in self._expected.items()
            if expected.reported is DesiredStatus.ACTIVE
        ]
        if not active:
            return True
        device_id = active[0]
        bindings = await self._until(lambda _: self._connection(device_id) is Connection.CONNECTED)
        device = self._devices.find(device_id)
        if device is None:
            console.print("[red]the device whose desired state is changed did not connect[/red]")
            return False
        demo = DesiredStateDemo(console, self._addresses.aws_endpoint_url, self._client, self._engine)
        return await demo.run(bindings[device_id], device)

    async def _start_devices(self) -> None:
        """Start the device of each binding that becomes Active, in an endless loop."""
        while True:
            for binding in (await asyncio.to_thread(self._bindings)).values():
                if binding.provisioning_status is ProvisioningStatus.ACTIVE and binding.thing_name:
                    await asyncio.to_thread(self._devices.connect, binding.device_id, binding.thing_name)
            await asyncio.sleep(_POLL_SECONDS)

    def _has_connected(self, device_id: UUID, binding: AwsThingBinding | None) -> bool:
        """Return whether a device is connected, or has ended if it is not expected to connect."""
        if device_id in self._connecting:
            return self._connection(device_id) is Connection.CONNECTED
        return self._has_ended(device_id, binding)

    def _has_ended(self, device_id: UUID, binding: AwsThingBinding | None) -> bool:
        """Return whether a device and its connection are as expected."""
        expected, status = self._expected[device_id], binding.provisioning_status if binding else None
        return status == expected.status and (
            device_id not in self._connecting or self._connection(device_id) is expected.connection
        )

    def _connection(self, device_id: UUID) -> Connection:
        device = self._devices.find(device_id)
        if device is None:
            return Connection.NONE
        if device.is_connected:
            return Connection.CONNECTED
        return Connection.REFUSED if device.is_cut_off else Connection.NONE

    async def _send(self, events: Sequence[LifecycleEvent]) -> None:
        for event in events:
            await send_event(self._client, event, self._settings.worker.task_queue)

    async def _until(
        self, reached: Callable[[dict[UUID, AwsThingBinding]], bool]
    ) -> dict[UUID, AwsThingBinding]:
        """Read the bindings until the condition holds or the timeout ends, and return them."""
        ends = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            bindings = await asyncio.to_thread(self._bindings)
            if reached(bindings) or time.monotonic() > ends:
                return bindings
            await asyncio.sleep(_POLL_SECONDS)

    async def _until_idle(self) -> None:
        """Wait for the last runs to end: a device's shadow is reported after it became Active."""
        ends = time.monotonic() + _TIMEOUT_SECONDS
        for device_id in self._expected:
            handle = self._client.get_workflow_handle(device_workflow_id(device_id))
            with suppress(TimeoutError):
                await asyncio.wait_for(handle.result(), max(0.1, ends - time.monotonic()))

    def _bindings(self) -> dict[UUID, AwsThingBinding]:
        with Session(self._engine) as session:
            found = session.exec(
                select(AwsThingBinding).where(col(AwsThingBinding.device_id).in_(list(self._expected)))
            )
            return {binding.device_id: binding for binding in found}

    @staticmethod
    def _status(bindings: dict[UUID, AwsThingBinding], device_id: UUID) -> ProvisioningStatus | None:
        binding = bindings.get(device_id)
        return binding.provisioning_status if binding else None

    async def _outcome(self, expected: Expectation, binding: AwsThingBinding | None) -> Outcome:
        device_id = expected.state.device_id
        attempts = await self._attempts(device_id)
        reported = None
        if binding and binding.thing_name:
            reported = await asyncio.to_thread(
                reported_status, self._addresses.aws_endpoint_url, binding.thing_name
            )
        return Outcome(
            expected=expected,
            binding=binding,
            reported=reported,
            attempts=sum(attempts),
            retried=sum(attempts) - len(attempts),
            connection=self._connection(device_id) if device_id in self._connecting else None,
        )

    async def _attempts(self, device_id: UUID) -> list[int]:
        """Return the number of attempts of each activity in the device's runs."""
        attempts: list[int] = []
        async for run in self._client.list_workflows(f"WorkflowId = '{device_workflow_id(device_id)}'"):
            handle = self._client.get_workflow_handle(run.id, run_id=run.run_id)
            async for event in handle.fetch_history_events():
                if event.HasField("activity_task_started_event_attributes"):
                    attempts.append(event.activity_task_started_event_attributes.attempt)  # noqa: PERF401
        return attempts

    def _compare(self, aws: Inventory, bindings: Iterable[AwsThingBinding]) -> bool:
        """Print and return whether AWS contains exactly the resources of the Active bindings."""
        active = [each for each in bindings if each.provisioning_status is ProvisioningStatus.ACTIVE]
        usable = {
            arn
            for arn, certificate in aws.certificates.items()
            if certificate.status == "ACTIVE" and certificate.policies
        }
        pairs = {(name, arn) for name, arns in aws.attachments.items() for arn in arns}
        comparisons: Sequence[tuple[str, set[Any], set[Any]]] = (
            ("Things", set(aws.things), {each.thing_name for each in active}),
            ("certificates", set(aws.certificates), {each.certificate_arn for each in active}),
            ("active with a policy", usable, {each.certificate_arn for each in active}),
            ("attached", pairs, {(each.thing_name, each.certificate_arn) for each in active}),
            ("secrets", set(aws.secrets.values()), {each.certificate_secret_arn for each in active}),
        )
        agreed = all(in_aws == recorded for _, in_aws, recorded in comparisons)
        counts = ", ".join(f"{len(in_aws)} {name}" for name, in_aws, _ in comparisons)
        colour, verdict = ("green", "they agree") if agreed else ("red", "they differ")
        self._console.print(
            f"AWS contains {counts}; the database contains {len(active)} Active bindings: "
            f"[{colour}]{verdict}[/{colour}]"
        )
        for name, in_aws, recorded in comparisons:
            for stray in in_aws ^ recorded:
                place = "only in AWS" if stray in in_aws else "only in the database"
                self._console.print(f"  {name}, {place}: {stray}", soft_wrap=True)
        return agreed


def split_at_decommission(
    events: Sequence[LifecycleEvent],
) -> tuple[list[LifecycleEvent], list[LifecycleEvent]]:
    """Return the events to send first, and those to send once the devices are connected.

    The second part begins, for each device, with the decommission that follows its provisioning: AWS can only
    end a connection that exists.
    """
    first, later = list[LifecycleEvent](), list[LifecycleEvent]()
    provisioned, waiting = set[UUID](), set[UUID]()
    for event in events:
        if event.type is LifecycleEventType.DECOMMISSIONED and event.device_id in provisioned:
            waiting.add(event.device_id)
        if event.type is LifecycleEventType.PROVISIONED:
            provisioned.add(event.device_id)
        (later if event.device_id in waiting else first).append(event)
    return first, later


def expectations(events: Sequence[LifecycleEvent]) -> dict[UUID, Expectation]:
    """Return the expected end of every device, in whatever order its events are sent."""
    states: dict[UUID, DeviceState] = {}
    provisioned = {event.device_id for event in events if event.type is LifecycleEventType.PROVISIONED}
    for event in events:
        state = states.get(event.device_id) or DeviceState.before_first_event(event)
        states[event.device_id] = state.apply(event)

    def status(state: DeviceState) -> ProvisioningStatus | None:
        if state.decommissioned and state.serial_number:
            return ProvisioningStatus.DECOMMISSIONED
        return ProvisioningStatus.ACTIVE if state.device_id in provisioned else None

    return {device_id: Expectation(state, status(state)) for device_id, state in states.items()}


def _empty(data: Path) -> None:
    """Empty the folder of an earlier demo, and refuse any other folder that is not empty.

    Raises:
        typer.BadParameter: the folder contains something else, or is in use.
        OperatorError: the folder cannot be used.
    """
    try:
        if data.exists() and any(data.iterdir()):
            if not (data / _MARKER).exists():
                raise typer.BadParameter(
                    f"{data} contains something else than a demo; choose an empty folder", param_hint="--data"
                )
            if _in_use(data / "lock"):
                raise typer.BadParameter(
                    f"a demo or a dev stack is running in {data}; stop it, or choose another folder",
                    param_hint="--data",
                )
            shutil.rmtree(data)
        data.mkdir(parents=True, exist_ok=True)
        (data / _MARKER).touch()
    except OSError as error:
        raise OperatorError(
            f"cannot keep data in {data.absolute()}: {error.strerror}; choose another data folder"
        ) from None


def _in_use(lock: Path) -> bool:
    """Return whether the embedded servers hold their lock."""
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def fleet_table(outcomes: Sequence[Outcome], workflows_url: str, *, complete: bool) -> Table:
    """Return the table of all devices.

    Args:
        outcomes: the outcome of every device, in any order.
        workflows_url: the page of the Temporal UI that lists the namespace's workflows.
        complete: print every value in full; else shortened, so that a line fits a terminal of 80 columns.
    """
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for title, short in _COLUMNS:
        shown = title if complete else short
        if shown:
            table.add_column(shown, overflow="fold")
    for outcome in sorted(outcomes, key=_by_thing):
        binding, device_id = outcome.binding, outcome.expected.state.device_id
        status = str(binding.provisioning_status) if binding else "no binding"
        if outcome.reported:
            status += f"/{outcome.reported}"
        thing_name = (binding.thing_name if binding else None) or ""
        certificate = ((binding.certificate_arn if binding else None) or "").rpartition("/")[2]
        url = f"{workflows_url}/{device_workflow_id(device_id)}"
        table.add_row(
            *((outcome.expected.state.serial_number or "",) if complete else ()),
            str(device_id) if complete else str(device_id)[:8],
            f"[red]{status}: {outcome.fault}[/red]" if outcome.fault else status,
            thing_name if complete else _shortened(thing_name),
            *((certificate,) if complete else ()),
            str(outcome.connection or ""),
            f"{outcome.attempts}, {outcome.retried} again" if outcome.retried else str(outcome.attempts),
            url if complete else f"[link={url}]open[/link]",
        )
    table.caption = workflows_url
    return table


_COLUMNS: Final = (
    ("serial", None),
    ("device", "device"),
    ("status/shadow", "status/shadow"),
    ("Thing", "Thing"),
    ("certificate", None),
    ("MQTT", "MQTT"),
    ("attempts", "tries"),
    ("Temporal UI", "UI"),
)


def _by_thing(outcome: Outcome) -> str:
    return (outcome.binding.thing_name or "") if outcome.binding else ""


def _shortened(thing_name: str) -> str:
    """Return a Thing's name without the middle of its tenant."""
    return f"{thing_name[:4]}…{thing_name[30:]}" if thing_name else ""

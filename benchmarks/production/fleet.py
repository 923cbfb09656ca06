"""The fleet: the scenario of each device, its expected result, and the platform that sends its events."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx2
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, select

from db.models import AwsThingBinding, OutboxRow
from domain.names import thing_name
from domain.outgoing_event import OutgoingEventType
from domain.provisioning_status import ProvisioningStatus
from embedded.aws_client import aws_client
from embedded.simulated_device import SimulatedDevice, desire

POLICY: Final = "production-run"
DEVICE_SECRETS_PREFIX: Final = "iot/devices/"
"""The prefix of the names of the devices' secrets. No other secret has it."""
DESIRED_STATE: Final = {"telemetry": {"intervalSeconds": 60}}
_API: Final = "/api/iot"
_POLL_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
_CALL_TIMEOUT_SECONDS: Final = 240.0
_DEVICE_POLL_SECONDS: Final = 3.0
_TENANTS: Final = 5
# The `occurredAt` of each event in seconds after the first. Events are sent in another order.
_SECONDS: Final = {
    "Provisioned": 0,
    "Activated": 10,
    "Suspended": 20,
    "Reactivated": 30,
    "Decommissioned": 40,
}


class Scenario(StrEnum):
    """The sequence of events of a device."""

    ACTIVATED = "provisioned, activated"
    SUSPENDED = "provisioned, activated, suspended"
    REACTIVATED = "provisioned, activated, suspended, reactivated"
    COMMANDED = "provisioned, activated, desired state changed"
    DECOMMISSIONED = "provisioned, activated, decommissioned"
    DECOMMISSIONED_EARLY = "decommissioned while being provisioned"
    FULL = "activated, suspended, reactivated, desired state changed, decommissioned"
    ENROLLED = "enrolled by itself"
    ENROLLED_SUSPENDED = "enrolled by itself, suspended"
    ENROLLED_DECOMMISSIONED = "enrolled by itself, decommissioned"


_SCENARIOS: Final = (
    Scenario.ENROLLED,
    Scenario.ACTIVATED,
    Scenario.COMMANDED,
    Scenario.DECOMMISSIONED,
    Scenario.REACTIVATED,
    Scenario.ENROLLED_SUSPENDED,
    Scenario.ACTIVATED,
    Scenario.COMMANDED,
    Scenario.DECOMMISSIONED,
    Scenario.SUSPENDED,
    Scenario.ENROLLED_DECOMMISSIONED,
    Scenario.ACTIVATED,
    Scenario.COMMANDED,
    Scenario.FULL,
    Scenario.REACTIVATED,
    Scenario.DECOMMISSIONED_EARLY,
    Scenario.ACTIVATED,
    Scenario.COMMANDED,
    Scenario.DECOMMISSIONED,
    Scenario.SUSPENDED,
)
"""Assigned in turn, so that every wave of the fleet has nearly all of them."""

_ENROLLED: Final = {Scenario.ENROLLED, Scenario.ENROLLED_SUSPENDED, Scenario.ENROLLED_DECOMMISSIONED}
_ENDED: Final = {
    Scenario.DECOMMISSIONED,
    Scenario.DECOMMISSIONED_EARLY,
    Scenario.FULL,
    Scenario.ENROLLED_DECOMMISSIONED,
}
_COMMANDED: Final = {Scenario.COMMANDED, Scenario.FULL}
_SUSPENDED: Final = {Scenario.SUSPENDED, Scenario.ENROLLED_SUSPENDED}


@dataclass
class FleetDevice:
    """One device and its expected final state."""

    number: int
    scenario: Scenario
    tenant_id: UUID | None
    first_event_at: datetime
    device_id: UUID | None = None
    """None until the bridge has assigned an id to a device that enrols by itself."""
    has_secret: bool = True
    """False for a device that enrols by itself and keeps its own key."""
    failed_once: bool = False
    commanded_by_operator: bool = False

    @property
    def serial_number(self) -> str:
        """The serial number."""
        return f"RUN-{self.number:05}"

    @property
    def thing_name(self) -> str:
        """The name of its Thing."""
        return thing_name(self.tenant_id, self.serial_number)

    @property
    def secret_name(self) -> str:
        """The name of the secret with its key, by the default of the bridge."""
        return f"{DEVICE_SECRETS_PREFIX}{self.thing_name}/key"

    @property
    def is_enrolled(self) -> bool:
        """Whether the device enrols by fleet provisioning."""
        return self.scenario in _ENROLLED

    @property
    def is_decommissioned(self) -> bool:
        """Whether the device is decommissioned at the end, so that no resource may be left."""
        return self.scenario in _ENDED

    @property
    def reports(self) -> str:
        """The status that its shadow must report, unless it is decommissioned."""
        return "Suspended" if self.scenario in _SUSPENDED else "Active"

    @property
    def expected_events(self) -> Counter[str]:
        """The number of events of each type that the bridge must publish for the device."""
        types = Counter[str]()
        if self.scenario is not Scenario.DECOMMISSIONED_EARLY:
            types[OutgoingEventType.PROVISIONED] += 1
        if self.scenario in _COMMANDED:
            types[OutgoingEventType.DESIRED_STATE_CHANGED] += 1
            types[OutgoingEventType.COMMAND_COMPLETED] += 1
        if self.commanded_by_operator:
            types[OutgoingEventType.COMMAND_COMPLETED] += 1
        if self.failed_once:
            types[OutgoingEventType.PROVISIONING_FAILED] += 1
        if self.is_decommissioned:
            types[OutgoingEventType.DECOMMISSIONED] += 1
        return types

    @property
    def allowed_events(self) -> Counter[str]:
        """Further events that may be published: a device decommissioned early may have been Active before."""
        return Counter(
            {OutgoingEventType.PROVISIONED: 1} if self.scenario is Scenario.DECOMMISSIONED_EARLY else {}
        )

    def event(self, kind: str) -> dict[str, Any]:
        """Return a lifecycle event of the platform. A repeated call returns the same event."""
        assert self.device_id is not None  # noqa: S101  # set before the scenario sends events
        occurred_at = self.first_event_at + timedelta(seconds=_SECONDS[kind])
        return {
            "eventId": str(UUID(int=(self.device_id.int + _SECONDS[kind]) % 2**128)),
            "type": f"Device{kind}Event",
            "deviceId": str(self.device_id),
            "tenantId": str(self.tenant_id) if self.tenant_id else None,
            "serialNumber": self.serial_number,
            "occurredAt": occurred_at.isoformat(),
        }


def make_fleet(count: int, first_number: int = 0) -> list[FleetDevice]:
    """Create devices of several tenants and of no tenant."""
    tenants: list[UUID | None] = [None, *(uuid4() for _ in range(_TENANTS - 1))]
    first_event_at = datetime.now(UTC) - timedelta(hours=1)
    fleet = []
    for number in range(count):
        scenario = _SCENARIOS[number % len(_SCENARIOS)]
        device = FleetDevice(
            number=first_number + number,
            scenario=scenario,
            tenant_id=tenants[number % len(tenants)],
            first_event_at=first_event_at,
            device_id=None if scenario in _ENROLLED else uuid4(),
            has_secret=scenario not in _ENROLLED or number % 3 > 0,
        )
        fleet.append(device)
    return fleet


@dataclass
class Records:
    """A snapshot of the bridge's database."""

    statuses: dict[UUID, ProvisioningStatus] = field(default_factory=dict)
    """The status of each device's newest binding."""
    commands_ended: set[UUID] = field(default_factory=set)
    """The devices with at least one completed command."""
    unpublished: int = 0


class Watcher:
    """Polls the bridge's database and wakes the tasks that wait for a condition."""

    def __init__(self, engine: Engine) -> None:
        self.records = Records()
        self._engine = engine
        self._polled = asyncio.Condition()

    async def run(self) -> None:
        """Poll in an endless loop, also while the database is unavailable."""
        while True:
            try:
                self.records = await asyncio.to_thread(self._read)
            except DBAPIError:
                pass
            else:
                async with self._polled:
                    self._polled.notify_all()
            await asyncio.sleep(_POLL_SECONDS)

    async def until(self, condition: Callable[[Records], bool]) -> None:
        """Wait until the condition is true for the records."""
        async with self._polled:
            await self._polled.wait_for(lambda: condition(self.records))

    async def wait_for_status(self, device: FleetDevice, status: ProvisioningStatus) -> None:
        """Wait until the device's binding has this status."""
        await self.until(lambda records: records.statuses.get(device.device_id or UUID(int=0)) is status)

    def _read(self) -> Records:
        with Session(self._engine) as session:
            bindings = select(AwsThingBinding.device_id, AwsThingBinding.provisioning_status)
            statuses = session.exec(bindings.order_by(col(AwsThingBinding.created_at))).all()
            ended = select(OutboxRow.device_id).where(OutboxRow.type == OutgoingEventType.COMMAND_COMPLETED)
            unpublished = select(OutboxRow.id).where(col(OutboxRow.published_at).is_(None))
            return Records(
                statuses={device_id: ProvisioningStatus(status) for device_id, status in statuses},
                commands_ended={device_id for device_id in session.exec(ended) if device_id},
                unpublished=len(session.exec(unpublished).all()),
            )


class HttpApi:
    """A client of the bridge's API that retries a request until it succeeds or the time is over."""

    def __init__(self, base_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        # The server is local: no proxy of the environment.
        self.http = httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=30, trust_env=False)
        self.retries = 0

    async def call(self, method: str, path: str, body: Any = None, *, expected: int = 200) -> dict[str, Any]:
        """Send a request, retry it after connection errors, 429 and 5xx, and return the response body.

        Raises:
            RuntimeError: the response has another status than expected, or there was none in time.
        """
        ends = asyncio.get_running_loop().time() + _CALL_TIMEOUT_SECONDS
        while True:
            try:
                response = await self.http.request(method, f"{_API}{path}", json=body)
                if response.status_code < 500 and response.status_code != 429:
                    break
                reason = f"{response.status_code}: {response.text}"
            except httpx2.HTTPError as error:
                reason = repr(error)
            if asyncio.get_running_loop().time() > ends:
                raise RuntimeError(f"{method} {path} got no usable response: {reason}")
            self.retries += 1
            await asyncio.sleep(_RETRY_SECONDS)
        if response.status_code != expected:
            raise RuntimeError(f"{method} {path} returned {response.status_code}: {response.text}")
        content: dict[str, Any] = response.json()
        return content

    async def post_event(self, device: FleetDevice, kind: str) -> None:
        """Post a lifecycle event of a device."""
        await self.call("POST", "/device-events", device.event(kind), expected=202)


class FleetProvisioning:
    """The steps of AWS and of the Lambda functions in the enrolment of a device."""

    def __init__(self, aws_endpoint_url: str, api: HttpApi) -> None:
        # One attempt per call: a retry could leave a certificate that belongs to no device.
        self._iot = aws_client("iot", aws_endpoint_url, attempts=1)
        self._secrets = aws_client("secretsmanager", aws_endpoint_url, attempts=1)
        self._api = api

    async def enrol(self, device: FleetDevice) -> None:
        """Verify the device, create its AWS resources and register it. The bridge assigns its id."""
        body = {"serialNumber": device.serial_number, "tenantId": _text(device.tenant_id)}
        allowed = await self._api.call("POST", "/fleet-provisioning/verify", body)
        if not allowed["allowProvisioning"]:
            raise RuntimeError(f"/verify does not allow {device.serial_number}: {allowed}")
        body |= await asyncio.to_thread(self._create_resources, device)
        # Twice, as by a Lambda function that is retried.
        first = await self._api.call("POST", "/fleet-provisioning/registered", body)
        second = await self._api.call("POST", "/fleet-provisioning/registered", body)
        if second["deviceId"] != first["deviceId"] or not second["alreadyProvisioned"]:
            raise RuntimeError(f"{device.serial_number}: /registered returned {first}, then {second}")
        device.device_id = UUID(first["deviceId"])
        # The device is Active since its enrolment, so its next events must be later.
        device.first_event_at = datetime.now(UTC)

    async def is_denied(self, device: FleetDevice) -> bool:
        """Return whether `/verify` denies the serial number of the device."""
        body = {"serialNumber": device.serial_number, "tenantId": _text(device.tenant_id)}
        denied = await self._api.call("POST", "/fleet-provisioning/verify", body, expected=403)
        return denied["allowProvisioning"] is False

    def _create_resources(self, device: FleetDevice) -> dict[str, Any]:
        thing = self._iot.create_thing(thingName=device.thing_name)
        created = self._iot.create_keys_and_certificate(setAsActive=True)
        arn = created["certificateArn"]
        self._iot.attach_policy(policyName=POLICY, target=arn)
        self._iot.attach_thing_principal(thingName=device.thing_name, principal=arn)
        members = {
            "thingName": device.thing_name,
            "thingArn": thing["thingArn"],
            "certificateArn": arn,
            "model": "MX-3",
            "firmwareVersion": "1.0",
        }
        if device.has_secret:
            secret = self._secrets.create_secret(
                Name=device.secret_name, SecretString=created["keyPair"]["PrivateKey"]
            )
            members["certificateSecretArn"] = secret["ARN"]
        return members


class Platform:
    """Runs the scenarios: sends the events of the fleet, and executes the jobs of the devices."""

    def __init__(
        self,
        watcher: Watcher,
        api: HttpApi,
        provisioning: FleetProvisioning,
        send_file: Callable[[Path], Coroutine[Any, Any, None]],
        folder: Path,
        aws_endpoint_url: str,
    ) -> None:
        """Create the platform.

        Args:
            watcher: polls the bridge's database.
            api: a client with an operator's key.
            provisioning: enrols devices.
            send_file: sends a file of events with `thingbridge send`.
            folder: the folder for these files.
            aws_endpoint_url: the AWS endpoint of devices and applications.
        """
        self._watcher = watcher
        self._api = api
        self._provisioning = provisioning
        self._send_file = send_file
        self._folder = folder
        self._endpoint = aws_endpoint_url
        self.finished = 0
        """The number of devices that have finished their scenario."""

    async def run_wave(self, wave: Sequence[FleetDevice]) -> None:
        """Run the scenarios of some devices concurrently."""
        sent_by_file = [device for device in wave if not device.is_enrolled and device.number % 2]
        file = self._folder / f"wave-{wave[0].number:05}.jsonl"
        async with asyncio.TaskGroup() as group:
            if sent_by_file:
                file.write_text("".join(f"{json.dumps(event)}\n" for event in _shuffled_events(sent_by_file)))
                group.create_task(self._send_file(file))
            for device in wave:
                group.create_task(self._run_scenario(device, is_sent_by_file=device in sent_by_file))

    async def _run_scenario(self, device: FleetDevice, *, is_sent_by_file: bool) -> None:
        if device.is_enrolled:
            await self._provisioning.enrol(device)
        elif not is_sent_by_file:
            await self._api.post_event(device, "Provisioned")
            await self._api.post_event(device, "Activated")
        match device.scenario:
            case Scenario.SUSPENDED | Scenario.ENROLLED_SUSPENDED:
                await self._api.post_event(device, "Suspended")
            case Scenario.REACTIVATED:
                # The later event first: the bridge orders them by `occurredAt`.
                await self._api.post_event(device, "Reactivated")
                await self._api.post_event(device, "Suspended")
            case Scenario.COMMANDED:
                await self._change_desired_state(device)
            case Scenario.DECOMMISSIONED | Scenario.ENROLLED_DECOMMISSIONED:
                await self._watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
                await self._api.post_event(device, "Decommissioned")
            case Scenario.DECOMMISSIONED_EARLY:
                await self._watcher.until(lambda records: device.device_id in records.statuses)
                await self._api.post_event(device, "Decommissioned")
            case Scenario.FULL:
                await self._api.post_event(device, "Suspended")
                await self._api.post_event(device, "Reactivated")
                await self._change_desired_state(device)
                await self._api.post_event(device, "Decommissioned")
        ends = ProvisioningStatus.DECOMMISSIONED if device.is_decommissioned else ProvisioningStatus.ACTIVE
        await self._watcher.wait_for_status(device, ends)
        self.finished += 1

    async def _change_desired_state(self, device: FleetDevice) -> None:
        """Change the desired state of an Active device, and execute the resulting job as the device."""
        await self._watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
        await _retry_aws_call(lambda: desire(self._endpoint, device.thing_name, DESIRED_STATE))
        simulated = SimulatedDevice(self._endpoint, device.thing_name)
        await poll_until(lambda: _retry_aws_call(simulated.execute_next_job), pause=_DEVICE_POLL_SECONDS)
        await self._watcher.until(lambda records: device.device_id in records.commands_ended)


async def poll_until(condition: Callable[[], Awaitable[Any]], pause: float) -> None:
    """Poll a condition, with this pause in seconds, until its result is true."""
    while not await condition():  # noqa: ASYNC110  # another process decides the result
        await asyncio.sleep(pause)


async def _retry_aws_call(call: Callable[[], Any]) -> Any:
    """Retry a call to AWS until it succeeds, as devices and applications do."""
    while True:
        try:
            return await asyncio.to_thread(call)
        except (ClientError, BotoCoreError):
            await asyncio.sleep(_RETRY_SECONDS)


def _shuffled_events(devices: Sequence[FleetDevice]) -> list[dict[str, Any]]:
    """Return the first events of devices, shuffled, and some of them twice."""
    events = [device.event(kind) for device in devices for kind in ("Provisioned", "Activated")]
    events += events[::5]
    random.Random(devices[0].number).shuffle(events)  # noqa: S311  # not used for a secret
    return events


def _text(tenant_id: UUID | None) -> str | None:
    return str(tenant_id) if tenant_id else None

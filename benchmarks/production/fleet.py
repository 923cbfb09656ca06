"""The fleet: what each device goes through, who tells the bridge of it, and how it must end."""

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
from embedded.emulator.client import aws_client
from embedded.simulated_device import SimulatedDevice, desire

POLICY: Final = "production-run"
SECRETS: Final = "iot/devices/"
"""How the names of the devices' secrets begin, and of no others."""
DESIRED: Final = {"telemetry": {"intervalSeconds": 60}}
_API: Final = "/api/iot"
_LOOK_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 240.0
_DEVICE_LOOK_SECONDS: Final = 3.0
_TENANTS: Final = 5
# When the events of a life occurred, in seconds after its first; they are sent in another order.
_SECONDS: Final = {
    "Provisioned": 0,
    "Activated": 10,
    "Suspended": 20,
    "Reactivated": 30,
    "Decommissioned": 40,
}


class Life(StrEnum):
    """What a device goes through."""

    STRAIGHT = "provisioned, activated"
    SUSPENDED = "provisioned, activated, suspended"
    REACTIVATED = "provisioned, activated, suspended, reactivated"
    COMMANDED = "provisioned, activated, another state desired"
    DECOMMISSIONED = "provisioned, activated, decommissioned"
    OVERTAKEN = "decommissioned while being provisioned"
    WHOLE = "all of it, decommissioned at last"
    ENROLLED = "enrolled by itself"
    ENROLLED_SUSPENDED = "enrolled by itself, suspended"
    ENROLLED_DECOMMISSIONED = "enrolled by itself, decommissioned"


_LIVES: Final = (
    Life.ENROLLED,
    Life.STRAIGHT,
    Life.COMMANDED,
    Life.DECOMMISSIONED,
    Life.REACTIVATED,
    Life.ENROLLED_SUSPENDED,
    Life.STRAIGHT,
    Life.COMMANDED,
    Life.DECOMMISSIONED,
    Life.SUSPENDED,
    Life.ENROLLED_DECOMMISSIONED,
    Life.STRAIGHT,
    Life.COMMANDED,
    Life.WHOLE,
    Life.REACTIVATED,
    Life.OVERTAKEN,
    Life.STRAIGHT,
    Life.COMMANDED,
    Life.DECOMMISSIONED,
    Life.SUSPENDED,
)
"""Given out in turn, so that every wave of the fleet has nearly all of them."""

_ENROLLED: Final = {Life.ENROLLED, Life.ENROLLED_SUSPENDED, Life.ENROLLED_DECOMMISSIONED}
_ENDED: Final = {Life.DECOMMISSIONED, Life.OVERTAKEN, Life.WHOLE, Life.ENROLLED_DECOMMISSIONED}
_COMMANDED: Final = {Life.COMMANDED, Life.WHOLE}
_SUSPENDED: Final = {Life.SUSPENDED, Life.ENROLLED_SUSPENDED}


@dataclass
class FleetDevice:
    """One device, and how it must end."""

    number: int
    life: Life
    tenant_id: UUID | None
    born: datetime
    device_id: UUID | None = None
    """None until the bridge has named a device that enrols by itself."""
    has_secret: bool = True
    """A device that enrols by itself may keep its key to itself."""
    failed_first: bool = False
    commanded_by_hand: bool = False

    @property
    def serial_number(self) -> str:
        """Its serial number."""
        return f"RUN-{self.number:05}"

    @property
    def thing_name(self) -> str:
        """Its Thing's name."""
        return thing_name(self.tenant_id, self.serial_number)

    @property
    def secret_name(self) -> str:
        """The name of the secret with its key, as the bridge calls it by default."""
        return f"{SECRETS}{self.thing_name}/key"

    @property
    def is_enrolled(self) -> bool:
        """Whether it came by fleet provisioning."""
        return self.life in _ENROLLED

    @property
    def is_decommissioned(self) -> bool:
        """Whether nothing may be left of it."""
        return self.life in _ENDED

    @property
    def reports(self) -> str:
        """The status that its shadow must report, while it lives."""
        return "Suspended" if self.life in _SUSPENDED else "Active"

    @property
    def must_be_told(self) -> Counter[str]:
        """How often each type of event is told of it."""
        types = Counter[str]()
        if self.life is not Life.OVERTAKEN:
            types[OutgoingEventType.PROVISIONED] += 1
        if self.life in _COMMANDED:
            types[OutgoingEventType.DESIRED_STATE_CHANGED] += 1
            types[OutgoingEventType.COMMAND_COMPLETED] += 1
        if self.commanded_by_hand:
            types[OutgoingEventType.COMMAND_COMPLETED] += 1
        if self.failed_first:
            types[OutgoingEventType.PROVISIONING_FAILED] += 1
        if self.is_decommissioned:
            types[OutgoingEventType.DECOMMISSIONED] += 1
        return types

    @property
    def may_be_told(self) -> Counter[str]:
        """What may be told beside: an overtaken device may have got as far as Active before."""
        return Counter({OutgoingEventType.PROVISIONED: 1} if self.life is Life.OVERTAKEN else {})

    def event(self, kind: str) -> dict[str, Any]:
        """A lifecycle event of the platform's, the same whenever it is sent."""
        assert self.device_id is not None  # noqa: S101  # its life waits for that
        born = self.born + timedelta(seconds=_SECONDS[kind])
        return {
            "eventId": str(UUID(int=(self.device_id.int + _SECONDS[kind]) % 2**128)),
            "type": f"Device{kind}Event",
            "deviceId": str(self.device_id),
            "tenantId": str(self.tenant_id) if self.tenant_id else None,
            "serialNumber": self.serial_number,
            "occurredAt": born.isoformat(),
        }


def make_fleet(count: int, first_number: int = 0) -> list[FleetDevice]:
    """Devices of several tenants, and of none."""
    tenants: list[UUID | None] = [None, *(uuid4() for _ in range(_TENANTS - 1))]
    born = datetime.now(UTC) - timedelta(hours=1)
    fleet = []
    for number in range(count):
        life = _LIVES[number % len(_LIVES)]
        device = FleetDevice(
            number=first_number + number,
            life=life,
            tenant_id=tenants[number % len(tenants)],
            born=born,
            device_id=None if life in _ENROLLED else uuid4(),
            has_secret=life not in _ENROLLED or number % 3 > 0,
        )
        fleet.append(device)
    return fleet


@dataclass
class Records:
    """What the bridge's database said when it was last looked at."""

    statuses: dict[UUID, ProvisioningStatus] = field(default_factory=dict)
    """Of each device's newest binding."""
    commands_ended: set[UUID] = field(default_factory=set)
    """Devices a command of which has ended."""
    unpublished: int = 0


class Watcher:
    """Looks at the bridge's database time and again, and wakes whoever waits for what is there."""

    def __init__(self, engine: Engine) -> None:
        self.records = Records()
        self._engine = engine
        self._looked = asyncio.Condition()

    async def run(self) -> None:
        """Look, for ever; a database that is away is looked at again."""
        while True:
            try:
                self.records = await asyncio.to_thread(self._look)
            except DBAPIError:
                pass
            else:
                async with self._looked:
                    self._looked.notify_all()
            await asyncio.sleep(_LOOK_SECONDS)

    async def until(self, so: Callable[[Records], bool]) -> None:
        """Return once the records say so."""
        async with self._looked:
            await self._looked.wait_for(lambda: so(self.records))

    async def wait_for_status(self, device: FleetDevice, status: ProvisioningStatus) -> None:
        """Return once the device's binding has a status."""
        await self.until(lambda records: records.statuses.get(device.device_id or UUID(int=0)) is status)

    def _look(self) -> Records:
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
    """The bridge's HTTP doors as a patient client takes them: what was not answered is sent again."""

    def __init__(self, base_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        # No proxy of the environment's: it is on this machine.
        self.http = httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=30, trust_env=False)
        self.sent_again = 0

    async def call(self, method: str, path: str, body: Any = None, *, answer: int = 200) -> dict[str, Any]:
        """Call until there is an answer that is no fault of the server's.

        Raises:
            RuntimeError: it is not the one expected.
        """
        ends = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                answered = await self.http.request(method, f"{_API}{path}", json=body)
                if answered.status_code < 500 and answered.status_code != 429:
                    break
                why = f"{answered.status_code}: {answered.text}"
            except httpx2.HTTPError as error:
                why = repr(error)
            if asyncio.get_running_loop().time() > ends:
                raise RuntimeError(f"{method} {path} is not answered: {why}")
            self.sent_again += 1
            await asyncio.sleep(_AGAIN_SECONDS)
        if answered.status_code != answer:
            raise RuntimeError(f"{method} {path} answers {answered.status_code}: {answered.text}")
        told: dict[str, Any] = answered.json()
        return told

    async def tell(self, device: FleetDevice, kind: str) -> None:
        """Tell of a device's life."""
        await self.call("POST", "/device-events", device.event(kind), answer=202)


class FleetProvisioning:
    """AWS's part and the Lambda functions' in a device's enrolling itself."""

    def __init__(self, aws_endpoint_url: str, doors: HttpApi) -> None:
        # Once each: a certificate that was made and not waited for would be nobody's.
        self._iot = aws_client("iot", aws_endpoint_url, attempts=1)
        self._secrets = aws_client("secretsmanager", aws_endpoint_url, attempts=1)
        self._doors = doors

    async def enrol(self, device: FleetDevice) -> None:
        """Ask whether the device may, have AWS make what is its, and tell the bridge; it names the device."""
        asked = {"serialNumber": device.serial_number, "tenantId": _text(device.tenant_id)}
        allowed = await self._doors.call("POST", "/fleet-provisioning/verify", asked)
        if not allowed["allowProvisioning"]:
            raise RuntimeError(f"{device.serial_number} may not enrol: {allowed}")
        made = await asyncio.to_thread(self._make, device)
        # Twice, as a Lambda that is retried does.
        told = await self._doors.call("POST", "/fleet-provisioning/registered", asked | made)
        again = await self._doors.call("POST", "/fleet-provisioning/registered", asked | made)
        if again["deviceId"] != told["deviceId"] or not again["alreadyProvisioned"]:
            raise RuntimeError(f"{device.serial_number}: /registered answers {told}, then {again}")
        device.device_id = UUID(told["deviceId"])
        # It has been Active since it enrolled: what is told of it next came after that.
        device.born = datetime.now(UTC)

    async def is_denied(self, device: FleetDevice) -> bool:
        """Whether a device's serial number may not enrol any more."""
        asked = {"serialNumber": device.serial_number, "tenantId": _text(device.tenant_id)}
        denied = await self._doors.call("POST", "/fleet-provisioning/verify", asked, answer=403)
        return denied["allowProvisioning"] is False

    def _make(self, device: FleetDevice) -> dict[str, Any]:
        thing = self._iot.create_thing(thingName=device.thing_name)
        made = self._iot.create_keys_and_certificate(setAsActive=True)
        arn = made["certificateArn"]
        self._iot.attach_policy(policyName=POLICY, target=arn)
        self._iot.attach_thing_principal(thingName=device.thing_name, principal=arn)
        told = {
            "thingName": device.thing_name,
            "thingArn": thing["thingArn"],
            "certificateArn": arn,
            "model": "MX-3",
            "firmwareVersion": "1.0",
        }
        if device.has_secret:
            secret = self._secrets.create_secret(
                Name=device.secret_name, SecretString=made["keyPair"]["PrivateKey"]
            )
            told["certificateSecretArn"] = secret["ARN"]
        return told


class Platform:
    """Sends the fleet through its lives; the devices take their jobs."""

    def __init__(
        self,
        watcher: Watcher,
        doors: HttpApi,
        provisioning: FleetProvisioning,
        send_file: Callable[[Path], Coroutine[Any, Any, None]],
        folder: Path,
        aws_endpoint_url: str,
    ) -> None:
        """Take what is needed.

        Args:
            watcher: where the bridge stands.
            doors: HTTP, with an operator's key.
            provisioning: how devices enrol.
            send_file: has `thingbridge send` send a file of events.
            folder: where such files are written.
            aws_endpoint_url: where devices and applications reach AWS.
        """
        self._watcher = watcher
        self._doors = doors
        self._provisioning = provisioning
        self._send_file = send_file
        self._folder = folder
        self._endpoint = aws_endpoint_url
        self.ended = 0
        """Devices whose life is over, as far as it goes."""

    async def live(self, wave: Sequence[FleetDevice]) -> None:
        """Have some devices live their lives, all at once."""
        by_file = [device for device in wave if not device.is_enrolled and device.number % 2]
        file = self._folder / f"wave-{wave[0].number:05}.jsonl"
        async with asyncio.TaskGroup() as group:
            if by_file:
                file.write_text("".join(f"{json.dumps(event)}\n" for event in _out_of_order(by_file)))
                group.create_task(self._send_file(file))
            for device in wave:
                group.create_task(self._live(device, is_sent=device in by_file))

    async def _live(self, device: FleetDevice, *, is_sent: bool) -> None:
        if device.is_enrolled:
            await self._provisioning.enrol(device)
        elif not is_sent:
            await self._doors.tell(device, "Provisioned")
            await self._doors.tell(device, "Activated")
        match device.life:
            case Life.SUSPENDED | Life.ENROLLED_SUSPENDED:
                await self._doors.tell(device, "Suspended")
            case Life.REACTIVATED:
                # The later one first: the bridge goes by when they occurred.
                await self._doors.tell(device, "Reactivated")
                await self._doors.tell(device, "Suspended")
            case Life.COMMANDED:
                await self._desire(device)
            case Life.DECOMMISSIONED | Life.ENROLLED_DECOMMISSIONED:
                await self._watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
                await self._doors.tell(device, "Decommissioned")
            case Life.OVERTAKEN:
                await self._watcher.until(lambda records: device.device_id in records.statuses)
                await self._doors.tell(device, "Decommissioned")
            case Life.WHOLE:
                await self._doors.tell(device, "Suspended")
                await self._doors.tell(device, "Reactivated")
                await self._desire(device)
                await self._doors.tell(device, "Decommissioned")
        ends = ProvisioningStatus.DECOMMISSIONED if device.is_decommissioned else ProvisioningStatus.ACTIVE
        await self._watcher.wait_for_status(device, ends)
        self.ended += 1

    async def _desire(self, device: FleetDevice) -> None:
        """Ask another state of the device once it is there, and be the device that takes the job."""
        await self._watcher.wait_for_status(device, ProvisioningStatus.ACTIVE)
        await _until_answered(lambda: desire(self._endpoint, device.thing_name, DESIRED))
        simulated = SimulatedDevice(self._endpoint, device.thing_name)
        await again_until(lambda: _until_answered(simulated.take_one), pause=_DEVICE_LOOK_SECONDS)
        await self._watcher.until(lambda records: device.device_id in records.commands_ended)


async def again_until(reached: Callable[[], Awaitable[Any]], pause: float) -> None:
    """Ask again and again, with so many seconds between, until the answer is yes."""
    while not await reached():  # noqa: ASYNC110  # what is asked is another process
        await asyncio.sleep(pause)


async def _until_answered(call: Callable[[], Any]) -> Any:
    """Call AWS until it answers, as devices and applications do."""
    while True:
        try:
            return await asyncio.to_thread(call)
        except (ClientError, BotoCoreError):
            await asyncio.sleep(_AGAIN_SECONDS)


def _out_of_order(devices: Sequence[FleetDevice]) -> list[dict[str, Any]]:
    """The first events of devices, shuffled, and some of them twice."""
    events = [device.event(kind) for device in devices for kind in ("Provisioned", "Activated")]
    events += events[::5]
    random.Random(devices[0].number).shuffle(events)  # noqa: S311  # no secret
    return events


def _text(tenant_id: UUID | None) -> str | None:
    return str(tenant_id) if tenant_id else None

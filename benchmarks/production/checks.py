"""What must hold of a production once its load is over: looked at from outside, in all that it left."""

import asyncio
import json
import re
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from google.protobuf.json_format import MessageToDict
from jsonschema import Draft202012Validator
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from benchmarks.production.fleet import POLICY, SECRETS, FleetDevice
from db.models import AwsThingBinding, BindingTransition, OutboxRow
from domain.names import OUTBOX_PUBLISHER, tenant_key
from domain.outgoing_event import OutgoingEventType
from domain.provisioning_status import ProvisioningStatus
from embedded.emulator.client import aws_client
from embedded.inventory import Inventory, reported_status, take_inventory

_SCHEMAS: Final = Path(__file__).parent.parent.parent / "docs" / "events"
# Written out: an id that a consumer has kept may not change with the code.
_EVENT_IDS: Final = UUID("6c0d6f2e-6b0f-5b62-9a55-0c1f0a7f6f10")
_DISTINCTION: Final[Mapping[str, str]] = {
    OutgoingEventType.PROVISIONED: "bindingId",
    OutgoingEventType.DECOMMISSIONED: "bindingId",
    OutgoingEventType.DESIRED_STATE_CHANGED: "shadowVersion",
    OutgoingEventType.COMMAND_COMPLETED: "jobId",
}
"""The field of `data` that, with type and device, makes an event one."""
_LOST_WITHIN: Final = timedelta(seconds=20)
"""A call that a worker did not live to hear the answer of is answered within so long, before or after."""
_THREADS: Final = 8
_HISTORIES_AT_ONCE: Final = 16
_PROBE: Final = 32
_BASE64_RUN: Final = re.compile(rf"[A-Za-z0-9+/=]{{{_PROBE},}}")


@dataclass
class Finding:
    """One thing that must hold: how much was looked at, and where it does not."""

    what: str
    looked_at: int = 0
    violations: list[str] = field(default_factory=list)

    def require(self, so: bool, otherwise: str) -> None:
        """Count one more, and note where it does not hold."""
        self.looked_at += 1
        if not so:
            self.violations.append(otherwise)


@dataclass(frozen=True)
class Delivery:
    """An event as the sink was given it, as often as it was."""

    headers: Mapping[str, str]
    body: str
    fault: str | None

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        event: dict[str, Any] = json.loads(self.body)
        return event


def read_deliveries(file: Path) -> list[Delivery]:
    """All that the receiver wrote down, in the order it came; a line torn by a kill was never taken."""
    deliveries = []
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            told = json.loads(line)
            deliveries.append(Delivery(told["headers"], told["body"], told["fault"]))
    return deliveries


# Events


def check_events(
    fleet: Sequence[FleetDevice], deliveries: Sequence[Delivery], engine: Engine
) -> Iterator[Finding]:
    """No event is lost, each is told in its device's order, and each is what it was said to be."""
    with Session(engine) as session:
        rows = session.exec(
            select(OutboxRow).order_by(col(OutboxRow.device_id), col(OutboxRow.sequence))
        ).all()
    first: dict[str, dict[str, Any]] = {}
    bodies: dict[str, set[str]] = defaultdict(set)
    for delivery in deliveries:
        if delivery.fault is None:
            event = delivery.event
            first.setdefault(event["id"], event)
            bodies[event["id"]].add(delivery.body)

    yield _expected_types(fleet, first.values())
    yield _all_delivered(rows, first)
    yield _in_order(rows, first.values())
    yield _ids(first, bodies)
    yield _signatures(deliveries)
    yield _valid(first.values())


def _expected_types(fleet: Sequence[FleetDevice], events: Iterable[dict[str, Any]]) -> Finding:
    found = Finding("every event that the fleet's lives call for was delivered, and no other")
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        told[event.get("subject", "")][event["type"]] += 1
    for device in fleet:
        types = told.pop(str(device.device_id), Counter())
        missing, beside = device.must_be_told - types, types - device.must_be_told - device.may_be_told
        looked_at = sum(device.must_be_told.values())
        found.looked_at += looked_at
        if missing or beside:
            found.violations.append(f"{_of(device)}: missing {dict(missing)}, beside {dict(beside)}")
    found.violations += [f"{subject}: is of no device of the fleet" for subject in told]
    return found


def _all_delivered(rows: Sequence[OutboxRow], first: Mapping[str, Any]) -> Finding:
    found = Finding("every row of the outbox was delivered, and is marked as sent")
    for row in rows:
        found.require(
            str(row.event_id) in first and row.published_at is not None,
            f"{row.type} {row.event_id}: delivered {str(row.event_id) in first}, sent at {row.published_at}",
        )
    known = {str(row.event_id) for row in rows}
    found.violations += [
        f"{event_id}: delivered, but in no row" for event_id in first if event_id not in known
    ]
    return found


def _in_order(rows: Sequence[OutboxRow], events: Iterable[dict[str, Any]]) -> Finding:
    found = Finding("each device's events came in order, by their first delivery, without a gap")
    came: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if "subject" in event:
            came[event["subject"]].append(int(event["sequence"]))
    for device_id in {str(row.device_id) for row in rows if row.device_id}:
        sequence = came.get(device_id, [])
        found.require(
            sequence == list(range(1, len(sequence) + 1)) and bool(sequence),
            f"{device_id}: came as {sequence}",
        )
    return found


def _ids(first: Mapping[str, dict[str, Any]], bodies: Mapping[str, set[str]]) -> Finding:
    found = Finding("each id is the one its event must have, and a repeat is the same to the letter")
    for event_id, event in first.items():
        found.require(
            len(bodies[event_id]) == 1, f"{event_id}: was sent with {len(bodies[event_id])} contents"
        )
        if (distinction := _DISTINCTION.get(event["type"])) is not None:
            name = f"{event['type']}/{event['data']['deviceId']}/{event['data'][distinction]}"
            if str(uuid5(_EVENT_IDS, name)) != event_id:
                found.violations.append(f"{event_id}: is not that of {name}")
    return found


def _signatures(deliveries: Sequence[Delivery]) -> Finding:
    found = Finding("each delivery was signed, and its webhook-id is its event's")
    for delivery in deliveries:
        found.require(delivery.fault is None, f"{delivery.headers.get('webhook-id')}: {delivery.fault}")
        if delivery.fault is None and delivery.headers["webhook-id"] != delivery.event["id"]:
            found.violations.append(f"{delivery.event['id']}: webhook-id {delivery.headers['webhook-id']}")
    return found


def _valid(events: Iterable[dict[str, Any]]) -> Finding:
    found = Finding("each event is as its schema in docs/events says")
    for event in events:
        error = next(iter(_validator(event["type"]).iter_errors(event)), None)
        found.require(error is None, f"{event['id']}: {error.message if error else ''}")
    return found


@cache
def _validator(event_type: str) -> Draft202012Validator:
    schema = json.loads((_SCHEMAS / f"{event_type}.schema.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


# Bindings and AWS


def check_rows(fleet: Sequence[FleetDevice], engine: Engine) -> Iterator[Finding]:
    """Each device has the one binding it must have, come by by legal steps."""
    with Session(engine) as session:
        bindings = session.exec(select(AwsThingBinding)).all()
        transitions = session.exec(select(BindingTransition).order_by(col(BindingTransition.id))).all()
    of_device: dict[UUID, list[AwsThingBinding]] = defaultdict(list)
    for binding in bindings:
        of_device[binding.device_id].append(binding)

    rows = Finding("each device has one binding: Active with its ARNs, or Decommissioned and deleted")
    for device in fleet:
        own = of_device.pop(device.device_id, []) if device.device_id else []
        rows.require(len(own) == 1 and _is_as_it_must_be(device, own[0]), f"{_of(device)}: {_shown(own)}")
    rows.violations += [f"{device_id}: a binding of no device of the fleet" for device_id in of_device]
    yield rows

    chains = Finding("the transitions of each binding are a legal chain that ends where it stands")
    of_binding: dict[UUID, list[BindingTransition]] = defaultdict(list)
    for transition in transitions:
        of_binding[transition.binding_id].append(transition)
    for binding in bindings:
        chain = of_binding[binding.id]
        words = " -> ".join([str(chain[0].from_status) if chain else "", *(each.to_status for each in chain)])
        chains.require(_is_legal(chain, binding), f"{binding.device_id}: {words}")
    yield chains


def _is_as_it_must_be(device: FleetDevice, binding: AwsThingBinding) -> bool:
    if (binding.thing_name, binding.tenant_id) != (device.thing_name, device.tenant_id):
        return False
    if device.is_decommissioned:
        ended = binding.provisioning_status is ProvisioningStatus.DECOMMISSIONED
        return ended and binding.deleted_at is not None and binding.failure_reason is None
    return (
        binding.provisioning_status is ProvisioningStatus.ACTIVE
        and binding.deleted_at is None
        and binding.failure_reason is None
        and bool(binding.thing_arn and binding.certificate_arn)
        and bool(binding.certificate_secret_arn) == device.has_secret
        and binding.last_shadow_reported_at is not None
    )


def _shown(bindings: Sequence[AwsThingBinding]) -> str:
    return (
        ", ".join(
            f"{each.provisioning_status} deleted_at={each.deleted_at} failure={each.failure_reason} "
            f"reported={each.last_shadow_reported_at}"
            for each in bindings
        )
        or "no binding"
    )


def _is_legal(chain: Sequence[BindingTransition], binding: AwsThingBinding) -> bool:
    standing: ProvisioningStatus | None = None
    for each in chain:
        if each.from_status is not standing:
            return False
        begins = {ProvisioningStatus.PENDING} | (
            {ProvisioningStatus.ACTIVE} if binding.provisioned_via_jitp else set()
        )
        allowed = each.to_status in begins if standing is None else standing.may_become(each.to_status)
        if not allowed:
            return False
        standing = each.to_status
    return standing is binding.provisioning_status


class AwsAccount:
    """All that AWS holds at the end, with an administrator's eyes."""

    def __init__(self, endpoint_url: str) -> None:
        """Look at all of it."""
        self._endpoint = endpoint_url
        self._iot = aws_client("iot", endpoint_url)
        self._iot_data = aws_client("iot-data", endpoint_url)
        self._secrets = aws_client("secretsmanager", endpoint_url)
        self.inventory: Inventory = take_inventory(endpoint_url)
        self.unknown: list[str] = []
        """Certificates that can never connect, and that no row tells of."""
        self.keys: dict[str, str] = {}
        """The private key by secret name."""
        with ThreadPoolExecutor(_THREADS) as pool:
            names = [name for name in self.inventory.secrets if name.startswith(SECRETS)]
            self.keys.update(zip(names, pool.map(self._secret_value, names), strict=True))

    def check(self, fleet: Sequence[FleetDevice], others: Iterable[str] = ()) -> Iterator[Finding]:
        """Each live device has what it must have, the others nothing, and nothing is anyone else's.

        Args:
            fleet: the devices.
            others: the names of secrets that are not a device's.
        """
        live = [device for device in fleet if not device.is_decommissioned]
        with ThreadPoolExecutor(_THREADS) as pool:
            yield self._things(live)
            yield self._certificates(live)
            yield self._fitting_keys(live, pool)
            yield self._shadows(live, pool)
            yield self._nothing_of(fleet, pool)
            yield self._no_orphans(live, others)

    def _things(self, live: Sequence[FleetDevice]) -> Finding:
        found = Finding("each live device has its Thing, stamped as its own")
        for device in live:
            attributes = self.inventory.things.get(device.thing_name)
            # What enrols by itself has the Thing that AWS made for it.
            stamp = {"deviceId": str(device.device_id), "tenantId": tenant_key(device.tenant_id)}
            so = attributes is not None and (device.is_enrolled or stamp.items() <= attributes.items())
            found.require(so, f"{_of(device)}: {attributes}")
        return found

    def _certificates(self, live: Sequence[FleetDevice]) -> Finding:
        found = Finding("each live device has one certificate: ACTIVE, attached, with the one policy")
        for device in live:
            arns = self.inventory.attachments.get(device.thing_name, ())
            certificates = [self.inventory.certificates.get(arn) for arn in arns]
            so = [(each.status, each.policies) for each in certificates if each] == [("ACTIVE", (POLICY,))]
            found.require(so and len(arns) == 1, f"{_of(device)}: {certificates}")
        return found

    def _fitting_keys(self, live: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        found = Finding("each live device has one secret, whose key fits the certificate")

        def fits(device: FleetDevice) -> bool:
            key = self.keys.get(device.secret_name)
            arns = self.inventory.attachments.get(device.thing_name, ())
            if not device.has_secret:
                return key is None
            return key is not None and len(arns) == 1 and _public(key) == self._public_of(arns[0])

        for device, so in zip(live, pool.map(fits, live), strict=True):
            found.require(so, f"{_of(device)}: the key is not that of the certificate, or is not there")
        return found

    def _shadows(self, live: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        found = Finding("each live device's shadow reports the status that the platform told of last")
        names = [device.thing_name for device in live]
        reported = pool.map(lambda name: reported_status(self._endpoint, name), names)
        for device, status in zip(live, reported, strict=True):
            found.require(status == device.reports, f"{_of(device)}: reports {status}, not {device.reports}")
        return found

    def _nothing_of(self, fleet: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        found = Finding("of each decommissioned device AWS holds nothing")
        gone = [device for device in fleet if device.is_decommissioned]
        shadows = pool.map(lambda device: self._has_shadow(device.thing_name), gone)
        for device, has_shadow in zip(gone, shadows, strict=True):
            left = {
                "Thing": device.thing_name in self.inventory.things,
                "secret": device.secret_name in self.inventory.secrets,
                "shadow": has_shadow,
            }
            found.require(not any(left.values()), f"{_of(device)}: {left}")
        return found

    def _no_orphans(self, live: Sequence[FleetDevice], others: Iterable[str]) -> Finding:
        found = Finding("AWS holds no Thing, secret or certificate fit to connect that is no live device's")
        things = {device.thing_name for device in live}
        secrets = {device.secret_name for device in live} | set(others)
        attached = {arn for name in things for arn in self.inventory.attachments.get(name, ())}
        for name in self.inventory.things:
            found.require(name in things, f"Thing {name}")
        for name in self.inventory.secrets:
            found.require(name in secrets, f"secret {name}")
        for arn, certificate in self.inventory.certificates.items():
            if arn not in attached and (certificate.status, certificate.policies) == ("INACTIVE", ()):
                self.unknown.append(arn)
            else:
                what = f"certificate {arn}: {certificate.status}, {certificate.policies}"
                found.require(arn in attached, what)
        return found

    def check_unknown(self, rows: Iterable[str | None], kills: Sequence[datetime]) -> Finding:
        """What no row tells of was lost with a process.

        AWS may have issued a certificate whose answer a worker did not live to write down: no call takes that
        back, so it is issued INACTIVE, and never can connect.

        Args:
            rows: the certificates that the database tells of.
            kills: when workers were killed.
        """
        found = Finding(
            "a certificate that no row tells of is INACTIVE, and was issued as a worker was killed"
        )
        found.looked_at = len(self.inventory.certificates)
        known = set(rows)
        for arn in self.unknown:
            issued = self._describe(arn)["creationDate"]
            was_lost = any(abs(issued - kill) < _LOST_WITHIN for kill in kills)
            if arn in known or not was_lost:
                found.violations.append(f"{arn}: issued {issued}, in a row: {arn in known}")
        return found

    def _secret_value(self, name: str) -> str:
        return str(self._secrets.get_secret_value(SecretId=name)["SecretString"])

    def _public_of(self, arn: str) -> bytes:
        pem = self._describe(arn)["certificatePem"]
        public = x509.load_pem_x509_certificate(pem.encode()).public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _describe(self, arn: str) -> Any:
        return self._iot.describe_certificate(certificateId=arn.rpartition("/")[2])["certificateDescription"]

    def _has_shadow(self, thing_name: str) -> bool:
        try:
            self._iot_data.get_thing_shadow(thingName=thing_name)
        except ClientError:
            return False
        return True


def _public(key: str) -> bytes:
    public = load_pem_private_key(key.encode(), None).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# Temporal, and what stands written anywhere


async def check_workflows(client: Client) -> Finding:
    """None ended as it must not, and none is open but those that always are."""
    found = Finding("no workflow failed, and none is open but the publishers")
    fine = {WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CONTINUED_AS_NEW}
    async for run in client.list_workflows():
        always = run.workflow_type == OUTBOX_PUBLISHER and run.status is WorkflowExecutionStatus.RUNNING
        # A poll may be under way at any moment.
        polling = run.workflow_type.endswith("Poll") and run.status is WorkflowExecutionStatus.RUNNING
        found.require(always or polling or run.status in fine, f"{run.id}: {run.status and run.status.name}")
    return found


async def read_histories(client: Client) -> Mapping[str, str]:
    """Every history in the namespace as text, its payloads decoded too, by workflow and run."""
    gate = asyncio.Semaphore(_HISTORIES_AT_ONCE)

    async def read(run: WorkflowExecution) -> tuple[str, str]:
        async with gate:
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            texts = []
            async for event in handle.fetch_history_events():
                shown = MessageToDict(event)
                texts += [json.dumps(shown), *_decoded(shown)]
        return f"{run.id}/{run.run_id}", "\n".join(texts)

    runs = [run async for run in client.list_workflows()]
    return dict(await asyncio.gather(*(read(run) for run in runs)))


def _decoded(shown: object) -> Iterator[str]:
    if isinstance(shown, dict):
        if isinstance(shown.get("data"), str):
            yield b64decode(shown["data"]).decode(errors="replace")
        for value in shown.values():
            yield from _decoded(value)
    elif isinstance(shown, list):
        for value in shown:
            yield from _decoded(value)


def check_secrecy(
    places: Iterable[tuple[str, str]], keys: Sequence[str], secrets: Mapping[str, str]
) -> Iterator[Finding]:
    """No private key, and no secret of the bridge's own, stands where it must not.

    Args:
        places: what is looked through, by its name.
        keys: the private keys, of which not a line may be found.
        secrets: what else may not be found, by its name.
    """
    probes = {line[:_PROBE] for key in keys for line in key.splitlines()[1:-1] if len(line) >= _PROBE}
    no_key = Finding(f"no line of {len(keys)} private keys stands in a history, a log or the database")
    no_secret = Finding("no secret of the bridge's own stands there either")
    for name, text in places:
        no_key.require("PRIVATE KEY" not in text and not _holds_any(text, probes), name)
        written = [secret for secret, value in secrets.items() if value in text]
        no_secret.require(not written, f"{name}: {', '.join(written)}")
    yield no_key
    yield no_secret


def _holds_any(text: str, probes: set[str]) -> bool:
    for run in _BASE64_RUN.finditer(text):
        found = run[0]
        if any(found[start : start + _PROBE] in probes for start in range(len(found) - _PROBE + 1)):
            return True
    return False


def _of(device: FleetDevice) -> str:
    return f"{device.serial_number} {device.device_id} ({device.life})"

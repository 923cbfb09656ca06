"""The checks after a production run, of its events, rows, AWS account, workflow histories and logs."""

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

from benchmarks.production.fleet import DEVICE_SECRETS_PREFIX, POLICY, FleetDevice
from db.models import AwsThingBinding, BindingTransition, OutboxRow
from domain.names import OUTBOX_PUBLISHER, tenant_key
from domain.outgoing_event import OutgoingEventType
from domain.provisioning_status import ProvisioningStatus
from embedded.aws_client import aws_client
from embedded.inventory import Inventory, reported_status, take_inventory

_SCHEMAS: Final = Path(__file__).parent.parent.parent / "docs" / "events"
# A copy of the constant: event ids are public, so they must not change with the code.
_EVENT_IDS: Final = UUID("6c0d6f2e-6b0f-5b62-9a55-0c1f0a7f6f10")
_DISTINCTION: Final[Mapping[str, str]] = {
    OutgoingEventType.PROVISIONED: "bindingId",
    OutgoingEventType.DECOMMISSIONED: "bindingId",
    OutgoingEventType.DESIRED_STATE_CHANGED: "shadowVersion",
    OutgoingEventType.COMMAND_COMPLETED: "jobId",
}
"""The field of `data` that, with type and device, identifies an event."""
_LOST_WITHIN: Final = timedelta(seconds=20)
"""The maximum time between the kill of a worker and the end of a call to AWS that it had started."""
_THREADS: Final = 8
_HISTORIES_AT_ONCE: Final = 16
_PROBE: Final = 32
_BASE64_RUN: Final = re.compile(rf"[A-Za-z0-9+/=]{{{_PROBE},}}")


@dataclass
class Finding:
    """The result of one check: the number of checked items, and its violations."""

    rule: str
    checked: int = 0
    violations: list[str] = field(default_factory=list)

    def require(self, condition: bool, violation: str) -> None:
        """Count one checked item, and add a violation if its condition is false."""
        self.checked += 1
        if not condition:
            self.violations.append(violation)


@dataclass(frozen=True)
class Delivery:
    """One request that the webhook receiver got. An event can be delivered several times."""

    headers: Mapping[str, str]
    body: str
    fault: str | None

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        event: dict[str, Any] = json.loads(self.body)
        return event


def read_deliveries(file: Path) -> list[Delivery]:
    """Read the deliveries in order of arrival, without the incomplete last line of a killed receiver."""
    deliveries = []
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            record = json.loads(line)
            deliveries.append(Delivery(record["headers"], record["body"], record["fault"]))
    return deliveries


# Events


def check_events(
    fleet: Sequence[FleetDevice], deliveries: Sequence[Delivery], engine: Engine
) -> Iterator[Finding]:
    """Check that no event is lost, and that order, ids, signatures and contents are correct."""
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
    finding = Finding("exactly the events expected from the scenarios were delivered")
    delivered: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        delivered[event.get("subject", "")][event["type"]] += 1
    for device in fleet:
        types = delivered.pop(str(device.device_id), Counter())
        missing = device.expected_events - types
        unexpected = types - device.expected_events - device.allowed_events
        finding.checked += sum(device.expected_events.values())
        if missing or unexpected:
            finding.violations.append(
                f"{_of(device)}: missing {dict(missing)}, unexpected {dict(unexpected)}"
            )
    finding.violations += [f"{subject}: is not a device of the fleet" for subject in delivered]
    return finding


def _all_delivered(rows: Sequence[OutboxRow], first: Mapping[str, Any]) -> Finding:
    finding = Finding("every outbox row was delivered and is marked as published")
    for row in rows:
        finding.require(
            str(row.event_id) in first and row.published_at is not None,
            f"{row.type} {row.event_id}: "
            f"delivered {str(row.event_id) in first}, published at {row.published_at}",
        )
    known = {str(row.event_id) for row in rows}
    finding.violations += [
        f"{event_id}: delivered, but not in the outbox" for event_id in first if event_id not in known
    ]
    return finding


def _in_order(rows: Sequence[OutboxRow], events: Iterable[dict[str, Any]]) -> Finding:
    finding = Finding("the first deliveries of each device's events are in order and without a gap")
    sequences: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if "subject" in event:
            sequences[event["subject"]].append(int(event["sequence"]))
    for device_id in {str(row.device_id) for row in rows if row.device_id}:
        sequence = sequences.get(device_id, [])
        finding.require(
            sequence == list(range(1, len(sequence) + 1)) and bool(sequence),
            f"{device_id}: delivered as {sequence}",
        )
    return finding


def _ids(first: Mapping[str, dict[str, Any]], bodies: Mapping[str, set[str]]) -> Finding:
    finding = Finding("each event has its deterministic id, and repeated deliveries are identical")
    for event_id, event in first.items():
        finding.require(
            len(bodies[event_id]) == 1, f"{event_id}: delivered with {len(bodies[event_id])} different bodies"
        )
        if (distinction := _DISTINCTION.get(event["type"])) is not None:
            name = f"{event['type']}/{event['data']['deviceId']}/{event['data'][distinction]}"
            if str(uuid5(_EVENT_IDS, name)) != event_id:
                finding.violations.append(f"{event_id}: is not the id of {name}")
    return finding


def _signatures(deliveries: Sequence[Delivery]) -> Finding:
    finding = Finding("each delivery is signed, and its webhook-id is the id of its event")
    for delivery in deliveries:
        finding.require(delivery.fault is None, f"{delivery.headers.get('webhook-id')}: {delivery.fault}")
        if delivery.fault is None and delivery.headers["webhook-id"] != delivery.event["id"]:
            finding.violations.append(f"{delivery.event['id']}: webhook-id {delivery.headers['webhook-id']}")
    return finding


def _valid(events: Iterable[dict[str, Any]]) -> Finding:
    finding = Finding("each event is valid by its schema in docs/events")
    for event in events:
        error = next(iter(_validator(event["type"]).iter_errors(event)), None)
        finding.require(error is None, f"{event['id']}: {error.message if error else ''}")
    return finding


@cache
def _validator(event_type: str) -> Draft202012Validator:
    schema = json.loads((_SCHEMAS / f"{event_type}.schema.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


# Bindings and AWS


def check_rows(fleet: Sequence[FleetDevice], engine: Engine) -> Iterator[Finding]:
    """Check that each device has one correct binding with a legal chain of transitions."""
    with Session(engine) as session:
        bindings = session.exec(select(AwsThingBinding)).all()
        transitions = session.exec(select(BindingTransition).order_by(col(BindingTransition.id))).all()
    of_device: dict[UUID, list[AwsThingBinding]] = defaultdict(list)
    for binding in bindings:
        of_device[binding.device_id].append(binding)

    rows = Finding("each device has one binding: Active with its ARNs, or Decommissioned and deleted")
    for device in fleet:
        own = of_device.pop(device.device_id, []) if device.device_id else []
        rows.require(len(own) == 1 and _is_as_expected(device, own[0]), f"{_of(device)}: {_shown(own)}")
    rows.violations += [
        f"{device_id}: has a binding, but is not a device of the fleet" for device_id in of_device
    ]
    yield rows

    chains = Finding("the transitions of each binding are a legal chain that ends at its status")
    of_binding: dict[UUID, list[BindingTransition]] = defaultdict(list)
    for transition in transitions:
        of_binding[transition.binding_id].append(transition)
    for binding in bindings:
        chain = of_binding[binding.id]
        shown = " -> ".join([str(chain[0].from_status) if chain else "", *(each.to_status for each in chain)])
        chains.require(_is_legal(chain, binding), f"{binding.device_id}: {shown}")
    yield chains


def _is_as_expected(device: FleetDevice, binding: AwsThingBinding) -> bool:
    if (binding.thing_name, binding.tenant_id) != (device.thing_name, device.tenant_id):
        return False
    if device.is_decommissioned:
        decommissioned = binding.provisioning_status is ProvisioningStatus.DECOMMISSIONED
        return decommissioned and binding.deleted_at is not None and binding.failure_reason is None
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
    status: ProvisioningStatus | None = None
    for each in chain:
        if each.from_status is not status:
            return False
        initial = {ProvisioningStatus.PENDING} | (
            {ProvisioningStatus.ACTIVE} if binding.provisioned_via_jitp else set()
        )
        allowed = each.to_status in initial if status is None else status.may_become(each.to_status)
        if not allowed:
            return False
        status = each.to_status
    return status is binding.provisioning_status


class AwsAccount:
    """The content of the AWS account at the end, read with administrator rights."""

    def __init__(self, endpoint_url: str) -> None:
        """List the resources of the account."""
        self._endpoint = endpoint_url
        self._iot = aws_client("iot", endpoint_url)
        self._iot_data = aws_client("iot-data", endpoint_url)
        self._secrets = aws_client("secretsmanager", endpoint_url)
        self.inventory: Inventory = take_inventory(endpoint_url)
        self.unknown: list[str] = []
        """INACTIVE certificates without policies that belong to no live device. They can never connect."""
        self.keys: dict[str, str] = {}
        """The private keys by secret name."""
        with ThreadPoolExecutor(_THREADS) as pool:
            names = [name for name in self.inventory.secrets if name.startswith(DEVICE_SECRETS_PREFIX)]
            self.keys.update(zip(names, pool.map(self._secret_value, names), strict=True))

    def check(self, fleet: Sequence[FleetDevice], others: Iterable[str] = ()) -> Iterator[Finding]:
        """Check the resources of live devices, and that no other resources exist.

        Args:
            fleet: the devices.
            others: the names of secrets that belong to no device.
        """
        live = [device for device in fleet if not device.is_decommissioned]
        with ThreadPoolExecutor(_THREADS) as pool:
            yield self._things(live)
            yield self._certificates(live)
            yield self._matching_keys(live, pool)
            yield self._shadows(live, pool)
            yield self._no_remains(fleet, pool)
            yield self._no_orphans(live, others)

    def _things(self, live: Sequence[FleetDevice]) -> Finding:
        finding = Finding("each live device has its Thing, with its deviceId and tenantId")
        for device in live:
            attributes = self.inventory.things.get(device.thing_name)
            # A device that enrols by itself has a Thing created by AWS, without these attributes.
            expected = {"deviceId": str(device.device_id), "tenantId": tenant_key(device.tenant_id)}
            correct = attributes is not None and (
                device.is_enrolled or expected.items() <= attributes.items()
            )
            finding.require(correct, f"{_of(device)}: {attributes}")
        return finding

    def _certificates(self, live: Sequence[FleetDevice]) -> Finding:
        finding = Finding(
            "each live device has one certificate: ACTIVE, attached, with exactly the device policy"
        )
        for device in live:
            arns = self.inventory.attachments.get(device.thing_name, ())
            certificates = [self.inventory.certificates.get(arn) for arn in arns]
            correct = [(each.status, each.policies) for each in certificates if each] == [
                ("ACTIVE", (POLICY,))
            ]
            finding.require(correct and len(arns) == 1, f"{_of(device)}: {certificates}")
        return finding

    def _matching_keys(self, live: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        finding = Finding("each live device has one secret, whose key matches its certificate")

        def matches(device: FleetDevice) -> bool:
            key = self.keys.get(device.secret_name)
            arns = self.inventory.attachments.get(device.thing_name, ())
            if not device.has_secret:
                return key is None
            return key is not None and len(arns) == 1 and _public(key) == self._public_of(arns[0])

        for device, correct in zip(live, pool.map(matches, live), strict=True):
            finding.require(correct, f"{_of(device)}: the key is missing or does not match the certificate")
        return finding

    def _shadows(self, live: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        finding = Finding("each live device's shadow reports the last status sent by the platform")
        names = [device.thing_name for device in live]
        reported = pool.map(lambda name: reported_status(self._endpoint, name), names)
        for device, status in zip(live, reported, strict=True):
            finding.require(
                status == device.reports, f"{_of(device)}: reports {status}, not {device.reports}"
            )
        return finding

    def _no_remains(self, fleet: Sequence[FleetDevice], pool: ThreadPoolExecutor) -> Finding:
        finding = Finding("no Thing, secret or shadow of a decommissioned device is left in AWS")
        gone = [device for device in fleet if device.is_decommissioned]
        shadows = pool.map(lambda device: self._has_shadow(device.thing_name), gone)
        for device, has_shadow in zip(gone, shadows, strict=True):
            left = {
                "Thing": device.thing_name in self.inventory.things,
                "secret": device.secret_name in self.inventory.secrets,
                "shadow": has_shadow,
            }
            finding.require(not any(left.values()), f"{_of(device)}: {left}")
        return finding

    def _no_orphans(self, live: Sequence[FleetDevice], others: Iterable[str]) -> Finding:
        finding = Finding("every Thing, secret and usable certificate in AWS belongs to a live device")
        things = {device.thing_name for device in live}
        secrets = {device.secret_name for device in live} | set(others)
        attached = {arn for name in things for arn in self.inventory.attachments.get(name, ())}
        for name in self.inventory.things:
            finding.require(name in things, f"Thing {name}")
        for name in self.inventory.secrets:
            finding.require(name in secrets, f"secret {name}")
        for arn, certificate in self.inventory.certificates.items():
            if arn not in attached and (certificate.status, certificate.policies) == ("INACTIVE", ()):
                self.unknown.append(arn)
            else:
                violation = f"certificate {arn}: {certificate.status}, {certificate.policies}"
                finding.require(arn in attached, violation)
        return finding

    def check_unknown(self, rows: Iterable[str | None], kills: Sequence[datetime]) -> Finding:
        """Check that every unrecorded certificate was issued at the time of a kill.

        AWS may have issued a certificate whose ARN a killed worker could not store. Certificates are issued
        INACTIVE, so an unrecorded one can never connect.

        Args:
            rows: the certificate ARNs in the database.
            kills: the times at which workers were killed.
        """
        finding = Finding("every unrecorded certificate is INACTIVE and was issued when a worker was killed")
        finding.checked = len(self.inventory.certificates)
        known = set(rows)
        for arn in self.unknown:
            issued = self._describe(arn)["creationDate"]
            was_lost = any(abs(issued - kill) < _LOST_WITHIN for kill in kills)
            if arn in known or not was_lost:
                finding.violations.append(f"{arn}: issued {issued}, recorded: {arn in known}")
        return finding

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


# Temporal, and secrets in any stored text


async def check_workflows(client: Client) -> Finding:
    """Check that all workflows ended as expected, and that only those open at any time are open."""
    finding = Finding("no workflow failed, and only the publishers and polls are open")
    successful = {WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CONTINUED_AS_NEW}
    async for run in client.list_workflows():
        always = run.workflow_type == OUTBOX_PUBLISHER and run.status is WorkflowExecutionStatus.RUNNING
        # A poll may be running at any time.
        polling = run.workflow_type.endswith("Poll") and run.status is WorkflowExecutionStatus.RUNNING
        finding.require(
            always or polling or run.status in successful, f"{run.id}: {run.status and run.status.name}"
        )
    return finding


async def read_histories(client: Client) -> Mapping[str, str]:
    """Return every history in the namespace as text with decoded payloads, by workflow and run."""
    semaphore = asyncio.Semaphore(_HISTORIES_AT_ONCE)

    async def read(run: WorkflowExecution) -> tuple[str, str]:
        async with semaphore:
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
    texts: Iterable[tuple[str, str]], keys: Sequence[str], secrets: Mapping[str, str]
) -> Iterator[Finding]:
    """Check that stored texts contain no private key and no secret of the bridge.

    Args:
        texts: the names and contents of the texts.
        keys: the private keys. No line of them may be finding.
        secrets: other secrets by name.
    """
    probes = {line[:_PROBE] for key in keys for line in key.splitlines()[1:-1] if len(line) >= _PROBE}
    no_key = Finding(
        f"no line of {len(keys)} private keys is in a history, a log, a delivery or the database"
    )
    no_secret = Finding("no secret of the bridge is in any of these")
    for name, text in texts:
        no_key.require("PRIVATE KEY" not in text and not _holds_any(text, probes), name)
        leaked = [secret for secret, value in secrets.items() if value in text]
        no_secret.require(not leaked, f"{name}: {', '.join(leaked)}")
    yield no_key
    yield no_secret


def _holds_any(text: str, probes: set[str]) -> bool:
    for run in _BASE64_RUN.finditer(text):
        text_run = run[0]
        if any(text_run[start : start + _PROBE] in probes for start in range(len(text_run) - _PROBE + 1)):
            return True
    return False


def _of(device: FleetDevice) -> str:
    return f"{device.serial_number} {device.device_id} ({device.scenario})"

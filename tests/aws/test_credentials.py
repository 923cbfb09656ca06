"""AWS keys in a secret: rotated without failed calls, awaited at the start, and never disclosed.

They run on the emulator: moto accepts every key, and cannot revoke one.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from sqlmodel import Session

from activities.attempt import application_error
from aws.clients import AwsClients, FleetSecret
from aws.credentials import FleetCredentials
from aws.errors import AccessDeniedError, AwsError, CredentialsNotReadyError
from db.aws_credentials import record_check
from db.models import AwsCredentialsRow
from domain.failure import FailureCode
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import Bridge, Device, until, worker_on
from tests.harness.command_line import running
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness
from tests.harness.http_api import open_http_api, problem
from worker import keep_credentials

VARIABLE = "IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN"
SOON, LATER = timedelta(milliseconds=50), timedelta(hours=1)
LONG_ENOUGH = timedelta(seconds=60)


@dataclass
class Vault:
    """A secret with the bridge's AWS keys, as an operator who rotates them sees it."""

    bridge: Bridge
    arn: str = ""
    issued: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arn = self.bridge.secrets.create_secret(Name=f"fleet-{uuid4()}", SecretString="{}")["ARN"]

    def put(self, text: str) -> None:
        self.bridge.secrets.put_secret_value(SecretId=self.arn, SecretString=text)

    def rotate(self) -> None:
        """Issue new keys, and write them to the secret."""
        self.issued.append(
            {
                "accessKeyId": f"AKIA{uuid4().hex[:16].upper()}",
                "secretAccessKey": f"hush-{uuid4().hex}",
                "sessionToken": f"hush-{uuid4().hex}",
            }
        )
        self.put(json.dumps(self.issued[-1]))

    def revoke(self, keys: dict[str, str]) -> None:
        self.bridge.emulator.revoke_key(keys["accessKeyId"])

    def credentials(self) -> FleetCredentials:
        return FleetCredentials(self.arn, FleetSecret(self.arn).read)

    def rejected_calls(self) -> int:
        """Return how many calls AWS rejected because of keys of this secret."""
        rejected = self.bridge.emulator.refused_keys()
        return sum(rejected.get(keys["accessKeyId"], 0) for keys in self.issued)

    def disclosed_in(self, *texts: object) -> list[str]:
        """Return the secret values that occur in these texts."""
        secrets = [keys[name] for keys in self.issued for name in ("secretAccessKey", "sessionToken")]
        assert secrets
        return [secret for secret in secrets if any(secret in str(text) for text in texts)]


@pytest.fixture
def vault(bridge: Bridge) -> Iterator[Vault]:
    yield Vault(bridge)
    bridge.emulator.restore_keys()


def requests_of(aws: AwsClients) -> list[str]:
    """Return a list to which the URL of each later request of these clients is added."""
    sent: list[str] = []

    def record(request: Any, **_: Any) -> None:
        sent.append(request.url)

    for client in (aws.iot, aws.iot_data, aws.secrets):
        client.meta.events.register("before-send", record)
    return sent


def row(engine: Engine, vault: Vault) -> AwsCredentialsRow | None:
    with Session(engine) as session:
        return session.get(AwsCredentialsRow, vault.arn)


async def failures(bridge: Bridge, device: Device) -> list[str]:
    """Return the messages of all failed attempts of the device's activities."""
    found = []
    handle = bridge.client.get_workflow_handle(device.workflow_id)
    async for event in handle.fetch_history_events():
        if event.HasField("activity_task_started_event_attributes"):
            started = event.activity_task_started_event_attributes
            if started.HasField("last_failure"):
                found.append(started.last_failure.message)
        if event.HasField("activity_task_failed_event_attributes"):
            found.append(event.activity_task_failed_event_attributes.failure.message)
    return found


# Rotation


async def test_rotation_under_load_fails_no_call(
    vault: Vault, settings: Settings, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Repeated rotation during provisioning fails no activity.

    Each turn writes new keys to the secret and revokes the old ones. AWS rejects calls that use old keys, and
    each such call is sent once more with the new keys.
    """
    caplog.set_level(logging.INFO)
    vault.rotate()
    credentials, bridge, queue = vault.credentials(), vault.bridge, "rotating"
    aws = AwsClients(32, None, credentials)
    devices: list[Device] = []
    async with (
        keep_credentials(credentials, engine, interval=LATER, first_within=LONG_ENOUGH),
        worker_on(queue, settings, bridge, aws, engine),
    ):
        for turn in range(3):
            batch = [Device(f"ROT-{turn}-{number}") for number in range(4)]
            devices += batch
            for device in batch:
                await bridge.signal(device, device.event("Provisioned"), queue=queue)
            await bridge.wait_for_status(batch[0], ProvisioningStatus.ACTIVE)
            vault.rotate()
            vault.revoke(vault.issued[-2])
            last = Device(f"ROT-{turn}-LAST")
            devices.append(last)
            await bridge.signal(last, last.event("Provisioned"), queue=queue)
        for device in devices:
            await bridge.wait_for_end(device)
    assert [bridge.require_binding(device).provisioning_status for device in devices] == [
        ProvisioningStatus.ACTIVE for _ in devices
    ]
    assert [await failures(bridge, device) for device in devices] == [[] for _ in devices]
    assert vault.rejected_calls() >= 3
    assert not vault.disclosed_in(caplog.text, *(record.__dict__ for record in caplog.records))


async def test_new_keys_are_used_before_the_old_ones_are_revoked(vault: Vault, engine: Engine) -> None:
    """The secret is read in every interval, and existing clients sign with the keys in it."""
    vault.rotate()
    credentials = vault.credentials()
    aws = AwsClients(1, None, credentials)
    async with keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH):
        aws.call(aws.iot.list_things, maxResults=1)
        vault.rotate()

        async def in_force() -> bool:
            return credentials.keys is not None and vault.issued[-1]["accessKeyId"] == (
                credentials.keys.access_key_id
            )

        await until(in_force, "the new keys are in force")
        vault.revoke(vault.issued[0])
        aws.call(aws.iot.list_things, maxResults=1)
    assert vault.rejected_calls() == 0


def test_a_listing_continues_during_a_rotation(vault: Vault) -> None:
    """A listing returns every page although the keys are revoked between two pages."""
    vault.rotate()
    credentials, mark = vault.credentials(), uuid4().hex
    assert credentials.refresh()
    aws = AwsClients(1, None, credentials)
    names = {f"{mark}-{number}" for number in range(3)}
    for name in names:
        vault.bridge.iot.create_thing(thingName=name, attributePayload={"attributes": {"mark": mark}})
    pages = aws.iot.get_paginator("list_things").paginate(
        attributeName="mark", attributeValue=mark, PaginationConfig={"PageSize": 1}
    )
    found = set()
    for page in aws.pages(pages):
        found |= {thing["thingName"] for thing in page["things"]}
        vault.rotate()
        vault.revoke(vault.issued[-2])
    assert found == names
    assert vault.rejected_calls() >= 2


def test_rejected_keys_without_a_replacement_are_not_read_by_every_call(vault: Vault) -> None:
    """The calls fail with a retryable error, and most of them do not read the secret."""
    vault.rotate()
    reads: list[bool] = []
    secret = FleetSecret(vault.arn)
    credentials = FleetCredentials(vault.arn, secret.read, reads.append)
    credentials.refresh()
    aws = AwsClients(1, None, credentials)
    vault.revoke(vault.issued[-1])
    for _ in range(20):
        with pytest.raises(AwsError, match="UnrecognizedClientException") as rejected:
            aws.call(aws.iot.list_things)
        assert rejected.value.retryable
    assert len(reads) < 20


# Not ready


async def test_without_keys_nothing_is_called_and_no_device_fails(
    vault: Vault, settings: Settings, engine: Engine
) -> None:
    """A device waits, even longer than a step is retried, and continues when the secret holds keys."""
    credentials, bridge, queue, device = vault.credentials(), vault.bridge, "not-ready", Device("WAITING-1")
    aws = AwsClients(32, None, credentials)
    sent = requests_of(aws)
    short_retries = settings.model_copy(
        update={"provisioning": settings.provisioning.model_copy(update={"step_retry_seconds": 1})}
    )
    async with (
        keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH),
        worker_on(queue, short_retries, bridge, aws, engine),
    ):
        assert not aws.credentials_ready
        assert aws.credentials_age_seconds is None
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_reschedule(device, "ensure_thing")
        assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.PENDING
        assert sent == []
        vault.rotate()
        await bridge.wait_for_end(device)
    assert aws.credentials_ready
    assert aws.credentials_age_seconds is not None
    assert bridge.transitions(device) == ["Pending", "ThingCreated", "CertIssued", "SecretStored", "Active"]
    assert set(await failures(bridge, device)) == {
        "the secret with the AWS keys has not been read yet: see the worker's log"
    }


def test_a_call_without_keys_raises_a_retryable_error(vault: Vault) -> None:
    """A call, a page and a look-up of the account raise it. A client used directly cannot sign either."""
    aws = AwsClients(1, None, vault.credentials())
    sent = requests_of(aws)
    for send in (
        lambda: aws.call(aws.iot.list_things),
        lambda: list(aws.pages(aws.iot.get_paginator("list_things").paginate())),
        lambda: aws.find_location(None),
    ):
        with pytest.raises(CredentialsNotReadyError) as raised:
            send()
        error = application_error(raised.value)
        assert error.type == "CredentialsNotReady"
        assert not error.non_retryable
        assert error.next_retry_delay is not None
    with pytest.raises(Exception, match="the secret has not been read yet"):
        aws.iot.list_things()
    assert sent == []


async def test_a_start_waits_a_limited_time_for_the_secret(vault: Vault, engine: Engine) -> None:
    """The start continues after the time of the first read, and uses the keys when they arrive."""
    vault.rotate()
    released, secret = threading.Event(), FleetSecret(vault.arn)

    def read() -> str:
        released.wait(60)
        return secret.read()

    credentials = FleetCredentials(vault.arn, read)
    async with keep_credentials(credentials, engine, interval=LATER, first_within=timedelta(0)):
        assert not credentials.ready
        released.set()

        async def recorded() -> bool:
            stored = await asyncio.to_thread(row, engine, vault)
            return stored is not None and stored.fetched_at is not None

        await until(recorded, "the keys are there")
        assert credentials.ready


async def test_a_worker_starts_without_keys_and_works_when_they_arrive(vault: Vault, engine: Engine) -> None:
    """With the setting alone, the process logs the error and starts, and a device waits for the keys."""
    queue, device, bridge = "started-without", Device("STARTED-1"), vault.bridge
    output = b""
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue, **{VARIABLE: vault.arn}) as process:
        assert process.stderr is not None
        while b"worker started" not in output:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, output
            output += line
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_activity(device, "ensure_thing")
        vault.rotate()
        await bridge.wait_for_end(device)

        async def recorded() -> bool:
            stored = row(engine, vault)
            return stored is not None and stored.fetched_at == stored.checked_at and stored.error is None

        await until(recorded, "the keys were read")
        process.terminate()
        _, rest = await asyncio.wait_for(process.communicate(), 60)
    log = (output + rest).decode()
    assert "AWS is not called: InvalidSecret: accessKeyId: is missing" in log
    assert not vault.disclosed_in(log)


# A read that fails


async def test_a_failed_read_keeps_the_last_good_keys(
    vault: Vault, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls continue, the age counts from the last successful read, and the error code is recorded."""
    caplog.set_level(logging.INFO)
    vault.rotate()
    credentials = vault.credentials()
    aws = AwsClients(1, None, credentials)
    async with keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH):
        broken = vault.issued[-1] | {"accessKeyId": "no key id"}
        vault.put(json.dumps(broken))

        async def recorded() -> bool:
            stored = await asyncio.to_thread(row, engine, vault)
            return stored is not None and stored.error == "InvalidSecret"

        await until(recorded, "a failed read")
        good = credentials.fetched_at
        aws.call(aws.iot.list_things)
        assert not await asyncio.to_thread(credentials.refresh)
    assert (credentials.ready, credentials.fetched_at) == (True, good)
    assert good is not None
    assert good < credentials.checked_at
    assert aws.credentials_age_seconds is not None
    stored = row(engine, vault)
    assert stored is not None
    assert stored.fetched_at == good
    assert "the last valid keys stay in use: InvalidSecret: accessKeyId: is not valid" in caplog.text
    shown = (repr(credentials.keys), repr(credentials), repr(vars(aws)))
    assert not vault.disclosed_in(caplog.text, *shown, stored)


def test_a_secret_that_cannot_be_read_is_reported_by_the_code_of_aws(vault: Vault) -> None:
    """An error of AWS leaves the keys not ready, and its code is recorded."""
    credentials = FleetCredentials(f"{vault.arn}-none", FleetSecret(f"{vault.arn}-none").read)
    assert not credentials.refresh()
    assert (credentials.ready, credentials.error) == (False, "ResourceNotFoundException")


def test_a_secret_that_may_not_be_read_is_reported_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """The code is the failure code AccessDenied, and the log line says what to grant."""

    def read() -> str:
        raise AccessDeniedError("AccessDeniedException", "GetSecretValue: AccessDeniedException (400): no")

    credentials = FleetCredentials("arn", read)
    assert not credentials.refresh()
    assert credentials.error == "AccessDenied"
    assert FailureCode.ACCESS_DENIED.remedy in caplog.text


GOOD = {"accessKeyId": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": "hush/hush+hush"}


@pytest.mark.parametrize(
    ("secret", "faults"),
    [
        ("", "the secret: must be a JSON object"),
        ('{"accessKeyId": hush}', "the secret: must be a JSON object"),
        ("[]", "the secret: must be a JSON object"),
        ("{}", "accessKeyId: is missing; secretAccessKey: is missing"),
        (json.dumps(GOOD | {"accessKeyId": "hush hush hush hush"}), "accessKeyId: is not valid"),
        (json.dumps(GOOD | {"secretAccessKey": "hush\n"}), "secretAccessKey: is not valid"),
        (json.dumps(GOOD | {"secretAccessKey": ""}), "secretAccessKey: is not valid"),
        (json.dumps(GOOD | {"sessionToken": ["hush"]}), "sessionToken: is not valid"),
    ],
)
def test_a_malformed_secret_is_reported_by_its_fields(
    secret: str, faults: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The read fails and names each faulty field, but no value."""
    credentials = FleetCredentials("arn", lambda: secret)
    assert not credentials.refresh()
    assert caplog.messages[-1].endswith(f"AWS is not called: InvalidSecret: {faults}")
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    "more", [{}, {"sessionToken": None}, {"sessionToken": ""}, {"sessionToken": "x"}, {"rotatedBy": "us"}]
)
def test_a_secret_is_valid_with_or_without_optional_fields(more: dict[str, Any]) -> None:
    """A session token is optional, and other fields are ignored."""
    credentials = FleetCredentials("arn", lambda: json.dumps(GOOD | more))
    assert credentials.refresh()
    assert credentials.keys is not None
    assert credentials.keys.secret_access_key.get_secret_value() == GOOD["secretAccessKey"]


# Over HTTP


async def test_the_endpoints_report_missing_keys(
    vault: Vault,
    engine: Engine,
    enrolment: EnrolmentHarness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No device enrols before a worker has read the secret. A failed read after that changes nothing.

    `/readyz` reports the state and the age of the credentials.
    """
    monkeypatch.setenv(VARIABLE, vault.arn)
    device, credentials = Device("READY-1"), vault.credentials()
    request = {"serialNumber": device.serial_number, "tenantId": str(device.tenant_id)}

    async def read() -> None:
        async with keep_credentials(credentials, engine, interval=LATER, first_within=LONG_ENOUGH):

            async def recorded() -> bool:
                stored = await asyncio.to_thread(row, engine, vault)
                return stored is not None and stored.checked_at >= credentials.checked_at

            await until(recorded, "the read is recorded")

    async with open_http_api(engine) as opened, opened.operator() as http:
        for _ in range(2):
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()) == (
                503,
                {
                    "database": "ok",
                    "temporal": "ok",
                    "aws_credentials": "no worker has read their secret yet: see a worker's log",
                },
            )
            with enrolment.no_rows_written(device):
                responses = [
                    await http.post(VERIFY, json=request),
                    await http.post(REGISTERED, json=enrolment.body(device)),
                ]
            for answer in responses:
                assert problem(answer)["status"] == 503
                assert "AWS credentials are not ready" in problem(answer)["detail"]
                assert answer.headers["retry-after"]
            # The second pass follows a failed read of a worker.
            await read()
        vault.rotate()
        await read()
        vault.put("{}")
        await read()
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["aws_credentials"].startswith("ok, read ")
        assert (await http.post(VERIFY, json=request)).status_code == 200
        assert (await http.post(REGISTERED, json=enrolment.body(device))).status_code == 200


async def test_a_foreign_tenant_is_denied_before_missing_keys_are_reported(
    vault: Vault, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that requests another tenant's device gets 403, also without keys."""
    monkeypatch.setenv(VARIABLE, vault.arn)
    device = Device("READY-2")
    async with open_http_api(engine) as opened, opened.tenant(uuid4()) as http:
        answer = await http.post(
            VERIFY, json={"serialNumber": device.serial_number, "tenantId": str(device.tenant_id)}
        )
    assert problem(answer)["status"] == 403


def test_a_failed_read_of_one_worker_keeps_the_success_of_another(vault: Vault, engine: Engine) -> None:
    """The row holds the last successful read of any worker, and the result of the last read."""
    first, second = vault.credentials(), vault.credentials()
    assert not second.refresh()
    vault.rotate()
    assert first.refresh()
    for each in (first, second):
        with Session(engine) as session, session.begin():
            record_check(
                session,
                each.secret_arn,
                checked_at=each.checked_at,
                fetched_at=each.fetched_at,
                error=each.error,
            )
    stored = row(engine, vault)
    assert stored is not None
    assert (stored.fetched_at, stored.error) == (first.fetched_at, "InvalidSecret")

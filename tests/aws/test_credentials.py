"""The keys for AWS that a secret holds: taken up while calls go on, waited for, and never given away."""

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
from aws.errors import AwsError, CredentialsNotReadyError
from db.aws_credentials import record_check
from db.models import AwsCredentialsRow
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
    """A secret with the bridge's keys, as whoever rotates them sees it."""

    bridge: Bridge
    arn: str = ""
    issued: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arn = self.bridge.secrets.create_secret(Name=f"fleet-{uuid4()}", SecretString="{}")["ARN"]

    def put(self, text: str) -> None:
        self.bridge.secrets.put_secret_value(SecretId=self.arn, SecretString=text)

    def rotate(self) -> None:
        """Issue new keys, and put them into the secret."""
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

    def refused(self) -> int:
        """How many calls AWS has refused for keys of this secret."""
        refused = self.bridge.emulator.refused_keys()
        return sum(refused.get(keys["accessKeyId"], 0) for keys in self.issued)

    def told_by(self, *texts: object) -> list[str]:
        """What these say of what nobody may say."""
        secrets = [keys[name] for keys in self.issued for name in ("secretAccessKey", "sessionToken")]
        assert secrets
        return [secret for secret in secrets if any(secret in str(text) for text in texts)]


@pytest.fixture
def vault(bridge: Bridge) -> Iterator[Vault]:
    yield Vault(bridge)
    bridge.emulator.restore_keys()


def requests_of(aws: AwsClients) -> list[str]:
    """Where all that these clients send from now on goes."""
    sent: list[str] = []

    def note(request: Any, **_: Any) -> None:
        sent.append(request.url)

    for client in (aws.iot, aws.iot_data, aws.secrets):
        client.meta.events.register("before-send", note)
    return sent


def row(engine: Engine, vault: Vault) -> AwsCredentialsRow | None:
    with Session(engine) as session:
        return session.get(AwsCredentialsRow, vault.arn)


async def failures(bridge: Bridge, device: Device) -> list[str]:
    """What any attempt of the device's activities ended with, but success."""
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
    """Keys are put into the secret and the old ones revoked, again and again, while devices are provisioned.

    AWS refuses calls for their keys, and no activity ever fails: each goes out once more with the new ones.
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
    assert vault.refused() >= 3
    assert not vault.told_by(caplog.text, *(record.__dict__ for record in caplog.records))


async def test_new_keys_are_taken_up_before_the_old_ones_end(vault: Vault, engine: Engine) -> None:
    """The secret is read again every interval, and clients that there are already sign with what it holds."""
    vault.rotate()
    credentials = vault.credentials()
    aws = AwsClients(1, None, credentials)
    async with keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH):
        aws.call(aws.iot.list_things, maxResults=1)
        vault.rotate()

        async def taken_up() -> bool:
            return credentials.keys is not None and vault.issued[-1]["accessKeyId"] == (
                credentials.keys.access_key_id
            )

        await until(taken_up, "the new keys are in force")
        vault.revoke(vault.issued[0])
        aws.call(aws.iot.list_things, maxResults=1)
    assert vault.refused() == 0


def test_a_listing_goes_on_over_a_rotation(vault: Vault) -> None:
    """Keys revoked between two pages lose none of them."""
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
    assert vault.refused() >= 2


def test_refused_keys_that_nothing_replaces_are_not_asked_for_by_every_call(vault: Vault) -> None:
    """The calls fail as retryable, and the secret is left alone by most of them."""
    vault.rotate()
    reads: list[bool] = []
    secret = FleetSecret(vault.arn)
    credentials = FleetCredentials(vault.arn, secret.read, reads.append)
    credentials.refresh()
    aws = AwsClients(1, None, credentials)
    vault.revoke(vault.issued[-1])
    for _ in range(20):
        with pytest.raises(AwsError, match="UnrecognizedClientException") as refused:
            aws.call(aws.iot.list_things)
        assert refused.value.retryable
    assert len(reads) < 20


# Not ready


async def test_without_keys_nothing_is_called_and_no_device_fails(
    vault: Vault, settings: Settings, engine: Engine
) -> None:
    """A device waits, also for longer than a step is retried, and goes on once the secret holds keys."""
    credentials, bridge, queue, device = vault.credentials(), vault.bridge, "not-ready", Device("WAITING-1")
    aws = AwsClients(32, None, credentials)
    sent = requests_of(aws)
    hasty = settings.model_copy(
        update={"provisioning": settings.provisioning.model_copy(update={"step_retry_seconds": 1})}
    )
    async with (
        keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH),
        worker_on(queue, hasty, bridge, aws, engine),
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


def test_without_keys_a_call_is_refused_as_retryable(vault: Vault) -> None:
    """Each call, each page, the question where the bridge is; a client used past the seam signs nothing."""
    aws = AwsClients(1, None, vault.credentials())
    sent = requests_of(aws)
    for ask in (
        lambda: aws.call(aws.iot.list_things),
        lambda: list(aws.pages(aws.iot.get_paginator("list_things").paginate())),
        lambda: aws.find_location(None),
    ):
        with pytest.raises(CredentialsNotReadyError) as refused:
            ask()
        error = application_error(refused.value)
        assert error.type == "CredentialsNotReady"
        assert not error.non_retryable
        assert error.next_retry_delay is not None
    with pytest.raises(Exception, match="the secret has not been read yet"):
        aws.iot.list_things()
    assert sent == []


async def test_a_start_does_not_wait_for_ever_for_the_secret(vault: Vault, engine: Engine) -> None:
    """The first read has its time; after that the rest goes on, and the keys are taken up when they come."""
    vault.rotate()
    released, secret = threading.Event(), FleetSecret(vault.arn)

    def read() -> str:
        released.wait(60)
        return secret.read()

    credentials = FleetCredentials(vault.arn, read)
    async with keep_credentials(credentials, engine, interval=LATER, first_within=timedelta(0)):
        assert not credentials.ready
        released.set()

        async def written_down() -> bool:
            noted = await asyncio.to_thread(row, engine, vault)
            return noted is not None and noted.fetched_at is not None

        await until(written_down, "the keys are there")
        assert credentials.ready


async def test_a_worker_starts_without_keys_and_works_once_there_are_any(
    vault: Vault, engine: Engine
) -> None:
    """By the setting alone: the process says what is wrong, starts, and a device waits for the secret."""
    queue, device, bridge = "started-without", Device("STARTED-1"), vault.bridge
    said = b""
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue, **{VARIABLE: vault.arn}) as process:
        assert process.stderr is not None
        while b"worker started" not in said:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, said
            said += line
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_activity(device, "ensure_thing")
        vault.rotate()
        await bridge.wait_for_end(device)

        async def written_down() -> bool:
            noted = row(engine, vault)
            return noted is not None and noted.fetched_at == noted.checked_at and noted.error is None

        await until(written_down, "the keys were read")
        process.terminate()
        _, rest = await asyncio.wait_for(process.communicate(), 60)
    log = (said + rest).decode()
    assert "AWS is not called: InvalidSecret: accessKeyId: is missing" in log
    assert not vault.told_by(log)


# A read that fails


async def test_a_failed_read_keeps_the_last_good_keys(
    vault: Vault, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on, the age grows from the last success, and what is wrong is written down as a code."""
    caplog.set_level(logging.INFO)
    vault.rotate()
    credentials = vault.credentials()
    aws = AwsClients(1, None, credentials)
    async with keep_credentials(credentials, engine, interval=SOON, first_within=LONG_ENOUGH):
        broken = vault.issued[-1] | {"accessKeyId": "no key id"}
        vault.put(json.dumps(broken))

        async def written_down() -> bool:
            noted = await asyncio.to_thread(row, engine, vault)
            return noted is not None and noted.error == "InvalidSecret"

        await until(written_down, "a failed read")
        good = credentials.fetched_at
        aws.call(aws.iot.list_things)
        assert not await asyncio.to_thread(credentials.refresh)
    assert (credentials.ready, credentials.fetched_at) == (True, good)
    assert good is not None
    assert good < credentials.checked_at
    assert aws.credentials_age_seconds is not None
    noted = row(engine, vault)
    assert noted is not None
    assert noted.fetched_at == good
    assert "the last good keys stay in force: InvalidSecret: accessKeyId: is not valid" in caplog.text
    assert not vault.told_by(caplog.text, repr(credentials.keys), repr(credentials), repr(vars(aws)), noted)


def test_a_secret_that_is_not_to_be_had_is_named_by_awss_code(vault: Vault) -> None:
    """Whatever AWS says is retryable, and gives a code."""
    credentials = FleetCredentials(f"{vault.arn}-none", FleetSecret(f"{vault.arn}-none").read)
    assert not credentials.refresh()
    assert (credentials.ready, credentials.error) == (False, "ResourceNotFoundException")


GOOD = {"accessKeyId": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": "hush/hush+hush"}


@pytest.mark.parametrize(
    ("secret", "said"),
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
def test_a_malformed_secret_is_told_by_its_field(
    secret: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a failed read that names each field at fault, and no value."""
    credentials = FleetCredentials("arn", lambda: secret)
    assert not credentials.refresh()
    assert caplog.messages[-1].endswith(f"AWS is not called: InvalidSecret: {said}")
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    "more", [{}, {"sessionToken": None}, {"sessionToken": ""}, {"sessionToken": "x"}, {"rotatedBy": "us"}]
)
def test_a_secret_is_taken_with_or_without_the_rest(more: dict[str, Any]) -> None:
    """A session token is optional, and what else a rotation keeps there is its own."""
    credentials = FleetCredentials("arn", lambda: json.dumps(GOOD | more))
    assert credentials.refresh()
    assert credentials.keys is not None
    assert credentials.keys.secret_access_key.get_secret_value() == GOOD["secretAccessKey"]


# Over HTTP


async def test_the_doors_say_whether_there_are_keys(
    vault: Vault,
    engine: Engine,
    enrolment: EnrolmentHarness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until a worker has read the secret nobody enrols and nothing is written; afterwards a failure is none.

    `/readyz` names the credentials, with their age.
    """
    monkeypatch.setenv(VARIABLE, vault.arn)
    device, credentials = Device("READY-1"), vault.credentials()
    asked = {"serialNumber": device.serial_number, "tenantId": str(device.tenant_id)}

    async def read() -> None:
        async with keep_credentials(credentials, engine, interval=LATER, first_within=LONG_ENOUGH):

            async def written_down() -> bool:
                noted = await asyncio.to_thread(row, engine, vault)
                return noted is not None and noted.checked_at >= credentials.checked_at

            await until(written_down, "how it went")

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
            with enrolment.nothing_written(device):
                refused = [
                    await http.post(VERIFY, json=asked),
                    await http.post(REGISTERED, json=enrolment.body(device)),
                ]
            for answer in refused:
                assert problem(answer)["status"] == 503
                assert "AWS credentials are not ready" in problem(answer)["detail"]
                assert answer.headers["retry-after"]
            # The second time after a worker has tried in vain.
            await read()
        vault.rotate()
        await read()
        vault.put("{}")
        await read()
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["aws_credentials"].startswith("ok, read ")
        assert (await http.post(VERIFY, json=asked)).status_code == 200
        assert (await http.post(REGISTERED, json=enrolment.body(device))).status_code == 200


async def test_whose_key_it_is_comes_before_whether_there_are_keys(
    vault: Vault, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant who asks for another's device is refused as ever."""
    monkeypatch.setenv(VARIABLE, vault.arn)
    device = Device("READY-2")
    async with open_http_api(engine) as opened, opened.tenant(uuid4()) as http:
        answer = await http.post(
            VERIFY, json={"serialNumber": device.serial_number, "tenantId": str(device.tenant_id)}
        )
    assert problem(answer)["status"] == 403


def test_what_one_worker_reads_another_does_not_undo(vault: Vault, engine: Engine) -> None:
    """The last success of any of them stands, beside what the last check found."""
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
    noted = row(engine, vault)
    assert noted is not None
    assert (noted.fetched_at, noted.error) == (first.fetched_at, "InvalidSecret")

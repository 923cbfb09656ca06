"""Encrypted payloads: Temporal cannot read them, and operators read them through the codec server."""

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowHandle
from temporalio.common import RawValue

from api.codec import BODY_LIMIT, create_codec_app
from api.server import serving_app
from aws.clients import AwsClients
from domain.command import Command, CommandTarget, TargetKind
from domain.encryption import EncryptionKeys
from domain.provisioning_status import ProvisioningStatus
from embedded.processes import choose_ports
from embedded.stack import Addresses
from orchestration.client import connect
from orchestration.codec import EncryptionCodec, UnreadablePayloadError
from orchestration.requests import command_sent, send_command
from settings import ClientSettings, CodecSettings, InvalidSettingsError, Settings
from tests.harness.bridge import Bridge, Device, until, worker_on
from tests.harness.command_line import call
from tests.harness.http_api import HttpApi, problem
from tests.workflows.test_no_key_material import decoded

TEMPORAL_CLI = Path(sys.executable).parent / "temporal"
# OLD has the longest id that is allowed: an encrypted summary has to fit with it too.
OLD, NEW = "2026-11".ljust(32, "_"), "2026-12"
KEYS = {OLD: bytes(range(32)), NEW: bytes(range(32, 64))}
KEYS_SETTING, KEY_ID_SETTING = "IOT_AWS_ENCRYPTION__KEYS", "IOT_AWS_ENCRYPTION__KEY_ID"
WRITTEN = json.dumps({key_id: base64.b64encode(key).decode() for key_id, key in KEYS.items()})
UI = "http://localhost:8233"
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'{"serialNumber":"SN-1"}')


def keys(key_id: str | None, *also: str) -> EncryptionKeys:
    """Return a key for new payloads, and others for decryption only."""
    known = {each: KEYS[each] for each in (key_id, *also) if each}
    return EncryptionKeys(known, key_id)


async def encrypted(by: str, payload: Payload = PLAIN) -> Payload:
    (done,) = await EncryptionCodec(keys(by)).encode([payload])
    return done


# --- The codec


@given(data=st.binary(max_size=200), encoding=st.binary(max_size=20))
async def test_decrypted_payload_equals_the_original(data: bytes, encoding: bytes) -> None:
    """Any payload is restored with its metadata, and encrypting it twice gives different bytes."""
    codec = EncryptionCodec(keys(OLD))
    payload = Payload(metadata={"encoding": encoding, "messageType": b"x"}, data=data)
    once, again = await codec.encode([payload, payload])
    assert (dict(once.metadata), once.data != again.data) == (
        {"encoding": b"binary/encrypted", "encryption-key-id": OLD.encode()},
        True,
    )
    assert await codec.decode([once, again]) == [payload, payload]


@pytest.mark.parametrize(
    "payload",
    [PLAIN, Payload(), Payload(metadata={"encoding": b"binary/encrypted"}, data=b"another codec's")],
)
async def test_payload_without_our_key_id_is_unchanged(payload: Payload) -> None:
    """Clients send plain JSON, and a payload of another codec is handled by the payload converter."""
    assert await EncryptionCodec(keys(OLD)).decode([payload]) == [payload]


async def test_keys_without_a_key_id_only_decrypt() -> None:
    """Keys without a key id decrypt payloads, but encrypt none."""
    reading = EncryptionCodec(keys(None, OLD))
    assert await reading.encode([PLAIN]) == [PLAIN]
    assert await reading.decode([await encrypted(OLD)]) == [PLAIN]


async def test_unknown_key_is_named_with_the_setting() -> None:
    """The error names the missing key and its setting; a forged key id cannot break a log line."""
    with pytest.raises(UnreadablePayloadError, match=f"'{NEW}', which is not in {KEYS_SETTING}"):
        await EncryptionCodec(keys(OLD)).decode([await encrypted(NEW)])
    forged = Payload(metadata={"encoding": b"binary/encrypted", "encryption-key-id": b"a\nb\xff" * 99})
    with pytest.raises(UnreadablePayloadError) as refused:
        await EncryptionCodec(keys(OLD)).decode([forged])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


async def test_changed_payload_is_refused() -> None:
    """A change of any byte of the content, of its length or of the key id is noticed."""
    sealed = await encrypted(OLD)
    codec = EncryptionCodec(EncryptionKeys({OLD: KEYS[OLD], NEW: KEYS[OLD]}, OLD))
    contents = [
        *(
            sealed.data[:at] + bytes([sealed.data[at] ^ 1]) + sealed.data[at + 1 :]
            for at in range(len(sealed.data))
        ),
        *(sealed.data[:size] for size in (0, 11, 12, 27, len(sealed.data) - 1)),
    ]
    changed = [Payload(metadata=sealed.metadata, data=data) for data in contents]
    changed.append(Payload(metadata={**sealed.metadata, "encryption-key-id": NEW.encode()}, data=sealed.data))
    for payload in changed:
        with pytest.raises(UnreadablePayloadError, match="cannot be decrypted under the key"):
            await codec.decode([payload])


# --- Settings


def loaded(**variables: str) -> ClientSettings:
    with patch.dict(os.environ, variables, clear=True):
        return ClientSettings.load()


def test_settings_read_keys_and_never_show_them() -> None:
    """The settings return the keys for the codec, and no representation contains one."""
    settings = loaded(**{KEYS_SETTING: WRITTEN, KEY_ID_SETTING: NEW})
    assert settings.encryption.decoded_keys == EncryptionKeys(KEYS, NEW)
    shown = f"{settings!r} {settings} {settings.encryption.decoded_keys!r}"
    assert not [key for key in KEYS.values() if str(key) in shown or base64.b64encode(key).decode() in shown]


def test_keys_and_key_id_are_optional() -> None:
    """Without keys all payloads are plain; without a key id no new payload is encrypted."""
    assert loaded().encryption.decoded_keys is None
    assert loaded(**{KEYS_SETTING: WRITTEN}).encryption.decoded_keys == EncryptionKeys(KEYS, None)


SECRET = base64.b64encode(KEYS[OLD]).decode()


@pytest.mark.parametrize(
    ("variables", "at_fault", "reason"),
    [
        (
            {KEY_ID_SETTING: "k"},
            KEY_ID_SETTING,
            "one of the ids in IOT_AWS_ENCRYPTION__KEYS, which is not set",
        ),
        ({KEYS_SETTING: WRITTEN, KEY_ID_SETTING: "k"}, KEY_ID_SETTING, f"must be one of the ids .*: {OLD}, "),
        ({KEYS_SETTING: SECRET}, KEYS_SETTING, "is not JSON"),
        ({KEYS_SETTING: json.dumps([SECRET])}, KEYS_SETTING, "must be a JSON object"),
        ({KEYS_SETTING: "{}"}, KEYS_SETTING, "at least one key"),
        ({KEYS_SETTING: json.dumps({SECRET: "k"})}, KEYS_SETTING, "an id must be 1 to 32"),
        ({KEYS_SETTING: json.dumps({"k" * 33: SECRET})}, KEYS_SETTING, "an id must be 1 to 32"),
        ({KEYS_SETTING: json.dumps({"k": SECRET[4:]})}, KEYS_SETTING, "the key k must be 32 bytes in base64"),
        ({KEYS_SETTING: json.dumps({"k": SECRET[:-1]})}, KEYS_SETTING, "the key k must be 32 bytes"),
        ({KEYS_SETTING: json.dumps({"k": SECRET + "AAAA"})}, KEYS_SETTING, "the key k must be 32 bytes"),
        ({KEYS_SETTING: json.dumps({"k": 7}), KEY_ID_SETTING: "k"}, KEYS_SETTING, "the key k must be 32"),
    ],
)
def test_invalid_key_setting_is_refused_by_name(
    variables: dict[str, str], at_fault: str, reason: str
) -> None:
    """The error is one line, and does not repeat a key."""
    with pytest.raises(InvalidSettingsError, match=f"^{at_fault}: .*{reason}") as refused:
        loaded(**variables)
    assert len(str(refused.value).splitlines()) == 1
    assert SECRET[4:-4] not in str(refused.value)


# --- The saga


@asynccontextmanager
async def running_with_keys(
    bridge: Bridge, settings: Settings, aws: AwsClients, encryption: EncryptionKeys
) -> AsyncIterator[Bridge]:
    """Run a worker with these keys on the task queue of the settings, and return a bridge with the keys."""
    encrypting_bridge = Bridge(
        await connect(encryption),
        bridge.engine,
        bridge.aws_endpoint_url,
        {"iot": bridge.iot, "iot-data": bridge.iot_data, "secretsmanager": bridge.secrets},
    )
    async with worker_on(queue_of(settings), settings, encrypting_bridge, aws, bridge.engine):
        yield encrypting_bridge


def queue_of(settings: Settings) -> str:
    return settings.worker.task_queue


@pytest.fixture
def queue_settings(settings: Settings) -> Settings:
    """Return settings with a task queue that no other test uses."""
    worker = settings.worker.model_copy(update={"task_queue": f"encrypted-{uuid4()}"})
    return settings.model_copy(update={"worker": worker})


async def stored_in_temporal(handle: WorkflowHandle[Any, Any]) -> str:
    """Return all that Temporal can read of a run, without its search attributes."""
    events = [MessageToDict(event) async for event in handle.fetch_history_events()]
    described = MessageToDict((await handle.describe()).raw_description)
    readable = without_search_attributes([*events, described])
    return "\n".join([json.dumps(readable), *decoded(readable)])


def without_search_attributes(shown: Any) -> Any:
    match shown:
        case dict():
            return {
                name: without_search_attributes(each)
                for name, each in shown.items()
                if name != "searchAttributes"
            }
        case list():
            return [without_search_attributes(each) for each in shown]
        case _:
            return shown


async def test_saga_with_encryption_stores_nothing_readable_in_temporal(
    bridge: Bridge, queue_settings: Settings, aws: AwsClients
) -> None:
    """No serial number, Thing name or ARN is in the history; names of the longest length fit."""
    device = Device("UNREAD-" + 87 * "x")
    async with running_with_keys(bridge, queue_settings, aws, keys(OLD)) as encrypting_bridge:
        await encrypting_bridge.signal(device, device.event("Provisioned"), queue=queue_of(queue_settings))
        await encrypting_bridge.signal(device, device.event("Suspended", 1), queue=queue_of(queue_settings))
        await encrypting_bridge.wait_for_end(device)
        status = await encrypting_bridge.status(device)
        plain = bridge.client.get_workflow_handle(device.workflow_id)
        answer = await plain.query("status", result_type=RawValue)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert (status["thingName"], status["rejectedCount"]) == (device.thing_name, 0)
    readable = await stored_in_temporal(plain)
    for secret in (device.serial_number, device.thing_name, "arn:aws", "Suspended"):
        assert secret not in readable, secret
        assert secret not in str(answer.payload), secret
    assert "UNREAD" in str([dict(run.search_attributes) async for run in bridge.runs(device.workflow_id)])


async def test_failure_is_readable_by_the_bridge_only(
    faulty_bridge: Bridge, queue_settings: Settings, aws: AwsClients
) -> None:
    """The binding and `status` show the error; Temporal has neither its message nor a stack trace."""
    device = Device("UNREAD-FAILURE")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code="AccessDeniedException"
    )
    async with running_with_keys(faulty_bridge, queue_settings, aws, keys(OLD)) as encrypting_bridge:
        await encrypting_bridge.signal(device, device.event("Provisioned"), queue=queue_of(queue_settings))
        failed = await encrypting_bridge.wait_for_status(device, ProvisioningStatus.FAILED)
        error = (await encrypting_bridge.status(device))["lastError"]
        readable = await stored_in_temporal(faulty_bridge.client.get_workflow_handle(device.workflow_id))
        assert (failed.failure_code, failed.failure_reason) == (error["code"], error["reason"])
        assert error["code"] == "AccessDenied"
        assert "Encoded failure" in readable
        for secret in (device.thing_name, error["reason"][:30], "activities/", "Traceback"):
            assert secret not in readable, secret
        await encrypting_bridge.signal(
            device, device.event("Decommissioned", 1), queue=queue_of(queue_settings)
        )
        await encrypting_bridge.wait_for_end(device)


async def test_keys_are_rotated_while_a_saga_is_running(
    faulty_bridge: Bridge, queue_settings: Settings, aws: AwsClients
) -> None:
    """The saga goes on with the new key, decrypts with the old one, and accepts a plain client's signals."""
    device = Device("ROTATED")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code="AccessDeniedException"
    )
    async with running_with_keys(faulty_bridge, queue_settings, aws, keys(OLD)) as encrypting_bridge:
        await encrypting_bridge.signal(device, device.event("Provisioned"), queue=queue_of(queue_settings))
        await encrypting_bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    faulty_bridge.emulator.clear_faults()
    async with running_with_keys(faulty_bridge, queue_settings, aws, keys(NEW, OLD)) as encrypting_bridge:
        await faulty_bridge.signal(device, device.event("Suspended", 1), queue=queue_of(queue_settings))
        await faulty_bridge.signal(device, signal="retry", queue=queue_of(queue_settings))
        await encrypting_bridge.wait_for_end(device)
        assert (await encrypting_bridge.status(device))["rejectedCount"] == 0
    assert faulty_bridge.require_binding(device).last_shadow_reported_at is not None
    readable = await stored_in_temporal(faulty_bridge.client.get_workflow_handle(device.workflow_id))
    assert all(base64.b64encode(key_id.encode()).decode() in readable for key_id in (OLD, NEW))


async def test_event_under_an_unknown_key_waits_for_the_key(
    bridge: Bridge, queue_settings: Settings, aws: AwsClients
) -> None:
    """A worker that cannot decrypt it neither rejects nor loses it; a worker with the key handles it."""
    device = Device("WAITING")
    sender = await connect(keys(NEW))
    async with running_with_keys(bridge, queue_settings, aws, keys(OLD)):
        handle = await sender.start_workflow(
            "DeviceLifecycle",
            id=device.workflow_id,
            task_queue=queue_of(queue_settings),
            start_signal="device_event",
            start_signal_args=[device.event("Provisioned")],
            # The server retries the task after this time; the default is ten seconds.
            task_timeout=timedelta(seconds=1),
        )

        async def failed() -> bool:
            return any(
                [
                    event.HasField("workflow_task_failed_event_attributes")
                    async for event in handle.fetch_history_events()
                ]
            )

        await until(failed, "a workflow task has failed")
    async with running_with_keys(bridge, queue_settings, aws, keys(OLD, NEW)) as encrypting_bridge:
        await encrypting_bridge.wait_for_end(device)
        assert (await encrypting_bridge.status(device))["rejectedCount"] == 0
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_command_is_read_back_by_its_id(bridge: Bridge, queue_settings: Settings) -> None:
    """A client with the keys reads the command back, also with a summary of the greatest length."""
    client = await connect(keys(OLD))
    query = "thingName:" + 500 * '"'
    command = Command(
        correlation_id=uuid4(),
        target=CommandTarget(kind=TargetKind.QUERY, value=query),
        operation="reboot",
    )
    sent = await send_command(client, command, queue_of(queue_settings), "granit")
    assert await command_sent(client, sent) == command
    assert await command_sent(bridge.client, sent) is None
    await client.get_workflow_handle(sent).terminate()


# --- The codec server


def codec_settings(encryption: EncryptionKeys | None) -> CodecSettings:
    variables = {}
    if encryption is not None:
        written = {each: base64.b64encode(key).decode() for each, key in encryption.keys.items()}
        variables = {KEYS_SETTING: json.dumps(written), KEY_ID_SETTING: encryption.key_id or ""}
    with patch.dict(os.environ, variables):
        return CodecSettings.load()


@asynccontextmanager
async def codec_server(engine: Engine, encryption: EncryptionKeys, ui: str = UI) -> AsyncIterator[HttpApi]:
    app = create_codec_app(codec_settings(encryption), ui)
    async with app.router.lifespan_context(app):
        yield HttpApi(app, engine)


def body_of(payloads: Sequence[Payload]) -> dict[str, Any]:
    return {"payloads": [MessageToDict(payload) for payload in payloads]}


async def test_codec_server_decodes_and_encodes_for_an_operator(engine: Engine) -> None:
    """It accepts the requests of Temporal's UI and command line; plain payloads are unchanged."""
    async with codec_server(engine, keys(NEW, OLD)) as server, server.operator() as http:
        body = body_of([await encrypted(OLD), PLAIN])
        answer = await http.post("/decode", json=body)
        assert (answer.status_code, answer.json()) == (200, body_of([PLAIN, PLAIN]))
        sealed = (await http.post("/encode", json=body_of([PLAIN]))).json()
        key_id = base64.b64decode(sealed["payloads"][0]["metadata"]["encryption-key-id"])
        assert key_id == NEW.encode()
        assert (await http.post("/decode", json=sealed)).json() == body_of([PLAIN])


@pytest.mark.parametrize("path", ["/decode", "/encode"])
async def test_codec_server_refuses_other_callers(engine: Engine, path: str) -> None:
    """A call without a key is 401 and one with a tenant's key is 403, but `/healthz` needs no key."""
    body = body_of([await encrypted(OLD)])
    async with codec_server(engine, keys(OLD)) as server:
        async with server.client() as http:
            assert problem(await http.post(path, json=body))["status"] == 401
            assert (await http.get("/healthz")).json() == {"status": "ok"}
        async with server.tenant(uuid4()) as http:
            assert problem(await http.post(path, json=body))["status"] == 403


async def test_codec_server_refuses_what_it_cannot_decode(engine: Engine) -> None:
    """An unknown key is 422 and named, an invalid body 400, a body that is too large 413."""
    async with codec_server(engine, keys(OLD)) as server, server.operator() as http:
        unknown = problem(await http.post("/decode", json=body_of([await encrypted(NEW)])))
        assert (unknown["status"], NEW in unknown["detail"]) == (422, True)
        for body in (b"", b"{", b"\xff", b'{"payloads": 7}', b"[" * 99_999):
            assert problem(await http.post("/decode", content=body))["status"] == 400, body[:40]
        assert problem(await http.post("/decode", content=b" " * (BODY_LIMIT + 1)))["status"] == 413


async def test_only_the_origin_of_the_ui_may_call(engine: Engine) -> None:
    """The exact origin is allowed with credentials, and can read the reason of a refusal."""
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-namespace",
    }
    allow = "Access-Control-Allow-Origin"
    async with codec_server(engine, keys(OLD)) as server, server.client() as http:
        answer = await http.options("/decode", headers={"Origin": UI, **preflight})
        assert (answer.status_code, answer.headers[allow]) == (200, UI)
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        refused = await http.post("/decode", headers={"Origin": UI}, json={})
        assert (refused.status_code, refused.headers[allow]) == (401, UI)
        for origin in ("http://localhost:8234", "https://localhost:8233", f"{UI}.example", "null"):
            answer = await http.options("/decode", headers={"Origin": origin, **preflight})
            assert (answer.status_code, answer.headers.get(allow)) == (400, None), origin


async def test_browser_signs_in_with_a_cookie(engine: Engine) -> None:
    """The operator's key is in a cookie that neither scripts nor pages of other sites can use."""
    async with codec_server(engine, keys(OLD)) as server, server.client() as http:
        assert "<form" in (await http.get("/signin")).text
        for wrong in ("no key", server.key(uuid4())):
            refused = await http.post("/signin", data={"key": wrong})
            assert (refused.status_code in {401, 403}, "set-cookie" in refused.headers) == (True, False)
        signed_in = await http.post("/signin", data={"key": server.key(None)})
        assert signed_in.status_code == 200
        assert {"HttpOnly", "SameSite=strict"} <= set(signed_in.headers["set-cookie"].split("; "))
        answer = await http.post("/decode", json=body_of([await encrypted(OLD)]))
        assert (answer.status_code, answer.json()) == (200, body_of([PLAIN]))


async def test_cookie_is_secure_where_the_ui_has_tls(engine: Engine) -> None:
    """The cookie is secure if the UI has TLS, also if a proxy ends TLS before the codec server."""
    for ui, secure in ((UI, False), ("https://temporal.example.com", True)):
        async with codec_server(engine, keys(OLD), ui) as server, server.client() as http:
            signed_in = await http.post("/signin", data={"key": server.key(None)})
            assert ("Secure" in signed_in.headers["set-cookie"].split("; ")) == secure


def test_codec_server_needs_keys_and_an_exact_origin(stack: Addresses) -> None:
    """The codec server does not start without keys, or with a wildcard or a path in the origin."""
    refused = call("codec")
    assert (refused.exit_code, KEYS_SETTING in refused.stderr) == (2, True)
    for origin in ("*", "localhost", f"{UI}/", "http://*.example"):
        refused = call("codec", "--ui-origin", origin, **{KEYS_SETTING: WRITTEN})
        assert (refused.exit_code, "must be an origin" in refused.stderr) == (2, True), origin


async def test_temporal_cli_shows_the_history_through_the_codec_server(
    bridge: Bridge, http_api: HttpApi, queue_settings: Settings, aws: AwsClients
) -> None:
    """`temporal workflow show` shows the serial number only with the codec server."""
    device = Device("SHOWN")
    async with running_with_keys(bridge, queue_settings, aws, keys(OLD)) as encrypting_bridge:
        await encrypting_bridge.signal(device, device.event("Provisioned"), queue=queue_of(queue_settings))
        await encrypting_bridge.wait_for_end(device)
    (port,) = choose_ports(0)
    with serving_app(create_codec_app(codec_settings(keys(OLD)), UI), port) as address:
        assert device.serial_number not in await shown(device)
        readable = await shown(
            device, "--codec-endpoint", address, "--codec-auth", f"Bearer {http_api.key(None)}"
        )
    assert f'"serialNumber":"{device.serial_number}"' in readable


async def shown(device: Device, *options: str) -> str:
    """Return the payloads of a run as the official command line shows them, without search attributes."""
    process = await asyncio.create_subprocess_exec(
        *(TEMPORAL_CLI, "workflow", "show", "--output", "json", "--workflow-id", device.workflow_id),
        *options,
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    return "\n".join(decoded(without_search_attributes(json.loads(stdout))))

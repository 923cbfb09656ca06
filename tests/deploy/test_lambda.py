"""The Lambda functions of fleet provisioning, invoked as by Lambda, against an API over HTTP."""

import asyncio
import importlib.util
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvicorn
from sqlalchemy import Engine
from sqlmodel import Session

from api.app import create_app
from aws.clients import AwsClients
from db.api_keys import create_key, revoke_key
from db.aws_location import save_location
from db.bindings import newest_binding
from db.models import DeviceRow
from domain.api_key import ApiKey
from domain.provisioning_status import ProvisioningStatus
from settings import ApiSettings
from tests import ROOT
from tests.harness.bridge import Bridge, Device, until

FOLDER = ROOT / "deploy" / "lambda"
README = (FOLDER / "README.md").read_text()
KEY = "tb_hush-hush"
ALLOWED = {"allowProvisioning": True, "reason": None}
DENIED = {"allowProvisioning": False, "parameterOverrides": {}}
VERIFY = "/api/iot/fleet-provisioning/verify"
THING_TYPE = "thingbridge-device"
CLAIM, CERTIFICATE = "c1" * 32, "ce" * 32
PEM = "-----BEGIN CERTIFICATE-----\nMIIhush\n-----END CERTIFICATE-----\n"


class Context:
    """The Lambda context, with the remaining time of the invocation."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(max(0.0, self._ends - time.monotonic()) * 1000)


def container(file: str) -> ModuleType:
    """Load a function as a new container does, without the state of another container."""
    spec = importlib.util.spec_from_file_location(f"container_of_{file}", FOLDER / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hook_event(**parameters: object) -> dict[str, Any]:
    """Return the event that AWS passes to a pre-provisioning hook."""
    return {
        "claimCertificateId": CLAIM,
        "certificateId": CERTIFICATE,
        "certificatePem": PEM,
        "templateArn": "arn:aws:iot:eu-west-1:111122223333:provisioningtemplate/devices",
        "clientId": "221a6d10-9c7f-42f1-9153-e52e6fc869c1",
        "parameters": parameters,
    }


def thing_event(thing_name: str, operation: str = "CREATED", **attributes: str) -> dict[str, Any]:
    """Return a registry event of a Thing."""
    return {
        "eventType": "THING_EVENT",
        "eventId": "f5ae9b94-8b8e-4d8e-8c8f-b3266dd89853",
        "timestamp": 1234567890123,
        "operation": operation,
        "accountId": "123456789012",
        "thingId": "b604f69c-aa9a-4d4a-829e-c480e958a0b5",
        "thingName": thing_name,
        "versionNumber": 1,
        "thingTypeName": None,
        "attributes": attributes,
    }


class Request(BaseHTTPRequestHandler):
    """One request to the scripted API."""

    server: "Script"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, self.headers["Authorization"], body))
        step = self.server.steps[min(len(self.server.calls), len(self.server.steps)) - 1]
        if callable(step):
            step(self)
        else:
            self.respond(*step)

    def respond(self, status: int, body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


Step = tuple[int, object] | Callable[[Request], None]


class Script(ThreadingHTTPServer):
    """A scripted API for responses that the real API does not send: late, invalid or changing ones."""

    daemon_threads = True

    def __init__(self, *steps: Step) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.steps = steps
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Return a function that starts a scripted API. The last step is repeated for every further request."""
    started: list[Script] = []

    def make(*steps: Step) -> Script:
        started.append(Script(*steps))
        return started[-1]

    yield make
    for each in started:
        each.over.set()
        each.shutdown()
        each.server_close()


class RealApi:
    """The real API of the bridge, served over HTTP, and its keys."""

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self._engine = engine

    def key(self, tenant_id: UUID | None) -> str:
        """Create a key of a tenant, or of an operator for None."""
        with Session(self._engine) as session, session.begin():
            return create_key(session, tenant_id, "a test")

    def revoke(self, key: str) -> None:
        read = ApiKey.parse(key)
        assert read is not None
        with Session(self._engine) as session, session.begin():
            revoke_key(session, read.id)


@pytest.fixture(scope="module")
def api(bridge: Bridge, aws: AwsClients) -> Iterator[RealApi]:
    """Serve the API in its own thread, because the functions block theirs."""
    with Session(bridge.engine) as session, session.begin():
        save_location(session, aws.find_location(None))
    settings = ApiSettings.load()
    without_cache = settings.api.model_copy(update={"key_cache_seconds": 0})
    app = create_app(settings.model_copy(update={"api": without_cache}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield RealApi(f"http://127.0.0.1:{listening.getsockname()[1]}", bridge.engine)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def attached(bridge: Bridge) -> dict[str, Any]:
    """Return the event of a Thing whose certificate is attached."""
    device, certificate = Device("JITP-7"), new_certificate(bridge)
    event = enrol(bridge, device, certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    return event


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the environment variables. An empty value unsets a variable."""

    def configure(url: str, tenant_id: UUID | None = None, **variables: str) -> None:
        given = {"THINGBRIDGE_URL": url, "THINGBRIDGE_KEY": KEY, **variables}
        if tenant_id is not None:
            given["THINGBRIDGE_TENANT_ID"] = str(tenant_id)
        for name, value in given.items():
            if value:
                monkeypatch.setenv(name, value)
            else:
                monkeypatch.delenv(name, raising=False)

    return configure


def send_nothing(request: Request) -> None:
    """Send no response while the test runs."""
    request.server.over.wait(60)


def send_slowly(request: Request) -> None:
    """Send header lines all the time, in a response that never ends."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not request.server.over.wait(0.05):
        request.wfile.write(b"X-More: x\r\n")


def close_connection(request: Request) -> None:
    """Close the connection without a response."""
    request.close_connection = True


# --- The hook


INVALID_RESPONSES: dict[str, Step] = {
    "late": send_nothing,
    "slow": send_slowly,
    "closed connection": close_connection,
    "no JSON": (200, b"<html>allowProvisioning: true</html>"),
    "no object": (200, [ALLOWED]),
    "text instead of true": (200, {"allowProvisioning": "true"}),
    "empty object": (200, {}),
    "another status": (202, ALLOWED),
    "redirect": (307, ALLOWED),
    "unavailable": (503, {"title": "Service Unavailable", "detail": "no database"}),
    "invalid key": (401, {"title": "Unauthorized", "detail": "this is no key"}),
}


@pytest.mark.parametrize("response", INVALID_RESPONSES.values(), ids=INVALID_RESPONSES)
def test_hook_denies_after_a_late_or_invalid_response(
    script: Callable[..., Script], configured: Callable[..., None], response: Step
) -> None:
    """A device is allowed only by a 200 in time whose JSON contains true."""
    configured(script(response).url, uuid4())
    decided = container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(1))
    assert decided == DENIED


def test_hook_retries_once_if_there_is_time(
    script: Callable[..., Script], configured: Callable[..., None]
) -> None:
    """It makes a second attempt after a closed connection or a busy bridge."""
    tenant = uuid4()
    failed: list[Step] = [close_connection, (503, {}), (429, {})]
    for first in failed:
        api = script(first, (200, ALLOWED))
        configured(api.url, tenant)
        decided = container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(5))
        assert decided["allowProvisioning"] is True
        assert api.calls == 2 * [
            (VERIFY, f"Bearer {KEY}", {"serialNumber": "SN-1", "tenantId": str(tenant)}),
        ]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"serialnumber": "SN-1"},
        {"SerialNumber": ""},
        {"SerialNumber": "SN 1"},
        {"SerialNumber": "SN-1/../x"},
        {"SerialNumber": "S" * 95},
        {"SerialNumber": None},
        {"SerialNumber": ["SN-1"]},
    ],
)
def test_hook_denies_an_invalid_serial_number(
    script: Callable[..., Script], configured: Callable[..., None], parameters: dict[str, Any]
) -> None:
    """It sends no request for a missing or invalid serial number."""
    api = script((200, ALLOWED))
    configured(api.url, uuid4())
    hook = container("pre_provisioning_hook")
    assert hook.handler(hook_event(**parameters), Context(5)) == DENIED
    assert hook.handler(hook_event() | {"parameters": None}, Context(5)) == DENIED
    assert api.calls == []


def test_hook_denies_if_a_cold_start_used_up_the_time(
    script: Callable[..., Script], configured: Callable[..., None]
) -> None:
    """Without time for a request it returns a denial instead of running into the timeout."""
    api = script((200, ALLOWED))
    configured(api.url, uuid4())
    assert container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(0.4)) == DENIED
    assert api.calls == []


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"THINGBRIDGE_URL": ""}, "THINGBRIDGE_URL"),
        ({"THINGBRIDGE_URL": "http://bridge.example"}, "THINGBRIDGE_URL must begin with https://"),
        ({"THINGBRIDGE_KEY": ""}, "THINGBRIDGE_KEY"),
        ({"THINGBRIDGE_KEY_SECRET": "both"}, "THINGBRIDGE_KEY"),
        ({"THINGBRIDGE_TENANT_ID": "mine"}, "THINGBRIDGE_TENANT_ID must be a UUID"),
        ({"THINGBRIDGE_TENANT_ID": ""}, "THINGBRIDGE_TENANT_ID"),
        ({"THINGBRIDGE_TENANT_PARAMETER": "Tenant"}, "THINGBRIDGE_TENANT_ID"),
    ],
)
def test_hook_reports_an_invalid_variable(
    configured: Callable[..., None], variables: dict[str, str], named: str
) -> None:
    """The error names the variable and does not contain the key. AWS treats a failed hook as a denial."""
    configured(**{"url": "https://bridge.example", "THINGBRIDGE_TENANT_ID": str(uuid4())} | variables)
    with pytest.raises(ValueError, match=named) as refused:
        container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(5))
    assert KEY not in str(refused.value)


async def test_hook_returns_the_decision_of_the_bridge_and_the_thing_name(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """A new serial number is allowed. A decommissioned one, or a key of another tenant, is denied."""
    new = Device("HOOK-1")
    decommissioned = Device("HOOK-2", new.tenant_id)
    events = decommissioned.event("Decommissioned", 1), decommissioned.event("Provisioned")
    await bridge.send_and_wait(decommissioned, *events)

    async def decided(device: Device, key: str) -> dict[str, Any]:
        configured(api.url, device.tenant_id, THINGBRIDGE_KEY=key)
        return await invoke("pre_provisioning_hook", hook_event(SerialNumber=device.serial_number))

    key = api.key(new.tenant_id)
    overrides = {"ThingName": new.thing_name, "CertificateId": CERTIFICATE, "ClaimCertificateId": CLAIM}
    allowed = {"allowProvisioning": True, "parameterOverrides": overrides}
    assert await decided(new, key) == allowed
    assert await decided(new, api.key(None)) == allowed
    assert await decided(decommissioned, key) == DENIED
    assert await decided(new, api.key(uuid4())) == DENIED
    assert await decided(new, "no key") == DENIED


async def test_operator_key_allows_every_tenant_and_no_tenant(
    api: RealApi, configured: Callable[..., None]
) -> None:
    """The tenant comes from the named parameter. The zero UUID selects devices without a tenant."""
    key, device = api.key(None), Device("HOOK-3")
    configured(api.url, THINGBRIDGE_KEY=key, THINGBRIDGE_TENANT_ID="", THINGBRIDGE_TENANT_PARAMETER="Tenant")
    event = hook_event(SerialNumber="HOOK-3", Tenant=str(device.tenant_id))
    decided = await invoke("pre_provisioning_hook", event)
    assert decided["parameterOverrides"]["ThingName"] == device.thing_name
    for invalid in ({"SerialNumber": "HOOK-3"}, {"SerialNumber": "HOOK-3", "Tenant": "mine"}):
        assert await invoke("pre_provisioning_hook", hook_event(**invalid)) == DENIED
    configured(api.url, UUID(int=0), THINGBRIDGE_KEY=key, THINGBRIDGE_TENANT_PARAMETER="")
    decided = await invoke("pre_provisioning_hook", hook_event(SerialNumber="HOOK-3"))
    assert decided["parameterOverrides"]["ThingName"] == Device("HOOK-3", None).thing_name


async def test_key_is_read_once_and_again_after_it_was_revoked(
    api: RealApi, bridge: Bridge, configured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A container caches the key until the bridge refuses it, and does not log it."""
    caplog.set_level(logging.DEBUG, "thingbridge-lambda")
    tenant, secret = uuid4(), f"thingbridge/key-{uuid4()}"
    keys = [api.key(tenant), api.key(tenant)]
    bridge.secrets.create_secret(Name=secret, SecretString=f"{keys[0]}\n")
    configured(api.url, tenant, THINGBRIDGE_KEY="", THINGBRIDGE_KEY_SECRET=secret)
    hook, event = container("pre_provisioning_hook"), hook_event(SerialNumber="HOOK-4")
    bridge.emulator.forget_calls()

    async def allowed() -> tuple[bool, int]:
        decided = await asyncio.to_thread(hook.handler, event, Context(10))
        return decided["allowProvisioning"], bridge.emulator.calls()["secretsmanager:GetSecretValue"]

    assert [await allowed(), await allowed()] == [(True, 1), (True, 1)]
    bridge.secrets.put_secret_value(SecretId=secret, SecretString=keys[1])
    api.revoke(keys[0])
    assert [await allowed(), await allowed()] == [(True, 2), (True, 2)]
    api.revoke(keys[1])
    assert await allowed() == (False, 3)
    assert CLAIM in caplog.text
    assert not [secret for secret in (*keys, PEM, "MIIhush") if secret in caplog.text]


# --- The registration


async def test_registration_waits_for_the_attached_certificate(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """The bridge stores the device with Thing, certificate and claim. A repeated event changes nothing."""
    device = Device("JITP-1")
    configured(api.url, device.tenant_id, THINGBRIDGE_KEY=api.key(device.tenant_id))
    claim, certificate = new_certificate(bridge), new_certificate(bridge)
    event = enrol(bridge, device, certificate, claimCertificateId=id_of(claim), label="pump-7")
    bridge.emulator.forget_calls()
    waiting = asyncio.create_task(invoke("registration", event, 60))
    await until(has_listed_principals(bridge), "the registration has listed the principals")
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    registered = await waiting
    assert registered["alreadyProvisioned"] is False
    with Session(bridge.engine) as session:
        binding = newest_binding(session, UUID(registered["deviceId"]))
        row = session.get(DeviceRow, UUID(registered["deviceId"]))
    assert binding is not None
    assert row is not None
    assert (binding.provisioning_status, binding.provisioned_via_jitp) == (ProvisioningStatus.ACTIVE, True)
    assert (binding.thing_name, binding.certificate_arn) == (device.thing_name, certificate)
    assert (binding.certificate_secret_arn, binding.claim_certificate_expires_at is not None) == (None, True)
    assert (row.model, row.firmware_version, row.label) == ("P-1", "1.2.3", "pump-7")
    assert await invoke("registration", event) == registered | {"alreadyProvisioned": True}


async def test_registration_of_a_second_enrolment_replaces_the_certificate(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """Two certificates are attached; the attribute of the updated Thing names the new one."""
    device = Device("JITP-2")
    configured(api.url, device.tenant_id, THINGBRIDGE_KEY=api.key(device.tenant_id))
    old, new = new_certificate(bridge), new_certificate(bridge)
    event = enrol(bridge, device, old)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=old)
    first = await invoke("registration", event)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=new)
    attributes = {"attributes": {"certificateId": id_of(new)}, "merge": True}
    bridge.iot.update_thing(thingName=device.thing_name, attributePayload=attributes)
    again = await invoke("registration", thing_event(device.thing_name, "UPDATED"))
    assert again == first | {"alreadyProvisioned": True}
    with Session(bridge.engine) as session:
        binding = newest_binding(session, UUID(first["deviceId"]))
    assert binding is not None
    assert binding.certificate_arn == new


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operation": "DELETED"}, "not the creation or update of a Thing"),
        ({"thingName": "pump-7"}, "does not belong to this tenant"),
        ({"thingName": Device("JITP-3").thing_name}, "does not belong to this tenant"),
        ({"thingName": None}, "does not belong to this tenant"),
    ],
)
def test_registration_ignores_events_of_other_things(
    configured: Callable[..., None], script: Callable[..., Script], change: dict[str, Any], reason: str
) -> None:
    """An event that is not of a Thing of this tenant causes no request."""
    device, api = Device("JITP-3"), script((200, {}))
    configured(api.url, device.tenant_id)
    event = thing_event(device.thing_name) | change
    assert reason in container("registration").handler(event, Context(60))["ignored"]
    assert api.calls == []


async def test_registration_ignores_things_without_an_enrolment(
    bridge: Bridge, configured: Callable[..., None], script: Callable[..., Script]
) -> None:
    """Things created by the saga have a deviceId; other Things lack the attribute of the template."""
    device, api = Device("JITP-4"), script((200, {}))
    configured(api.url, device.tenant_id)
    await bridge.send_and_wait(device, device.event("Provisioned"))
    ignored = await invoke("registration", thing_event(device.thing_name))
    assert ignored == {"ignored": "the bridge created the Thing itself"}
    plain = Device("JITP-5", device.tenant_id)
    bridge.iot.create_thing(thingName=plain.thing_name)
    ignored = await invoke("registration", thing_event(plain.thing_name))
    assert "the Thing has no attribute certificateId" in ignored["ignored"]
    assert api.calls == []


async def test_registration_fails_until_the_certificate_is_attached(
    bridge: Bridge, configured: Callable[..., None], script: Callable[..., Script]
) -> None:
    """It raises at the end of its time, also if the Thing is not visible yet, so that Lambda retries."""
    device, api = Device("JITP-6"), script((200, {}))
    configured(api.url, device.tenant_id)
    with pytest.raises(RuntimeError, match="is not attached yet"):
        await invoke("registration", thing_event(device.thing_name), 1)
    event = enrol(bridge, device, new_certificate(bridge))
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=new_certificate(bridge))
    with pytest.raises(RuntimeError, match="is not attached yet"):
        await invoke("registration", event, 1)
    assert api.calls == []


@pytest.mark.parametrize(
    ("response", "refusal"),
    [
        ((409, {"title": "Conflict", "detail": "bound already"}), "409 Conflict: bound already"),
        ((422, {"title": "Unprocessable", "detail": "model"}), "422 Unprocessable: model"),
        ((401, {"title": "Unauthorized", "detail": "no key"}), None),
        ((408, {}), None),
        ((429, {}), None),
        ((503, {}), None),
        ((307, {}), None),
        ((200, {}), None),
        ((200, b"<html>"), None),
        (close_connection, None),
        (send_nothing, None),
    ],
)
async def test_registration_fails_unless_the_bridge_refuses_the_thing(
    attached: dict[str, Any],
    configured: Callable[..., None],
    script: Callable[..., Script],
    caplog: pytest.LogCaptureFixture,
    response: Step,
    refusal: str | None,
) -> None:
    """A refusal is logged with its reason and not retried. Every other failure is raised and retried."""
    configured(script(response).url)
    caplog.set_level(logging.DEBUG, "thingbridge-lambda")
    if refusal is None:
        with pytest.raises(RuntimeError, match="the bridge"):
            await invoke("registration", attached, 1 if response is send_nothing else 30)
    else:
        assert await invoke("registration", attached) == {"refused": refusal}
        assert refusal in caplog.text
    assert KEY not in caplog.text


# --- The README


def test_readme_lists_every_variable_and_permission() -> None:
    """The README lists all environment variables and all AWS actions of the functions."""
    source = "\n".join(file.read_text() for file in FOLDER.glob("*.py"))
    assert set(re.findall(r'"(THINGBRIDGE_\w+)"', source)) == set(re.findall(r"`(THINGBRIDGE_\w+)`", README))
    called = set(re.findall(r'_iot\.(?:get_paginator\(")?((?:describe|list)_\w+)', source))
    assert {f"iot:{''.join(map(str.capitalize, each.split('_')))}" for each in called} == set(
        re.findall(r"`(iot:\w+)`", README)
    )


def test_sample_template_declares_every_parameter_it_uses() -> None:
    """AWS refuses a template, or a device, with an undeclared parameter."""
    (sample,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    template = json.loads(sample)
    used = set(re.findall(r'"Ref": "([^"]+)"', sample))
    assert used == set(template["Parameters"])
    assert {"SerialNumber", "ThingName", "CertificateId", "ClaimCertificateId"} <= used
    attributes = template["Resources"]["thing"]["Properties"]["AttributePayload"]
    assert {"model", "firmwareVersion", "certificateId", "claimCertificateId"} <= set(attributes)


async def invoke(file: str, event: dict[str, Any], seconds: float = 30) -> dict[str, Any]:
    """Invoke a function in a new container and return its result."""
    result: dict[str, Any] = await asyncio.to_thread(container(file).handler, event, Context(seconds))
    return result


def new_certificate(bridge: Bridge) -> str:
    return str(bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"])


def id_of(certificate_arn: str) -> str:
    return certificate_arn.rpartition("/")[2]


def enrol(bridge: Bridge, device: Device, certificate: str, **attributes: str) -> dict[str, Any]:
    """Create a device's Thing as the sample template does, and return its registry event."""
    given = {
        "serialNumber": device.serial_number,
        "model": "P-1",
        "firmwareVersion": "1.2.3",
        "certificateId": id_of(certificate),
        **attributes,
    }
    bridge.iot.create_thing_type(thingTypeName=THING_TYPE)
    bridge.iot.create_thing(
        thingName=device.thing_name, thingTypeName=THING_TYPE, attributePayload={"attributes": given}
    )
    return thing_event(device.thing_name, **given)


def has_listed_principals(bridge: Bridge) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the principals of a Thing were listed since the call counts were reset."""

    async def condition() -> bool:
        return bool(bridge.emulator.calls().get("iot:ListThingPrincipals"))

    return condition

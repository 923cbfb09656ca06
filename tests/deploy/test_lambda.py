"""The Lambda functions of fleet provisioning, run as Lambda runs them, against the API over HTTP."""

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
    """What Lambda tells a function of its time."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(max(0.0, self._ends - time.monotonic()) * 1000)


def container(file: str) -> ModuleType:
    """A function as a new container loads it: nothing of another's is left in it."""
    spec = importlib.util.spec_from_file_location(f"container_of_{file}", FOLDER / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hook_event(**parameters: object) -> dict[str, Any]:
    """What AWS hands to a pre-provisioning hook."""
    return {
        "claimCertificateId": CLAIM,
        "certificateId": CERTIFICATE,
        "certificatePem": PEM,
        "templateArn": "arn:aws:iot:eu-west-1:111122223333:provisioningtemplate/devices",
        "clientId": "221a6d10-9c7f-42f1-9153-e52e6fc869c1",
        "parameters": parameters,
    }


def thing_event(thing_name: str, operation: str = "CREATED", **attributes: str) -> dict[str, Any]:
    """What the registry tells of a Thing."""
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
    """One call of an API that answers by a script."""

    server: "Script"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, self.headers["Authorization"], body))
        step = self.server.steps[min(len(self.server.calls), len(self.server.steps)) - 1]
        if callable(step):
            step(self)
        else:
            self.answer(*step)

    def answer(self, status: int, body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


Step = tuple[int, object] | Callable[[Request], None]


class Script(ThreadingHTTPServer):
    """What the real API cannot be made to do: answers late, wrong, or first one way and then another."""

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
    """Makes such an API of its steps, the last of them for every further call."""
    made: list[Script] = []

    def make(*steps: Step) -> Script:
        made.append(Script(*steps))
        return made[-1]

    yield make
    for each in made:
        each.over.set()
        each.shutdown()
        each.server_close()


class RealApi:
    """The bridge's own API, served over HTTP, and keys to it."""

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self._engine = engine

    def key(self, tenant_id: UUID | None) -> str:
        """A new key: a tenant's, or an operator's."""
        with Session(self._engine) as session, session.begin():
            return create_key(session, tenant_id, "a test")

    def revoke(self, key: str) -> None:
        read = ApiKey.read(key)
        assert read is not None
        with Session(self._engine) as session, session.begin():
            revoke_key(session, read.id)


@pytest.fixture(scope="module")
def api(bridge: Bridge, aws: AwsClients) -> Iterator[RealApi]:
    """It runs in a thread of its own: the functions block theirs."""
    with Session(bridge.engine) as session, session.begin():
        save_location(session, aws.find_location(None))
    settings = ApiSettings.load()
    forgetful = settings.api.model_copy(update={"key_cache_seconds": 0})
    app = create_app(settings.model_copy(update={"api": forgetful}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield RealApi(f"http://127.0.0.1:{listening.getsockname()[1]}", bridge.engine)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def attached(bridge: Bridge) -> dict[str, Any]:
    """The event of a Thing whose certificate is attached."""
    device, certificate = Device("JITP-7"), new_certificate(bridge)
    event = enrolled(bridge, device, certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    return event


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the functions' variables; those not given are not set."""

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


def never(request: Request) -> None:
    """No answer as long as the test runs."""
    request.server.over.wait(60)


def dripping(request: Request) -> None:
    """An answer of which something comes all the time, and which never ends."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not request.server.over.wait(0.05):
        request.wfile.write(b"X-More: x\r\n")


def hung_up(request: Request) -> None:
    """A connection that ends without an answer."""
    request.close_connection = True


# --- The hook


NOT_AN_ANSWER: dict[str, Step] = {
    "late": never,
    "dripping": dripping,
    "hung up": hung_up,
    "no JSON": (200, b"<html>allowProvisioning: true</html>"),
    "no object": (200, [ALLOWED]),
    "another word": (200, {"allowProvisioning": "true"}),
    "nothing": (200, {}),
    "another status": (202, ALLOWED),
    "elsewhere": (307, ALLOWED),
    "away": (503, {"title": "Service Unavailable", "detail": "no database"}),
    "unknown": (401, {"title": "Unauthorized", "detail": "this is no key"}),
}


@pytest.mark.parametrize("answer", NOT_AN_ANSWER.values(), ids=NOT_AN_ANSWER)
def test_the_hook_denies_where_the_answer_is_late_or_wrong(
    script: Callable[..., Script], configured: Callable[..., None], answer: Step
) -> None:
    """Only a 200 whose JSON says true, within the time, lets a device in."""
    configured(script(answer).url, uuid4())
    decided = container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(1))
    assert decided == DENIED


def test_the_hook_tries_once_more_where_there_is_time(
    script: Callable[..., Script], configured: Callable[..., None]
) -> None:
    """A first attempt that was torn off or met a busy bridge is not the last."""
    tenant = uuid4()
    failed: list[Step] = [hung_up, (503, {}), (429, {})]
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
def test_the_hook_denies_a_device_that_says_no_serial_number(
    script: Callable[..., Script], configured: Callable[..., None], parameters: dict[str, Any]
) -> None:
    """Nobody is asked about what can be no serial number."""
    api = script((200, ALLOWED))
    configured(api.url, uuid4())
    hook = container("pre_provisioning_hook")
    assert hook.handler(hook_event(**parameters), Context(5)) == DENIED
    assert hook.handler(hook_event() | {"parameters": None}, Context(5)) == DENIED
    assert api.calls == []


def test_the_hook_denies_where_a_cold_start_took_the_time(
    script: Callable[..., Script], configured: Callable[..., None]
) -> None:
    """With no time left it says no, rather than nothing."""
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
def test_a_wrong_configuration_is_named(
    configured: Callable[..., None], variables: dict[str, str], named: str
) -> None:
    """The function fails with the variable at fault, which AWS takes for a no; the key is not told."""
    configured(**{"url": "https://bridge.example", "THINGBRIDGE_TENANT_ID": str(uuid4())} | variables)
    with pytest.raises(ValueError, match=named) as refused:
        container("pre_provisioning_hook").handler(hook_event(SerialNumber="SN-1"), Context(5))
    assert KEY not in str(refused.value)


async def test_the_hook_lets_in_whom_the_bridge_lets_in_and_names_the_thing(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """A new serial is admitted under its Thing name; a decommissioned one, or by a foreign key, is not."""
    new = Device("HOOK-1")
    gone = Device("HOOK-2", new.tenant_id)
    await bridge.send_and_wait(gone, gone.event("Decommissioned", 1), gone.event("Provisioned"))

    async def decided(device: Device, key: str) -> dict[str, Any]:
        configured(api.url, device.tenant_id, THINGBRIDGE_KEY=key)
        return await handled("pre_provisioning_hook", hook_event(SerialNumber=device.serial_number))

    own = api.key(new.tenant_id)
    overrides = {"ThingName": new.thing_name, "CertificateId": CERTIFICATE, "ClaimCertificateId": CLAIM}
    allowed = {"allowProvisioning": True, "parameterOverrides": overrides}
    assert await decided(new, own) == allowed
    assert await decided(new, api.key(None)) == allowed
    assert await decided(gone, own) == DENIED
    assert await decided(new, api.key(uuid4())) == DENIED
    assert await decided(new, "no key") == DENIED


async def test_an_operators_key_serves_many_tenants_or_none(
    api: RealApi, configured: Callable[..., None]
) -> None:
    """The tenant comes from a parameter where one is named; zeros are the devices of no tenant."""
    key, device = api.key(None), Device("HOOK-3")
    configured(api.url, THINGBRIDGE_KEY=key, THINGBRIDGE_TENANT_ID="", THINGBRIDGE_TENANT_PARAMETER="Tenant")
    event = hook_event(SerialNumber="HOOK-3", Tenant=str(device.tenant_id))
    decided = await handled("pre_provisioning_hook", event)
    assert decided["parameterOverrides"]["ThingName"] == device.thing_name
    for wrong in ({"SerialNumber": "HOOK-3"}, {"SerialNumber": "HOOK-3", "Tenant": "mine"}):
        assert await handled("pre_provisioning_hook", hook_event(**wrong)) == DENIED
    configured(api.url, UUID(int=0), THINGBRIDGE_KEY=key, THINGBRIDGE_TENANT_PARAMETER="")
    decided = await handled("pre_provisioning_hook", hook_event(SerialNumber="HOOK-3"))
    assert decided["parameterOverrides"]["ThingName"] == Device("HOOK-3", None).thing_name


async def test_the_key_is_fetched_once_and_again_when_it_was_renewed(
    api: RealApi, bridge: Bridge, configured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A container keeps the key until the bridge no longer takes it, and does not log it."""
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


async def test_a_thing_that_was_made_is_registered_once_its_certificate_is_there(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """The bridge then knows the device with Thing, certificate and claim; a repeated event finds it known."""
    device = Device("JITP-1")
    configured(api.url, device.tenant_id, THINGBRIDGE_KEY=api.key(device.tenant_id))
    claim, certificate = new_certificate(bridge), new_certificate(bridge)
    event = enrolled(bridge, device, certificate, claimCertificateId=id_of(claim), label="pump-7")
    bridge.emulator.forget_calls()
    waiting = asyncio.create_task(handled("registration", event, 60))
    await until(looked_for(bridge), "the registration has looked for the certificate")
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    told = await waiting
    assert told["alreadyProvisioned"] is False
    with Session(bridge.engine) as session:
        binding = newest_binding(session, UUID(told["deviceId"]))
        row = session.get(DeviceRow, UUID(told["deviceId"]))
    assert binding is not None
    assert row is not None
    assert (binding.provisioning_status, binding.provisioned_via_jitp) == (ProvisioningStatus.ACTIVE, True)
    assert (binding.thing_name, binding.certificate_arn) == (device.thing_name, certificate)
    assert (binding.certificate_secret_arn, binding.claim_certificate_expires_at is not None) == (None, True)
    assert (row.model, row.firmware_version, row.label) == ("P-1", "1.2.3", "pump-7")
    assert await handled("registration", event) == told | {"alreadyProvisioned": True}


async def test_a_device_that_enrols_again_is_told_with_its_new_certificate(
    api: RealApi, bridge: Bridge, configured: Callable[..., None]
) -> None:
    """The registry tells of an update of its Thing, whose attribute names the certificate of the two."""
    device = Device("JITP-2")
    configured(api.url, device.tenant_id, THINGBRIDGE_KEY=api.key(device.tenant_id))
    old, new = new_certificate(bridge), new_certificate(bridge)
    event = enrolled(bridge, device, old)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=old)
    first = await handled("registration", event)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=new)
    attributes = {"attributes": {"certificateId": id_of(new)}, "merge": True}
    bridge.iot.update_thing(thingName=device.thing_name, attributePayload=attributes)
    again = await handled("registration", thing_event(device.thing_name, "UPDATED"))
    assert again == first | {"alreadyProvisioned": True}
    with Session(bridge.engine) as session:
        binding = newest_binding(session, UUID(first["deviceId"]))
    assert binding is not None
    assert binding.certificate_arn == new


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"operation": "DELETED"}, "no event of a Thing that was created or updated"),
        ({"thingName": "pump-7"}, "not named as this tenant's"),
        ({"thingName": Device("JITP-3").thing_name}, "not named as this tenant's"),
        ({"thingName": None}, "not named as this tenant's"),
    ],
)
def test_events_of_other_things_are_ignored(
    configured: Callable[..., None], script: Callable[..., Script], change: dict[str, Any], why: str
) -> None:
    """A Thing that is not of this tenant's fleet costs no call."""
    device, api = Device("JITP-3"), script((200, {}))
    configured(api.url, device.tenant_id)
    event = thing_event(device.thing_name) | change
    assert why in container("registration").handler(event, Context(60))["ignored"]
    assert api.calls == []


async def test_what_the_bridge_made_itself_is_ignored(
    bridge: Bridge, configured: Callable[..., None], script: Callable[..., Script]
) -> None:
    """The saga's Things bear its stamp; others without the template's attribute are nobody's enrolment."""
    device, api = Device("JITP-4"), script((200, {}))
    configured(api.url, device.tenant_id)
    await bridge.send_and_wait(device, device.event("Provisioned"))
    ignored = await handled("registration", thing_event(device.thing_name))
    assert ignored == {"ignored": "the bridge made the Thing itself"}
    plain = Device("JITP-5", device.tenant_id)
    bridge.iot.create_thing(thingName=plain.thing_name)
    ignored = await handled("registration", thing_event(plain.thing_name))
    assert "the Thing has no attribute certificateId" in ignored["ignored"]
    assert api.calls == []


async def test_the_registration_is_repeated_by_lambda_until_the_certificate_is_there(
    bridge: Bridge, configured: Callable[..., None], script: Callable[..., Script]
) -> None:
    """Where the time does not reach, for a Thing not to be seen yet too, it fails; so Lambda tries again."""
    device, api = Device("JITP-6"), script((200, {}))
    configured(api.url, device.tenant_id)
    with pytest.raises(RuntimeError, match="is not attached yet"):
        await handled("registration", thing_event(device.thing_name), 1)
    event = enrolled(bridge, device, new_certificate(bridge))
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=new_certificate(bridge))
    with pytest.raises(RuntimeError, match="is not attached yet"):
        await handled("registration", event, 1)
    assert api.calls == []


@pytest.mark.parametrize(
    ("answer", "outcome"),
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
        (hung_up, None),
        (never, None),
    ],
)
async def test_only_what_the_bridge_refuses_is_not_repeated(
    attached: dict[str, Any],
    configured: Callable[..., None],
    script: Callable[..., Script],
    caplog: pytest.LogCaptureFixture,
    answer: Step,
    outcome: str | None,
) -> None:
    """A refusal is logged with its reason and ends it; all else that goes wrong fails, to be repeated."""
    configured(script(answer).url)
    caplog.set_level(logging.DEBUG, "thingbridge-lambda")
    if outcome is None:
        with pytest.raises(RuntimeError, match="the bridge"):
            await handled("registration", attached, 1 if answer is never else 30)
    else:
        assert await handled("registration", attached) == {"refused": outcome}
        assert outcome in caplog.text
    assert KEY not in caplog.text


# --- What the README says


def test_the_readme_names_every_variable_and_permission() -> None:
    """Whoever deploys the functions by it has set all there is, and granted what they call."""
    source = "\n".join(file.read_text() for file in FOLDER.glob("*.py"))
    assert set(re.findall(r'"(THINGBRIDGE_\w+)"', source)) == set(re.findall(r"`(THINGBRIDGE_\w+)`", README))
    called = set(re.findall(r'_iot\.(?:get_paginator\(")?((?:describe|list)_\w+)', source))
    assert {f"iot:{''.join(map(str.capitalize, each.split('_')))}" for each in called} == set(
        re.findall(r"`(iot:\w+)`", README)
    )


def test_the_sample_template_declares_what_it_names_and_what_the_hook_sets() -> None:
    """A parameter that is not declared would have AWS refuse the template, or the device."""
    (sample,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    template = json.loads(sample)
    named = set(re.findall(r'"Ref": "([^"]+)"', sample))
    assert named == set(template["Parameters"])
    assert {"SerialNumber", "ThingName", "CertificateId", "ClaimCertificateId"} <= named
    attributes = template["Resources"]["thing"]["Properties"]["AttributePayload"]
    assert {"model", "firmwareVersion", "certificateId", "claimCertificateId"} <= set(attributes)


async def handled(file: str, event: dict[str, Any], seconds: float = 30) -> dict[str, Any]:
    """What a new container of a function answers."""
    answer: dict[str, Any] = await asyncio.to_thread(container(file).handler, event, Context(seconds))
    return answer


def new_certificate(bridge: Bridge) -> str:
    return str(bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"])


def id_of(certificate_arn: str) -> str:
    return certificate_arn.rpartition("/")[2]


def enrolled(bridge: Bridge, device: Device, certificate: str, **attributes: str) -> dict[str, Any]:
    """Make a device's Thing as the sample template does, and return the registry's event of it."""
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


def looked_for(bridge: Bridge) -> Callable[[], Awaitable[bool]]:
    """Whether anyone has asked which certificates a Thing has, since the calls were last forgotten."""

    async def looked() -> bool:
        return bool(bridge.emulator.calls().get("iot:ListThingPrincipals"))

    return looked

"""Whatever a tenant's key asks of any door, nothing of another tenant is read, or different afterwards."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from temporalio.api.enums.v1 import EventType

from domain.names import device_workflow_id
from tests.harness.bridge import Bridge, Device, until
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness, enrol
from tests.harness.http_api import HttpApi, open_http_api

SERIALS: Final = ("SHARED-1", "SHARED-2", "SHARED-3")
"""Of both tenants: the victim's first is enrolled, its second decommissioned, its third not yet there."""

EXAMPLES: Final = 100
REGISTRATIONS: Final = 10
"""In each example."""

SIGNALLED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED


@dataclass(frozen=True)
class Victim:
    """The tenant of whom all is known that there is to know."""

    tenant_id: UUID
    device_ids: tuple[UUID, ...]
    certificate_arns: dict[str, str]
    secret_arn: str
    command_id: str

    def known_to(self, text: str) -> list[str]:
        """What of the tenant's a text tells."""
        # Not the one that is erased: whoever claims that has a certificate that there is not.
        certificates = [self.certificate_arns[name].rpartition("/")[2] for name in ("bound", "replaced")]
        return [known for known in (*map(str, self.device_ids), *certificates) if known in text]


@pytest_asyncio.fixture(scope="module")
async def victim(bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness) -> AsyncIterator[Victim]:
    """A tenant with an enrolled device, one that was decommissioned, and a command at work; all at rest."""
    tenant_id = uuid4()
    first, gone = (Device(serial, tenant_id) for serial in SERIALS[:2])
    replaced, decommissioned, bound = (enrolment.in_aws(bridge, device) for device in (first, gone, first))
    async with http_api.tenant(tenant_id) as http:
        ids = await enrol(http, replaced), await enrol(http, decommissioned)
        await enrol(http, bound, again=True)
        ended = enrolment.enrolled(gone)
        await bridge.send(ended, ended.event("Decommissioned"))
        for device in (enrolment.enrolled(first), ended):
            await bridge.wait_for_end(device)
        told = {"target": {"kind": "device", "value": str(ids[0])}, "operation": "reboot"}
        answer = await http.post("/api/iot/commands", json=told)
        assert answer.status_code == 202, answer.text
    job_id = answer.json()["jobId"]

    async def made() -> bool:
        return job_id in {job["jobId"] for job in bridge.iot.list_jobs()["jobs"]}

    # With nobody to watch its job, the command stays at that.
    await until(made, "the command's job is made")
    command = bridge.client.get_workflow_handle(job_id)
    arns = {"bound": bound, "replaced": replaced, "decommissioned": decommissioned}
    yield Victim(
        tenant_id,
        ids,
        {name: body["certificateArn"] for name, body in arns.items()},
        bound["certificateSecretArn"],
        command.id,
    )
    await command.terminate()


@pytest_asyncio.fixture(scope="module")
async def unheard(engine: Engine) -> AsyncIterator[HttpApi]:
    """HttpApi whose Temporal is nowhere: of the thousand devices told of, none needs a workflow."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with open_http_api(engine) as opened:
            yield opened


LIES: Final[Mapping[str, tuple[str, ...]]] = {
    "tenantId": ("absent", "null", "theirs"),
    "thingName": ("theirs",),
    "thingArn": ("theirs",),
    "certificateArn": ("bound", "replaced", "decommissioned", "the last one"),
    "certificateSecretArn": ("mine", "theirs"),
}


@st.composite
def registrations(draw: st.DrawFn) -> dict[str, str]:
    """What is told of a device of one's own, and which of its fields are told otherwise."""
    fields = draw(st.lists(st.sampled_from(sorted(LIES)), unique=True, max_size=3))
    told = {field: draw(st.sampled_from(LIES[field])) for field in fields}
    return {"serialNumber": draw(st.sampled_from(SERIALS))} | told


def registration(
    words: Mapping[str, str], mine: UUID, victim: Victim, enrolment: EnrolmentHarness, last: str
) -> dict[str, Any]:
    """The body that some words are for."""
    own, other = (Device(words["serialNumber"], tenant) for tenant in (mine, victim.tenant_id))
    body = enrolment.body(own)
    told = {
        "thingName": {"theirs": other.thing_name},
        "thingArn": {"theirs": enrolment.body(other)["thingArn"]},
        "certificateArn": {**victim.certificate_arns, "the last one": last},
        "certificateSecretArn": {"mine": enrolment.secret_arn(own), "theirs": victim.secret_arn},
        "tenantId": {"null": None, "theirs": str(victim.tenant_id), "absent": None},
    }
    body |= {field: told[field][word] for field, word in words.items() if field in told}
    if words.get("tenantId") == "absent":
        del body["tenantId"]
    return body


ELSEWHERE: Final = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["absent", "null", "theirs"]),
        "device": st.integers(0, 1),
        "serial": st.sampled_from(SERIALS),
        "event": st.sampled_from(["Provisioned", "Activated", "Suspended", "Reactivated", "Decommissioned"]),
        "target": st.sampled_from(["device", "group", "query"]),
    }
)


def elsewhere(words: Mapping[str, Any], victim: Victim) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """A call of every other door, by method and path as declared: at what is the victim's."""
    theirs = {"tenantId": str(victim.tenant_id)}
    said: dict[str, dict[str, Any]] = {"absent": {}, "null": {"tenantId": None}, "theirs": theirs}
    tenant = said[words["tenant"]]
    device_id = str(victim.device_ids[words["device"]])
    device = Device(words["serial"], victim.tenant_id, victim.device_ids[words["device"]])
    event = {key: value for key, value in device.event(words["event"]).items() if key != "tenantId"}
    bindings, commands = "/api/iot/bindings", "/api/iot/commands"
    yield "POST", VERIFY, VERIFY, {"json": {"serialNumber": words["serial"], **tenant}}
    yield "POST", "/api/iot/device-events", "/api/iot/device-events", {"json": {**event, **tenant}}
    yield "GET", bindings, bindings, {"params": {"serial": words["serial"]}}
    yield "GET", bindings, bindings, {"params": theirs}
    yield "GET", f"{bindings}/{{deviceId}}", f"{bindings}/{device_id}", {}
    value = device_id if words["target"] == "device" else f"thingName:t{victim.tenant_id.hex}*"
    target = {"kind": words["target"], "value": value if words["target"] != "group" else "theirs"}
    yield "POST", commands, commands, {"json": {"target": target, "operation": "reboot", **tenant}}
    for method in ("GET", "DELETE"):
        yield method, f"{commands}/{{commandId}}", f"{commands}/{victim.command_id}", {}


async def test_every_door_is_tried(http_api: HttpApi, victim: Victim) -> None:
    """One that is added has its call here."""
    async with http_api.client() as http:
        document = (await http.get("/openapi.json")).json()
    there_are = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    words = {"tenant": "absent", "device": 0, "serial": SERIALS[0], "event": "Activated", "target": "device"}
    tried = {(method, declared) for method, declared, _, _ in elsewhere(words, victim)}
    assert tried | {("POST", REGISTERED)} == there_are


async def test_nothing_of_another_tenant_is_read_or_changed(
    bridge: Bridge, http_api: HttpApi, unheard: HttpApi, victim: Victim, enrolment: EnrolmentHarness
) -> None:
    """A thousand registrations, and calls of every other door: its rows, workflows and verdicts stay."""
    mine = uuid4()
    rows = enrolment.rows_of(victim.tenant_id)
    verdicts = await verdicts_of(http_api, victim.tenant_id)
    runs = await runs_of(bridge, victim)
    last = enrolment.certificate_arn()
    answered: dict[int, int] = {}

    async with unheard.tenant(mine) as registering, http_api.tenant(mine) as http:

        async def intrude(told: list[dict[str, str]], words: dict[str, Any]) -> None:
            nonlocal last
            for each in told:
                body = registration(each, mine, victim, enrolment, last)
                last = body["certificateArn"]
                answer = await registering.post(REGISTERED, json=body)
                answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
                refuse(answer, victim, {200, 403, 409, 422})
                honest = not {"thingName", "thingArn"} & each.keys() and each.get("tenantId") != "theirs"
                assert honest or answer.status_code in {403, 422}
            for method, _, path, what in elsewhere(words, victim):
                answer = await http.request(method, path, **what)
                refuse(answer, victim, {200, 403, 404} if "binding" in path or path == VERIFY else {403, 404})
            assert enrolment.rows_of(victim.tenant_id) == rows

        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
        @given(
            told=st.lists(registrations(), min_size=REGISTRATIONS, max_size=REGISTRATIONS), words=ELSEWHERE
        )
        def intrusions(told: list[dict[str, str]], words: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(intrude(told, words), loop).result()

        # In a thread: hypothesis runs no coroutine.
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(intrusions)
    # Else the check of claim certificates would follow up all of these.
    with enrolment.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE iotaws_thing_bindings SET deleted_at = now() WHERE tenant_id = %s", (mine,)
        )
    assert sum(answered.values()) >= EXAMPLES * REGISTRATIONS
    # A thousand refusals would show nothing.
    assert min(answered[200], answered[403], answered[409]) > 20
    assert await verdicts_of(http_api, victim.tenant_id) == verdicts
    assert await runs_of(bridge, victim) == runs
    assert enrolment.rows_of(victim.tenant_id) == rows


def refuse(answer: httpx2.Response, victim: Victim, allowed: set[int]) -> None:
    assert answer.status_code in allowed, answer.text
    assert not victim.known_to(answer.text)


async def verdicts_of(http_api: HttpApi, tenant_id: UUID) -> list[Any]:
    """What its own key is told of each serial number."""
    async with http_api.tenant(tenant_id) as http:
        return [(await http.post(VERIFY, json={"serialNumber": serial})).json() for serial in SERIALS]


async def runs_of(bridge: Bridge, victim: Victim) -> list[Any]:
    """The newest run of each workflow, and how often it was signalled."""
    found = []
    for workflow_id in (victim.command_id, *map(device_workflow_id, victim.device_ids)):
        handle = bridge.client.get_workflow_handle(workflow_id)
        described, history = await handle.describe(), await handle.fetch_history()
        signals = [event for event in history.events if event.event_type == SIGNALLED]
        found.append((described.run_id, described.status, len(signals)))
    return found

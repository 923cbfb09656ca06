"""No request with the API key of one tenant reads or changes anything of another tenant."""

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
"""Serials of both tenants. The victim's first is enrolled, its second decommissioned, its third unused."""

EXAMPLES: Final = 100
REGISTRATIONS: Final = 10
"""The number of registrations in each example."""

SIGNALLED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED


@dataclass(frozen=True)
class Victim:
    """A tenant whose identifiers are all known to the attacker."""

    tenant_id: UUID
    device_ids: tuple[UUID, ...]
    certificate_arns: dict[str, str]
    secret_arn: str
    command_id: str

    def disclosed_in(self, text: str) -> list[str]:
        """Return the identifiers of the tenant that occur in a text."""
        # Without the erased certificate: a registration of the attacker can name it, and is stored with it.
        certificates = [self.certificate_arns[name].rpartition("/")[2] for name in ("bound", "replaced")]
        return [value for value in (*map(str, self.device_ids), *certificates) if value in text]


@pytest_asyncio.fixture(scope="module")
async def victim(bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness) -> AsyncIterator[Victim]:
    """A tenant with an enrolled device, a decommissioned device and an open command, all unchanging."""
    tenant_id = uuid4()
    first, second = (Device(serial, tenant_id) for serial in SERIALS[:2])
    replaced, decommissioned, bound = (
        enrolment.create_aws_resources(bridge, device) for device in (first, second, first)
    )
    async with http_api.tenant(tenant_id) as http:
        ids = await enrol(http, replaced), await enrol(http, decommissioned)
        await enrol(http, bound, already_provisioned=True)
        ended = enrolment.with_assigned_id(second)
        await bridge.send(ended, ended.event("Decommissioned"))
        for device in (enrolment.with_assigned_id(first), ended):
            await bridge.wait_for_end(device)
        command_request = {"target": {"kind": "device", "value": str(ids[0])}, "operation": "reboot"}
        answer = await http.post("/api/iot/commands", json=command_request)
        assert answer.status_code == 202, answer.text
    job_id = answer.json()["jobId"]

    async def created() -> bool:
        return job_id in {job["jobId"] for job in bridge.iot.list_jobs()["jobs"]}

    # No worker watches its job, so the command stays open.
    await until(created, "the command's job is created")
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
async def http_without_temporal(engine: Engine) -> AsyncIterator[HttpApi]:
    """The HTTP API without Temporal: none of the thousand registered devices needs a workflow."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with open_http_api(engine) as opened:
            yield opened


FOREIGN_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "tenantId": ("absent", "null", "theirs"),
    "thingName": ("theirs",),
    "thingArn": ("theirs",),
    "certificateArn": ("bound", "replaced", "decommissioned", "the last one"),
    "certificateSecretArn": ("mine", "theirs"),
}


@st.composite
def registrations(draw: st.DrawFn) -> dict[str, str]:
    """A variant of a registration: a serial of the attacker, and the fields that get a foreign value."""
    fields = draw(st.lists(st.sampled_from(sorted(FOREIGN_VALUES)), unique=True, max_size=3))
    foreign = {field: draw(st.sampled_from(FOREIGN_VALUES[field])) for field in fields}
    return {"serialNumber": draw(st.sampled_from(SERIALS))} | foreign


def registration(
    variant: Mapping[str, str], mine: UUID, victim: Victim, enrolment: EnrolmentHarness, last: str
) -> dict[str, Any]:
    """Return the request body of a variant."""
    own, other = (Device(variant["serialNumber"], tenant) for tenant in (mine, victim.tenant_id))
    body = enrolment.body(own)
    values = {
        "thingName": {"theirs": other.thing_name},
        "thingArn": {"theirs": enrolment.body(other)["thingArn"]},
        "certificateArn": {**victim.certificate_arns, "the last one": last},
        "certificateSecretArn": {"mine": enrolment.secret_arn(own), "theirs": victim.secret_arn},
        "tenantId": {"null": None, "theirs": str(victim.tenant_id), "absent": None},
    }
    body |= {field: values[field][name] for field, name in variant.items() if field in values}
    if variant.get("tenantId") == "absent":
        del body["tenantId"]
    return body


OTHER_REQUESTS: Final = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["absent", "null", "theirs"]),
        "device": st.integers(0, 1),
        "serial": st.sampled_from(SERIALS),
        "event": st.sampled_from(["Provisioned", "Activated", "Suspended", "Reactivated", "Decommissioned"]),
        "target": st.sampled_from(["device", "group", "query"]),
    }
)


def other_requests(
    variant: Mapping[str, Any], victim: Victim
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Return a request to every other endpoint for the victim's resources, with its declared path."""
    theirs = {"tenantId": str(victim.tenant_id)}
    tenants: dict[str, dict[str, Any]] = {"absent": {}, "null": {"tenantId": None}, "theirs": theirs}
    tenant = tenants[variant["tenant"]]
    device_id = str(victim.device_ids[variant["device"]])
    device = Device(variant["serial"], victim.tenant_id, victim.device_ids[variant["device"]])
    event = {key: value for key, value in device.event(variant["event"]).items() if key != "tenantId"}
    bindings, commands = "/api/iot/bindings", "/api/iot/commands"
    yield "POST", VERIFY, VERIFY, {"json": {"serialNumber": variant["serial"], **tenant}}
    yield "POST", "/api/iot/device-events", "/api/iot/device-events", {"json": {**event, **tenant}}
    yield "GET", bindings, bindings, {"params": {"serial": variant["serial"]}}
    yield "GET", bindings, bindings, {"params": theirs}
    yield "GET", f"{bindings}/{{deviceId}}", f"{bindings}/{device_id}", {}
    value = device_id if variant["target"] == "device" else f"thingName:t{victim.tenant_id.hex}*"
    target = {"kind": variant["target"], "value": value if variant["target"] != "group" else "theirs"}
    yield "POST", commands, commands, {"json": {"target": target, "operation": "reboot", **tenant}}
    for method in ("GET", "DELETE"):
        yield method, f"{commands}/{{commandId}}", f"{commands}/{victim.command_id}", {}


async def test_every_endpoint_is_covered(http_api: HttpApi, victim: Victim) -> None:
    """A new endpoint needs a request in `other_requests`."""
    async with http_api.client() as http:
        document = (await http.get("/openapi.json")).json()
    declared = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    variant = {
        "tenant": "absent",
        "device": 0,
        "serial": SERIALS[0],
        "event": "Activated",
        "target": "device",
    }
    covered = {(method, path) for method, path, _, _ in other_requests(variant, victim)}
    assert covered | {("POST", REGISTERED)} == declared


async def test_nothing_of_another_tenant_is_read_or_changed(
    bridge: Bridge,
    http_api: HttpApi,
    http_without_temporal: HttpApi,
    victim: Victim,
    enrolment: EnrolmentHarness,
) -> None:
    """A thousand registrations and requests to every other endpoint change no row, workflow or verdict."""
    mine = uuid4()
    rows = enrolment.rows_of(victim.tenant_id)
    verdicts = await verdicts_of(http_api, victim.tenant_id)
    runs = await runs_of(bridge, victim)
    last = enrolment.certificate_arn()
    statuses: dict[int, int] = {}

    async with http_without_temporal.tenant(mine) as registering, http_api.tenant(mine) as http:

        async def attack(registered: list[dict[str, str]], variant: dict[str, Any]) -> None:
            nonlocal last
            for each in registered:
                body = registration(each, mine, victim, enrolment, last)
                last = body["certificateArn"]
                answer = await registering.post(REGISTERED, json=body)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                assert_nothing_disclosed(answer, victim, {200, 403, 409, 422})
                consistent = not {"thingName", "thingArn"} & each.keys() and each.get("tenantId") != "theirs"
                assert consistent or answer.status_code in {403, 422}
            for method, _, path, options in other_requests(variant, victim):
                answer = await http.request(method, path, **options)
                assert_nothing_disclosed(
                    answer, victim, {200, 403, 404} if "binding" in path or path == VERIFY else {403, 404}
                )
            assert enrolment.rows_of(victim.tenant_id) == rows

        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
        @given(
            registered=st.lists(registrations(), min_size=REGISTRATIONS, max_size=REGISTRATIONS),
            variant=OTHER_REQUESTS,
        )
        def attacks(registered: list[dict[str, str]], variant: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(attack(registered, variant), loop).result()

        # In a thread, because hypothesis cannot run coroutines.
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(attacks)
    # Otherwise the claim certificate check would follow up all these registrations.
    with enrolment.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE iotaws_thing_bindings SET deleted_at = now() WHERE tenant_id = %s", (mine,)
        )
    assert sum(statuses.values()) >= EXAMPLES * REGISTRATIONS
    # If all requests were refused, the test would prove nothing.
    assert min(statuses[200], statuses[403], statuses[409]) > 20
    assert await verdicts_of(http_api, victim.tenant_id) == verdicts
    assert await runs_of(bridge, victim) == runs
    assert enrolment.rows_of(victim.tenant_id) == rows


def assert_nothing_disclosed(answer: httpx2.Response, victim: Victim, allowed: set[int]) -> None:
    assert answer.status_code in allowed, answer.text
    assert not victim.disclosed_in(answer.text)


async def verdicts_of(http_api: HttpApi, tenant_id: UUID) -> list[Any]:
    """Return the verdict on each serial number for the tenant's own API key."""
    async with http_api.tenant(tenant_id) as http:
        return [(await http.post(VERIFY, json={"serialNumber": serial})).json() for serial in SERIALS]


async def runs_of(bridge: Bridge, victim: Victim) -> list[Any]:
    """Return the newest run of each of the victim's workflows, and its number of signals."""
    found = []
    for workflow_id in (victim.command_id, *map(device_workflow_id, victim.device_ids)):
        handle = bridge.client.get_workflow_handle(workflow_id)
        described, history = await handle.describe(), await handle.fetch_history()
        signals = [event for event in history.events if event.event_type == SIGNALLED]
        found.append((described.run_id, described.status, len(signals)))
    return found

"""Bindings over HTTP: lists, filters, pages and single bindings."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text
from sqlmodel import Session

from api.app import create_app
from db.bindings import Actor, BindingFilter, advance, bindings_query, open_binding
from db.models import AwsThingBinding
from domain.names import thing_name
from domain.provisioning_status import ProvisioningStatus
from settings import Api, ApiSettings
from tests.harness.bridge import Bridge, Device
from tests.harness.http_api import HttpApi, open_http_api, problem

PATH = "/api/iot/bindings"
ACTOR = Actor("a test")


def bindings_of(
    engine: Engine, tenant_id: UUID | None, *serials: str, failed: bool = False
) -> list[AwsThingBinding]:
    """Create bindings of a tenant."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        made = []
        for serial in serials:
            binding = open_binding(
                session,
                device_id=uuid4(),
                tenant_id=tenant_id,
                thing_name=thing_name(tenant_id, serial),
                actor=ACTOR,
            )
            if failed:
                advance(session, binding, ProvisioningStatus.FAILED, ACTOR, reason="why", failure_code="Why")
            made.append(binding)
        return made


async def pages(http: httpx2.AsyncClient, **query: Any) -> list[list[str]]:
    """Return the ids on each page, from the first to the last."""
    found: list[list[str]] = []
    following: str | None = None
    while following or not found:
        given = {**query, **({"cursor": following} if following else {})}
        page = (await http.get(PATH, params=given)).json()
        found.append([each["id"] for each in page["items"]])
        following = page["nextCursor"]
    return found


def ids(bindings: Sequence[AwsThingBinding]) -> set[str]:
    return {str(binding.id) for binding in bindings}


async def test_pages_contain_every_binding_once_and_respect_the_limit(
    http_api: HttpApi, engine: Engine
) -> None:
    """This also holds if the last page is full, and if bindings are created between two pages."""
    tenant_id = uuid4()
    made = bindings_of(engine, tenant_id, *(f"PAGE-{number}" for number in range(6)))
    async with http_api.tenant(tenant_id) as http:
        for limit, sizes in {2: [2, 2, 2], 4: [4, 2], 6: [6], 7: [6]}.items():
            found = await pages(http, limit=limit)
            assert [len(page) for page in found] == sizes
            assert {each for page in found for each in page} == ids(made)
        first = (await http.get(PATH, params={"limit": 3})).json()
        bindings_of(engine, tenant_id, "PAGE-LATE")
        rest = await http.get(PATH, params={"limit": 1000, "cursor": first["nextCursor"]})
    listed = [each["id"] for each in first["items"] + rest.json()["items"]]
    assert len(listed) == len(set(listed))
    assert set(listed) >= ids(made)


async def test_filters_can_be_combined(http_api: HttpApi, engine: Engine) -> None:
    """Filters are status, serial number and tenant; a serial number matches in every tenant."""
    one, other, serial = uuid4(), uuid4(), f"FILTER-{uuid4()}"
    pending = bindings_of(engine, one, serial, f"{serial}-2")
    failed = bindings_of(engine, other, serial, failed=True)
    tenantless = bindings_of(engine, None, serial)
    expected: dict[tuple[tuple[str, str], ...], set[str]] = {
        (("serial", serial),): ids([pending[0], *failed, *tenantless]),
        (("serial", serial), ("status", "Failed")): ids(failed),
        (("serial", serial), ("tenantId", str(one))): ids(pending[:1]),
        (("tenantId", str(one)),): ids(pending),
        (("tenantId", str(one)), ("status", "Failed")): set(),
    }
    async with http_api.operator() as http:
        for query, found in expected.items():
            listed = (await http.get(PATH, params=dict(query))).json()["items"]
            assert {each["id"] for each in listed} == found, query


async def test_a_tenant_sees_only_its_own_bindings(http_api: HttpApi, engine: Engine) -> None:
    """This holds for lists, for another tenant's cursor, and for device ids, which are 404."""
    one, other = uuid4(), uuid4()
    mine, theirs = bindings_of(engine, one, "MINE"), bindings_of(engine, other, "THEIRS")
    tenantless = bindings_of(engine, None, f"TENANTLESS-{uuid4()}")
    async with http_api.operator() as http:
        cursor = (await http.get(PATH, params={"limit": 1})).json()["nextCursor"]
    async with http_api.tenant(one) as http:
        assert await pages(http) == [[str(mine[0].id)]]
        listed = (await http.get(PATH, params={"cursor": cursor})).json()["items"]
        assert {each["id"] for each in listed} <= ids(mine)
        assert (await http.get(f"{PATH}/{mine[0].device_id}")).status_code == 200
        none = problem(await http.get(f"{PATH}/{uuid4()}"))
        assert none["status"] == 404
        for foreign in (*theirs, *tenantless):
            assert problem(await http.get(f"{PATH}/{foreign.device_id}")) == none


async def test_a_binding_has_its_resources_transitions_and_temporal_link(
    bridge: Bridge, engine: Engine
) -> None:
    """Each transition has the run that made it, and the link leads to the workflow in Temporal's UI."""
    device = Device("SHOWN-1")
    run = await bridge.send_and_wait(device, device.event("Provisioned"))
    settings = ApiSettings.load()
    own = Api(temporal_ui_url="https://temporal.example/namespaces/devices/")
    app = create_app(settings.model_copy(update={"api": own}))
    async with open_http_api(engine, app) as opened, opened.operator() as http:
        shown = (await http.get(f"{PATH}/{device.device_id}")).json()
    binding = bridge.require_binding(device)
    assert shown["thingName"] == device.thing_name
    assert shown["provisioningStatus"] == "Active"
    assert (shown["thingArn"], shown["certificateArn"]) == (binding.thing_arn, binding.certificate_arn)
    assert shown["certificateSecretArn"] == binding.certificate_secret_arn
    assert [each["toStatus"] for each in shown["transitions"]] == bridge.transitions(device)
    described = await run.describe()
    assert {each["runId"] for each in shown["transitions"]} == {described.run_id}
    link = f"https://temporal.example/namespaces/devices/workflows/{device.workflow_id}"
    assert shown["temporalUiUrl"] == link


async def test_an_unchanged_binding_is_304(http_api: HttpApi, engine: Engine) -> None:
    """A new version of the binding, or a new binding of the device, is returned in full."""
    (binding,) = bindings_of(engine, uuid4(), "ETAG-1")
    path = f"{PATH}/{binding.device_id}"
    async with http_api.operator() as http:
        first = await http.get(path)
        etag = first.headers["etag"]
        for names in (etag, f'W/{etag}, "x"', "*"):
            same = await http.get(path, headers={"If-None-Match": names})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert (await http.get(path, headers={"If-None-Match": '"x"'})).status_code == 200
        with Session(engine) as session, session.begin():
            advance(session, binding, ProvisioningStatus.DECOMMISSIONED, ACTOR)
        second = await http.get(path, headers={"If-None-Match": etag})
        assert second.json()["provisioningStatus"] == "Decommissioned"
        with Session(engine) as session, session.begin():
            open_binding(session, device_id=binding.device_id, tenant_id=None, thing_name=None, actor=ACTOR)
        third = await http.get(path, headers={"If-None-Match": f"{etag}, {second.headers['etag']}"})
    assert third.status_code == 200


@pytest.mark.parametrize(
    ("filtered", "condition"),
    [
        ({"tenant_id": uuid4()}, "tenant_id = "),
        ({"serial_number": "SN-7"}, "substr((thing_name)::text, 35) = "),
        ({"status": ProvisioningStatus.FAILED}, "(provisioning_status)::text = "),
    ],
)
def test_a_page_is_read_from_an_index(engine: Engine, filtered: dict[str, Any], condition: str) -> None:
    """Its cost does not depend on the size of the fleet: no sort, and a start after the previous page."""
    statement = bindings_query(BindingFilter(**filtered), after=UUID(int=1), limit=10)
    query = statement.compile(engine, compile_kwargs={"literal_binds": True})
    fleet = """
        CREATE TEMPORARY TABLE iotaws_thing_bindings
            (LIKE iotaws_thing_bindings INCLUDING ALL) ON COMMIT DROP;
        INSERT INTO iotaws_thing_bindings (device_id, tenant_id, thing_name, provisioning_status)
            SELECT gen_random_uuid(), gen_random_uuid(), repeat('t', 34) || 'SN-' || n, 'Active'
            FROM generate_series(1, 5000) AS n;
        ANALYZE iotaws_thing_bindings;
    """
    with engine.begin() as connection:
        connection.execute(text(fleet))
        plan = "\n".join(connection.execute(text(f"EXPLAIN {query}")).scalars())
    (index,) = (line for line in plan.splitlines() if "Index Cond: " in line)
    assert condition in index
    assert "AND (id > " in index
    assert "Sort" not in plan

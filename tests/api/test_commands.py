"""Commands over HTTP: sending, reading and cancelling them."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio

from tests.harness.bridge import Bridge, Device, until
from tests.harness.http_api import HttpApi, faults, problem

PATH = "/api/iot/commands"


def command(device: Device, **changes: Any) -> dict[str, Any]:
    """Return the body of a command that restarts a device."""
    target = {"kind": "device", "value": str(device.device_id)}
    return {"target": target, "operation": "restart", "parameters": {"in": {"seconds": 3}}} | changes


@pytest_asyncio.fixture(scope="module")
async def device(bridge: Bridge) -> Device:
    """Return a device whose binding is Active."""
    made = Device("COMMANDED-1")
    await bridge.send_and_wait(made, made.event("Provisioned"))
    return made


@pytest_asyncio.fixture
async def http(http_api: HttpApi, device: Device) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client with a key of the device's tenant."""
    assert device.tenant_id is not None
    async with http_api.tenant(device.tenant_id) as client:
        yield client


async def sent(http: httpx2.AsyncClient, given: dict[str, Any]) -> str:
    answer = await http.post(PATH, json=given)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def state(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await http.get(f"{PATH}/{job_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_command_creates_a_job_and_can_be_cancelled(
    bridge: Bridge, http_api: HttpApi, http: httpx2.AsyncClient, device: Device
) -> None:
    """Its state can be read while it runs and after its end; a second cancellation is 409."""
    correlation_id = uuid4()
    job_id = await sent(http, command(device, correlationId=str(correlation_id)))
    assert job_id == f"granit-{correlation_id}"

    async def has_job() -> bool:
        return (await state(http, job_id))["jobArn"] is not None

    await until(has_job, f"{job_id} has a job")
    running = await state(http, job_id)
    assert (running["operation"], running["thingName"]) == ("restart", device.thing_name)
    assert (running["jobId"], running["status"], running["outcome"]) == (job_id, None, None)
    document = bridge.iot.get_job_document(jobId=job_id)["document"]
    assert document.replace(" ", "") == (
        f'{{"operation":"restart","correlationId":"{correlation_id}","parameters":{{"in":{{"seconds":3}}}}}}'
    )
    async with http_api.tenant(uuid4()) as other:
        for method in ("GET", "DELETE"):
            assert problem(await other.request(method, f"{PATH}/{job_id}"))["status"] == 404
    cancelled = await http.delete(f"{PATH}/{job_id}")
    assert (cancelled.status_code, cancelled.json()) == (202, {"jobId": job_id})

    async def ended() -> bool:
        return (await state(http, job_id))["status"] is not None

    await until(ended, f"{job_id} has ended")
    assert (await state(http, job_id))["status"] == "CANCELED"
    assert bridge.iot.describe_job(jobId=job_id)["job"]["status"] == "CANCELED"

    async def closed() -> bool:
        return (await http.delete(f"{PATH}/{job_id}")).status_code == 409

    await until(closed, f"{job_id} is known to have ended")
    async with http_api.operator() as operator:
        assert (await state(operator, job_id))["status"] == "CANCELED"


async def test_a_correlation_id_belongs_to_one_command(
    bridge: Bridge, http_api: HttpApi, http: httpx2.AsyncClient, device: Device
) -> None:
    """A repeat is the same command; another command with its id is refused, whoever sends it."""
    given = command(device, correlationId=str(uuid4()))
    job_id = await sent(http, given)
    assert await sent(http, given) == job_id
    assert problem(await http.post(PATH, json=given | {"operation": "reset"}))["status"] == 409
    other = Device("COMMANDED-2")
    await bridge.send_and_wait(other, other.event("Provisioned"))
    assert other.tenant_id is not None
    async with http_api.tenant(other.tenant_id) as other_tenant:
        used = command(other, correlationId=given["correlationId"])
        assert problem(await other_tenant.post(PATH, json=used))["status"] == 409
    await http.delete(f"{PATH}/{job_id}")


async def test_a_tenant_commands_only_its_own_devices(
    http_api: HttpApi, http: httpx2.AsyncClient, device: Device
) -> None:
    """Another tenant's device is 404, a wrong tenant is refused, and groups require an operator's key."""
    foreign = Device("NOT-MINE")
    async with http_api.tenant(uuid4()) as other, http_api.operator() as operator:
        assert problem(await http.post(PATH, json=command(foreign)))["status"] == 404
        assert problem(await other.post(PATH, json=command(device)))["status"] == 404
        named = command(device, tenantId=str(device.tenant_id))
        assert problem(await other.post(PATH, json=named))["status"] == 403
        wrong = command(device, tenantId=str(uuid4()))
        assert problem(await operator.post(PATH, json=wrong))["status"] == 404
        for target in ({"kind": "group", "value": "all"}, {"kind": "query", "value": "thingName:*"}):
            assert problem(await http.post(PATH, json=command(device, target=target)))["status"] == 403
        # A command to a group is accepted before the group is looked up, and no tenant can see it.
        group = command(device, target={"kind": "group", "value": f"none-{uuid4()}"})
        job_id = await sent(operator, group)
        assert problem(await http.get(f"{PATH}/{job_id}"))["status"] == 404

        async def refused() -> bool:
            return bool((await state(operator, job_id))["status"] == "NoSuchTarget")

        await until(refused, "there is no such group")


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"operation": ""}, 422, "operation"),
        ({"operation": None}, 422, "operation"),
        ({"operation": "a\nb"}, 422, "operation"),
        ({"parameters": []}, 422, "parameters"),
        ({"parameters": {"a": "x" * 33_000}}, 422, "parameters"),
        ({"correlationId": "hush"}, 422, "correlationId"),
        ({"target": {"kind": "hush", "value": "x"}}, 422, "target"),
        ({"target": {"kind": "group", "value": "hush hush"}}, 422, "target.group.value"),
        ({"target": {"kind": "device"}}, 400, "target.device.value"),
        ({"target": {"value": "x"}}, 400, "target.kind"),
        ({"more": 1}, 422, "more"),
    ],
)
async def test_an_invalid_command_is_refused_with_its_field(
    http_api: HttpApi, device: Device, change: dict[str, Any], status: int, field: str
) -> None:
    """The response has the reason, but not the value."""
    async with http_api.operator() as http:
        answer = await http.post(PATH, json=command(device, **change))
    assert (answer.status_code, list(faults(answer))) == (status, [field])
    assert "hush" not in answer.text


async def test_only_commands_are_returned_as_commands(http_api: HttpApi, device: Device) -> None:
    """An unused job id, an id of another form, and a device's workflow are refused."""
    async with http_api.operator() as http:
        assert problem(await http.get(f"{PATH}/granit-{uuid4()}"))["status"] == 404
        assert faults(await http.get(f"{PATH}/{device.workflow_id}x")).keys() == {"commandId"}
        assert problem(await http.get(f"{PATH}/{device.workflow_id}"))["status"] == 404
        assert problem(await http.delete(f"{PATH}/device-{UUID(int=1)}"))["status"] == 404

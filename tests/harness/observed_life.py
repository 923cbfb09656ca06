"""Two devices' lives, under a worker and doors of their own, and all that these said, measured and traced."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import UUID

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from domain.names import SHADOW_DELTA_POLL
from domain.provisioning_status import ProvisioningStatus
from embedded.processes import choose_ports
from embedded.simulated_device import SimulatedDevice, desire
from tests.harness.bridge import Bridge, Device, until
from tests.harness.command_line import running
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness, enrol
from tests.harness.http_api import HttpApi

QUEUE = "observed"


@dataclass(frozen=True)
class Observed:
    """All that came of it."""

    device: Device
    """Told of over HTTP; lives from its provisioning to its end."""
    failed: Device
    """Signalled by a client that traces nothing; fails once, and is retried."""
    enrolled: Device
    secrets: list[str]
    """What must be nowhere: private keys line by line, the caller's key, the credentials for AWS."""
    worker_metrics: str
    api_metrics: str
    log: list[dict[str, Any]]
    spans: list[Span]

    @property
    def texts(self) -> dict[str, str]:
        """All that left the processes, as text."""
        return {
            "metrics": self.worker_metrics + self.api_metrics,
            "log": "\n".join(json.dumps(line, ensure_ascii=False) for line in self.log),
            "spans": "\n".join(map(str, self.spans)),
        }

    def count(self, name: str, tenant_id: UUID | None, **labels: str) -> float:
        """The sum of a metric's samples with these labels, over both processes."""
        wanted = {"tenant_id": str(tenant_id or "global"), **labels}
        return sum(
            sample.value
            for sample in samples(self.worker_metrics + self.api_metrics)
            if sample.name == name and wanted.items() <= sample.labels.items()
        )


def samples(exposition: str) -> list[Sample]:
    """Every sample of a text that Prometheus would read."""
    return [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]


@contextmanager
def otlp_receiver() -> Iterator[tuple[str, list[Span]]]:
    """Where traces are sent over OTLP/HTTP, and those that came."""
    came: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for of_scope in of_resource.scope_spans:
                    came.extend(of_scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", came
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def listened_to(
    said: list[bytes], *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose standard error is read as it comes; told to stop, and waited for."""
    async with running(*arguments, **environment) as process:
        assert process.stderr is not None
        stderr = process.stderr

        async def listen() -> None:
            while line := await stderr.readline():
                said.append(line)

        listening = asyncio.create_task(listen())
        try:
            yield process
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)
            await listening


async def observe(bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness) -> Observed:
    """Live both lives, and hear the processes to their end."""
    device, failed = Device("OBSERVED-1"), Device("OBSERVED-2")
    assert device.tenant_id is not None
    enrolled = Device("OBSERVED-3", device.tenant_id)
    key, aws_key = http_api.key(device.tenant_id), secrets.token_hex(20)
    api_port, metrics_port = choose_ports(0, 0)
    said: list[bytes] = []
    with otlp_receiver() as (endpoint, spans):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "AWS_SECRET_ACCESS_KEY": aws_key,
            "IOT_AWS_WORKER__TASK_QUEUE": QUEUE,
            "IOT_AWS_TELEMETRY__METRICS_PORT": str(metrics_port),
            "IOT_AWS_LOG__LEVEL": "DEBUG",
        }
        api, worker = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{metrics_port}"
        async with AsyncExitStack() as at_work:
            await at_work.enter_async_context(listened_to(said, "worker", **environment))
            await at_work.enter_async_context(
                listened_to(said, "api", "--port", str(api_port), **environment)
            )
            http = await at_work.enter_async_context(
                httpx2.AsyncClient(
                    base_url=api, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30
                )
            )
            await until(lambda: answers(f"{api}/healthz"), "the doors are open")
            await until(lambda: answers(f"{worker}/healthz"), "the worker lives")
            keys = await live(http, bridge, device)
            keys += await fail_and_retry(bridge, failed)
            await enrol_twice(http, bridge, enrolment, enrolled)
            await sent(bridge, device, failed, enrolment.enrolled(enrolled))
            metrics = [await shown(f"{at}/metrics") for at in (worker, api)]
    return Observed(
        device=device,
        failed=failed,
        enrolled=enrolled,
        secrets=[key, aws_key, *(line for each in keys for line in each.splitlines()[1:-1])],
        worker_metrics=metrics[0],
        api_metrics=metrics[1],
        log=[json.loads(line) for line in said],
        spans=spans,
    )


async def live(http: httpx2.AsyncClient, bridge: Bridge, device: Device) -> list[str]:
    """From the first event to the last, with two commands and a desired change; the device's private key."""
    await tell(http, device, "Provisioned")
    await bridge.wait_for_status(device, ProvisioningStatus.ACTIVE)
    await bridge.wait_for_end(device)
    key = str(bridge.traces(device).key)
    await tell(http, device, "Activated", 1)
    await bridge.wait_for_end(device)
    await command(http, bridge, device, done=True)
    await command(http, bridge, device, done=False)
    desire(bridge.aws_endpoint_url, device.thing_name, {"interval": 5})
    poll = await bridge.client.start_workflow(SHADOW_DELTA_POLL, id=f"{QUEUE}-poll", task_queue=QUEUE)
    await asyncio.wait_for(poll.result(), 60)
    await tell(http, device, "Decommissioned", 2)
    await bridge.wait_for_end(device)
    assert (await http.post(VERIFY, json={"serialNumber": device.serial_number})).status_code == 403
    return [key]


async def fail_and_retry(bridge: Bridge, device: Device) -> list[str]:
    """Denied by AWS, then throttled, then let through; what is signalled here bears no trace."""
    name = device.thing_name
    bridge.emulator.add_fault("iot:AttachPolicy", code="UnauthorizedException", status=401, times=1)
    bridge.emulator.add_fault(
        "iot:CreateThing", resource=name, code="ThrottlingException", status=429, times=1
    )
    await bridge.signal(device, device.event("Provisioned"), queue=QUEUE)
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    await bridge.signal(device, {"no": "event"}, queue=QUEUE)
    await bridge.signal(device, signal="retry", queue=QUEUE)
    await bridge.wait_for_end(device)
    return [str(bridge.traces(device).key)]


async def enrol_twice(
    http: httpx2.AsyncClient, bridge: Bridge, enrolment: EnrolmentHarness, device: Device
) -> None:
    """A device that enrols itself, and whose registration is repeated."""
    assert (await http.post(VERIFY, json={"serialNumber": device.serial_number})).status_code == 200
    body = enrolment.in_aws(bridge, device)
    await enrol(http, body)
    await enrol(http, body, again=True)
    assert (await http.post(REGISTERED, json={})).status_code == 400
    await bridge.wait_for_end(enrolment.enrolled(device))


async def command(http: httpx2.AsyncClient, bridge: Bridge, device: Device, *, done: bool) -> None:
    """A command that is cancelled; too late, where the device has done it."""
    target = {"kind": "device", "value": str(device.device_id)}
    sent = await http.post("/api/iot/commands", json={"target": target, "operation": "reboot"})
    job_id = sent.json()["jobId"]
    at = f"/api/iot/commands/{job_id}"

    async def made() -> bool:
        return (await http.get(at)).json()["jobArn"] is not None

    await until(made, f"{job_id} is made")
    if done:
        simulated = SimulatedDevice(bridge.aws_endpoint_url, device.thing_name)
        await asyncio.to_thread(simulated.take_one)
    assert (await http.delete(at)).status_code == 202
    await asyncio.wait_for(bridge.client.get_workflow_handle(job_id).result(), 60)


async def sent(bridge: Bridge, *devices: Device) -> None:
    """Wait until every event of theirs has been sent."""

    async def empty() -> bool:
        return all(row.published_at for device in devices for row in bridge.outbox(device))

    await until(empty, "all events are sent")


async def tell(http: httpx2.AsyncClient, device: Device, kind: str, minute: int = 0) -> None:
    answer = await http.post("/api/iot/device-events", json=device.event(kind, minute))
    assert answer.status_code == 202, answer.text


async def answers(url: str) -> bool:
    try:
        await shown(url)
    except httpx2.HTTPError:
        return False
    return True


async def shown(url: str) -> str:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        answer = await client.get(url)
    assert answer.status_code == 200
    return answer.text

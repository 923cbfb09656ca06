"""Run lifecycles of three devices with a worker and an API, and collect their logs, metrics and traces."""

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

QUEUE = "telemetry"


@dataclass(frozen=True)
class CollectedTelemetry:
    """The telemetry that a worker and an API exported during three lifecycles, and the devices."""

    device: Device
    """A device whose events are sent over HTTP: it is provisioned, used and decommissioned."""
    failed: Device
    """A device whose events are sent by a client without tracing: it fails once and is retried."""
    enrolled: Device
    """A device that enrols itself."""
    secrets: list[str]
    """Values that must not be exported: lines of private keys, the caller's key, the credentials for AWS."""
    worker_metrics: str
    api_metrics: str
    log: list[dict[str, Any]]
    spans: list[Span]

    @property
    def texts(self) -> dict[str, str]:
        """Return the exported metrics, log lines and spans as text."""
        return {
            "metrics": self.worker_metrics + self.api_metrics,
            "log": "\n".join(json.dumps(line, ensure_ascii=False) for line in self.log),
            "spans": "\n".join(map(str, self.spans)),
        }

    def count(self, name: str, tenant_id: UUID | None, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels, over both processes."""
        expected = {"tenant_id": str(tenant_id or "global"), **labels}
        return sum(
            sample.value
            for sample in samples(self.worker_metrics + self.api_metrics)
            if sample.name == name and expected.items() <= sample.labels.items()
        )


def samples(exposition: str) -> list[Sample]:
    """Return every sample of a text in Prometheus' format."""
    return [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]


@contextmanager
def otlp_receiver() -> Iterator[tuple[str, list[Span]]]:
    """Run a receiver of traces over OTLP/HTTP; yield its URL and the list of received spans."""
    received: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    received.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def logged_process(
    log: list[bytes], *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process and collect its log; at the end stop it and wait for its exit."""
    async with running(*arguments, **environment) as process:
        assert process.stderr is not None
        stderr = process.stderr

        async def collect() -> None:
            while line := await stderr.readline():
                log.append(line)

        collecting = asyncio.create_task(collect())
        try:
            yield process
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)
            await collecting


async def collect_telemetry(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> CollectedTelemetry:
    """Run the three lifecycles, and collect what the processes export until they exit."""
    device, failed = Device("OBSERVED-1"), Device("OBSERVED-2")
    assert device.tenant_id is not None
    enrolled = Device("OBSERVED-3", device.tenant_id)
    key, aws_key = http_api.key(device.tenant_id), secrets.token_hex(20)
    api_port, metrics_port = choose_ports(0, 0)
    log: list[bytes] = []
    with otlp_receiver() as (endpoint, spans):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "AWS_SECRET_ACCESS_KEY": aws_key,
            "IOT_AWS_WORKER__TASK_QUEUE": QUEUE,
            "IOT_AWS_TELEMETRY__METRICS_PORT": str(metrics_port),
            "IOT_AWS_LOG__LEVEL": "DEBUG",
        }
        api, worker = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{metrics_port}"
        async with AsyncExitStack() as running_processes:
            await running_processes.enter_async_context(logged_process(log, "worker", **environment))
            await running_processes.enter_async_context(
                logged_process(log, "api", "--port", str(api_port), **environment)
            )
            http = await running_processes.enter_async_context(
                httpx2.AsyncClient(
                    base_url=api, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30
                )
            )
            await until(lambda: answers(f"{api}/healthz"), "the API answers")
            await until(lambda: answers(f"{worker}/healthz"), "the worker answers")
            keys = await run_lifecycle(http, bridge, device)
            keys += await fail_and_retry(bridge, failed)
            await enrol_twice(http, bridge, enrolment, enrolled)
            await wait_until_sent(bridge, device, failed, enrolment.with_assigned_id(enrolled))
            metrics = [await fetch(f"{url}/metrics") for url in (worker, api)]
    return CollectedTelemetry(
        device=device,
        failed=failed,
        enrolled=enrolled,
        secrets=[key, aws_key, *(line for each in keys for line in each.splitlines()[1:-1])],
        worker_metrics=metrics[0],
        api_metrics=metrics[1],
        log=[json.loads(line) for line in log],
        spans=spans,
    )


async def run_lifecycle(http: httpx2.AsyncClient, bridge: Bridge, device: Device) -> list[str]:
    """Run a device from its first event to its last, with two commands and a change of desired state.

    Returns:
        The private keys of the device.
    """
    await post_event(http, device, "Provisioned")
    await bridge.wait_for_status(device, ProvisioningStatus.ACTIVE)
    await bridge.wait_for_end(device)
    key = str(bridge.aws_resources(device).key)
    await post_event(http, device, "Activated", 1)
    await bridge.wait_for_end(device)
    await command(http, bridge, device, executed=True)
    await command(http, bridge, device, executed=False)
    desire(bridge.aws_endpoint_url, device.thing_name, {"interval": 5})
    poll = await bridge.client.start_workflow(SHADOW_DELTA_POLL, id=f"{QUEUE}-poll", task_queue=QUEUE)
    await asyncio.wait_for(poll.result(), 60)
    await post_event(http, device, "Decommissioned", 2)
    await bridge.wait_for_end(device)
    assert (await http.post(VERIFY, json={"serialNumber": device.serial_number})).status_code == 403
    return [key]


async def fail_and_retry(bridge: Bridge, device: Device) -> list[str]:
    """Provision a device that AWS throttles and denies, and retry it; its signals carry no trace headers.

    Returns:
        The private keys of the device.
    """
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
    return [str(bridge.aws_resources(device).key)]


async def enrol_twice(
    http: httpx2.AsyncClient, bridge: Bridge, enrolment: EnrolmentHarness, device: Device
) -> None:
    """Enrol a device, and repeat its registration."""
    assert (await http.post(VERIFY, json={"serialNumber": device.serial_number})).status_code == 200
    body = enrolment.create_aws_resources(bridge, device)
    await enrol(http, body)
    await enrol(http, body, already_provisioned=True)
    assert (await http.post(REGISTERED, json={})).status_code == 400
    await bridge.wait_for_end(enrolment.with_assigned_id(device))


async def command(http: httpx2.AsyncClient, bridge: Bridge, device: Device, *, executed: bool) -> None:
    """Send a command and cancel it; with `executed`, only after the device has executed it."""
    target = {"kind": "device", "value": str(device.device_id)}
    sent = await http.post("/api/iot/commands", json={"target": target, "operation": "reboot"})
    job_id = sent.json()["jobId"]
    path = f"/api/iot/commands/{job_id}"

    async def is_created() -> bool:
        return (await http.get(path)).json()["jobArn"] is not None

    await until(is_created, f"{job_id} is created")
    if executed:
        simulated = SimulatedDevice(bridge.aws_endpoint_url, device.thing_name)
        await asyncio.to_thread(simulated.execute_next_job)
    assert (await http.delete(path)).status_code == 202
    await asyncio.wait_for(bridge.client.get_workflow_handle(job_id).result(), 60)


async def wait_until_sent(bridge: Bridge, *devices: Device) -> None:
    """Wait until every event of the devices has been sent."""

    async def all_sent() -> bool:
        return all(row.published_at for device in devices for row in bridge.outbox(device))

    await until(all_sent, "all events are sent")


async def post_event(http: httpx2.AsyncClient, device: Device, kind: str, minute: int = 0) -> None:
    response = await http.post("/api/iot/device-events", json=device.event(kind, minute))
    assert response.status_code == 202, response.text


async def answers(url: str) -> bool:
    try:
        await fetch(url)
    except httpx2.HTTPError:
        return False
    return True


async def fetch(url: str) -> str:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        response = await client.get(url)
    assert response.status_code == 200
    return response.text

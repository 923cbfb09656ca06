"""Logs, metrics and traces of device lifecycles: complete, as documented, and without secrets."""

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Never

import psycopg
import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine

from embedded.processes import choose_ports
from events.sinks.log import LogSink
from observability import metrics
from observability.gauges import measure_outbox, stop_measuring
from observability.metrics import EVENTS_PARKED, Count, Duration, Gauge
from observability.metrics_server import serving_metrics
from orchestration.tracing import RunTracingInterceptor
from tests import ROOT
from tests.harness.bridge import Bridge
from tests.harness.command_line import run
from tests.harness.enrolment import EnrolmentHarness
from tests.harness.http_api import HttpApi
from tests.harness.telemetry_run import CollectedTelemetry, collect_telemetry, samples
from tests.workflows.test_replay import RECORDED, recorded, replayer

METRICS_FILE = ROOT / "docs" / "metrics.md"
METRICS = METRICS_FILE.read_text()
STEPS = ("ensure_thing", "issue_certificate", "attach_certificate", "activate_certificate")


@pytest_asyncio.fixture(scope="module")
async def telemetry(bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness) -> CollectedTelemetry:
    """The lifecycles, run once for all tests of this file."""
    try:
        return await collect_telemetry(bridge, http_api, enrolment)
    finally:
        bridge.emulator.clear_faults()


# --- Metrics


def test_each_occurrence_is_counted_once(telemetry: CollectedTelemetry) -> None:
    """Each counter has the device's tenant and the operation as labels."""
    tenant, other = telemetry.device.tenant_id, telemetry.failed.tenant_id
    expected = {
        ("provisioning_things_created", tenant, "ensure_thing"): 1,
        ("provisioning_things_created", other, "ensure_thing"): 1,
        ("provisioning_certificates_issued", tenant, "issue_certificate"): 1,
        ("provisioning_certificates_issued", other, "issue_certificate"): 1,
        ("provisioning_activated", tenant, "activate_certificate"): 1,
        ("provisioning_activated", other, "activate_certificate"): 1,
        ("provisioning_decommissioned", tenant, "close_binding"): 1,
        ("provisioning_failed", tenant, "mark_failed"): 0,
        ("provisioning_failed", other, "mark_failed"): 1,
        ("shadow_reported_pushed", tenant, "report_status"): 2,
        ("shadow_deltas_detected", tenant, "poll_delta_page"): 1,
        ("shadow_poll_visited", tenant, "poll_delta_page"): 1,
        ("shadow_poll_failed", tenant, "poll_delta_page"): 0,
        ("jobs_completed", tenant, "publish_command_end"): 1,
        ("fleet_provisioning_verify_allowed", tenant, "verify"): 1,
        ("fleet_provisioning_verify_denied", tenant, "verify"): 1,
        ("fleet_provisioning_register_completed", tenant, "registered"): 1,
        ("fleet_provisioning_register_idempotent", tenant, "registered"): 1,
        ("aws_throttles", other, "CreateThing"): 1,
    }
    found = {
        (name, whose, operation): telemetry.count(f"thingbridge_{name}_total", whose, operation=operation)
        for name, whose, operation in expected
    }
    assert found == expected
    # The change of desired state became a command too, which the decommission may have ended at any point.
    assert telemetry.count("thingbridge_jobs_dispatched_total", tenant, operation="create_job") >= 2
    assert telemetry.count("thingbridge_jobs_failed_total", tenant, operation="publish_command_end") >= 1
    assert telemetry.count("thingbridge_provisioning_failed_total", other, reason="AccessDenied") == 1


def test_calls_to_aws_are_counted_by_result(telemetry: CollectedTelemetry) -> None:
    """Each call has the tenant it was made for, its result and its duration."""
    calls, other = "thingbridge_aws_calls_total", telemetry.failed.tenant_id
    assert telemetry.count(calls, other, service="iot", operation="CreateThing", result="throttled") == 1
    assert telemetry.count(calls, other, service="iot", operation="CreateThing", result="ok") == 1
    assert telemetry.count(calls, other, service="iot", operation="AttachPolicy", result="denied") == 1
    assert telemetry.count(calls, other, service="secretsmanager", operation="CreateSecret", result="ok") == 1
    took = "thingbridge_aws_call_duration_seconds_count"
    assert telemetry.count(took, other, service="iot", operation="CreateThing") == 2


def test_steps_and_events_are_measured(telemetry: CollectedTelemetry) -> None:
    """Durations of the saga's steps, the number of sent events and the age of each shard are exported."""
    for step in STEPS:
        took = "thingbridge_provisioning_step_duration_seconds_count"
        assert telemetry.count(took, telemetry.device.tenant_id, operation=step) == 1, step
    sent = telemetry.count(
        "thingbridge_events_sent_total",
        telemetry.device.tenant_id,
        sink="log",
        type="AwsThingDecommissionedEvent",
    )
    assert sent == 1
    oldest = "thingbridge_events_outbox_oldest_seconds"
    assert {s.labels["shard"] for s in samples(telemetry.worker_metrics) if s.name == oldest} == set("0123")


def test_metrics_of_temporals_sdk_are_on_the_same_page(telemetry: CollectedTelemetry) -> None:
    """They have the names that Temporal documents, so that its public dashboards work."""
    of_worker = names_on(telemetry.worker_metrics)
    assert of_worker >= {
        "temporal_request",
        "temporal_request_latency_bucket",
        "temporal_workflow_completed",
        "temporal_activity_schedule_to_start_latency_bucket",
        "temporal_worker_task_slots_available",
        "temporal_worker_task_slots_used",
        "temporal_workflow_task_schedule_to_start_latency_bucket",
    }
    assert "temporal_request" in names_on(telemetry.api_metrics)


def names_on(page: str) -> set[str]:
    """Return the names of all series as written; the client library's parser adds `_total` to counters."""
    return set(re.findall(r"^(\w+)\{", page, re.MULTILINE))


def test_table_of_metrics_matches_the_code(telemetry: CollectedTelemetry) -> None:
    """`docs/metrics.md` lists every metric, and exported metrics have exactly the documented labels."""
    listed = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(thingbridge_\w+)` \|(.*?)\|", METRICS, re.MULTILINE)
    }
    kinds = Count | Duration | Gauge
    declared = {exported_name(each) for each in vars(metrics).values() if isinstance(each, kinds)}
    assert set(listed) == declared
    exported = {
        re.sub(r"_(bucket|count|sum)$", "", sample.name): set(sample.labels) - {"le"}
        for sample in samples(telemetry.worker_metrics + telemetry.api_metrics)
        if sample.name.startswith("thingbridge_")
    }
    assert len(exported) > 20
    assert {name: listed[name] | {"tenant_id", "operation"} for name in exported} == exported


def exported_name(instrument: Count | Duration | Gauge) -> str:
    name = instrument.name.replace(".", "_")
    if isinstance(instrument, Count):
        return f"{name}_total"
    return f"{name}_{instrument.unit}" if instrument.unit else name


def test_gauge_reads_its_value_at_each_scrape() -> None:
    """It is read at the time of the scrape, not when the function was set."""
    level = {"a": 1.0}
    gauge = Gauge("test", "level", "A level", label="tank")
    gauge.read_with(lambda: level)
    level["a"] = 2.0
    (only,) = gauge.observations()
    assert only.value == 2.0
    assert only.attributes == {"tenant_id": "global", "operation": "level", "tank": "a"}


async def test_denied_call_keeps_its_labels_among_a_thousand_tenants() -> None:
    """A denied call has its own series also with a thousand tenants, so that an alert can select it."""
    script = """
from observability import telemetry
telemetry.configure("INFO", "text", measured=True)
from tests import ROOT
from observability import metrics
from observability.exposition import exposition
from observability.metrics import AWS_CALL_DURATION, AWS_CALLS
for number in range(1_000):
    for api in range(20):
        AWS_CALLS.add(f"tenant-{number}", f"Api{api}", service="iot", result="ok")
AWS_CALLS.add("tenant-1", "CreateThing", service="iot", result="denied")
AWS_CALL_DURATION.record("tenant-1", "CreateThing", 0.03, service="iot")
print(exposition().decode())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=METRICS_FILE.parent.parent, stdout=asyncio.subprocess.PIPE
    )
    shown = (await process.communicate())[0].decode()
    assert re.search(r'^thingbridge_aws_calls_total\{.*result="denied".*\} 1\.0$', shown, re.MULTILINE)
    assert "otel_metric_overflow" not in shown
    # The view keeps the buckets of the instrument.
    assert re.search(
        r'^thingbridge_aws_call_duration_seconds_bucket\{.*le="0\.05".*\} 1\.0$', shown, re.MULTILINE
    )


def test_database_that_hangs_hides_no_other_metric() -> None:
    """Gauges that read the database have no value then, also with several scrapes at the same time."""
    connected = threading.Event()

    def connect() -> Never:
        connected.wait()
        raise psycopg.OperationalError("unavailable")

    engine = create_engine("postgresql+psycopg://", creator=connect)
    measure_outbox(engine, LogSink().kind, LogSink().fingerprint)
    try:
        with ThreadPoolExecutor(2) as scrapes:
            results = [scrapes.submit(lambda: list(EVENTS_PARKED.observations())) for _ in range(2)]
            try:
                assert [scrape.result(60) for scrape in results] == [[], []]
            finally:
                connected.set()
    finally:
        stop_measuring()


async def test_worker_exits_if_its_metrics_port_is_in_use() -> None:
    """The error names the setting to change."""
    (port,) = choose_ports(0)
    with serving_metrics("127.0.0.1", port):
        result = await run("worker", IOT_AWS_TELEMETRY__METRICS_PORT=str(port))
    assert result.exit_code == 2
    assert f"IOT_AWS_TELEMETRY__METRICS_PORT: 127.0.0.1:{port} cannot be listened on" in result.stderr


# --- Traces


def test_one_trace_covers_request_workflow_activities_and_aws(telemetry: CollectedTelemetry) -> None:
    """The HTTP request, the signal, the workflow, its activities and their calls to AWS have one trace id."""
    first = min(
        (span for span in telemetry.spans if span.name == "POST /api/iot/device-events"),
        key=lambda span: span.start_time_unix_nano,
    )
    names = {span.name for span in telemetry.spans if span.trace_id == first.trace_id}
    assert names >= {
        "SignalWithStartWorkflow:DeviceLifecycle",
        "RunWorkflow:DeviceLifecycle",
        "RunActivity:apply_event",
        *(f"RunActivity:{step}" for step in STEPS),
        "iot.CreateThing",
        "iot.CreateKeysAndCertificate",
        "secretsmanager.CreateSecret",
    }


def test_span_of_an_aws_call_is_a_child_of_its_activity(telemetry: CollectedTelemetry) -> None:
    """The span of an AWS call is a child of its activity's span."""
    by_id = {span.span_id: span for span in telemetry.spans}
    (call,) = spans_of_workflow(telemetry, "iot.CreateThing", telemetry.device.workflow_id)
    assert by_id[call.parent_span_id].name == "RunActivity:ensure_thing"


def test_signal_without_trace_headers_begins_a_trace(telemetry: CollectedTelemetry) -> None:
    """Events of a client without tracing are processed, and the run of its device is one trace."""
    runs = spans_of_workflow(telemetry, "RunWorkflow:DeviceLifecycle", telemetry.failed.workflow_id)
    (trace_id,) = {span.trace_id for span in runs}
    names = {span.name for span in telemetry.spans if span.trace_id == trace_id}
    assert names >= {"RunActivity:mark_failed", "RunActivity:resume_binding", "iot.CreateThing"}
    throttled = [span for span in telemetry.spans if span.trace_id == trace_id and span.status.code]
    assert {"iot.CreateThing", "iot.AttachPolicy"} <= {span.name for span in throttled}


def spans_of_workflow(telemetry: CollectedTelemetry, name: str, workflow_id: str) -> Iterator[Span]:
    """Return the spans of a name in the traces of a workflow."""
    traces = {
        span.trace_id
        for span in telemetry.spans
        for attribute in span.attributes
        if attribute.key == "temporalWorkflowID" and attribute.value.string_value == workflow_id
    }
    return (span for span in telemetry.spans if span.name == name and span.trace_id in traces)


@pytest.mark.parametrize("name", [name for name in RECORDED if name.endswith("-1")][:5])
async def test_histories_replay_with_tracing_enabled(name: str) -> None:
    """Tracing adds no command to a run that began without it, and exports no span twice."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = RunTracingInterceptor(provider.get_tracer("test"), always_create_workflow_spans=True)
    await replayer(tracing).replay_workflow(recorded(name))
    provider.shutdown()
    assert not [span.name for span in exporter.get_finished_spans() if span.name.startswith("StartActivity")]


# --- Logs


def test_log_lines_of_a_device_have_its_ids(telemetry: CollectedTelemetry) -> None:
    """Lines that an activity or Temporal logs for a device have its tenant, device, Thing and run."""
    for device in (telemetry.device, telemetry.failed):
        run = {"workflow_id": device.workflow_id}
        ids = {
            "tenant_id": str(device.tenant_id),
            "device_id": str(device.device_id),
            "thing_name": device.thing_name,
        }
        lines = [line for line in telemetry.log if run.items() <= line.get("temporal_activity", {}).items()]
        # The SDK logs this line before the activity's input is decoded.
        started = [line for line in lines if line["message"].startswith("Starting activity")]
        assert len(lines) > len(started) > len(STEPS)
        for line in lines:
            expected = run if line in started else run | ids
            assert expected.items() <= line.items(), line
            assert line["run_id"] == line["temporal_activity"]["workflow_run_id"]


def test_log_line_of_a_failure_has_the_ids(telemetry: CollectedTelemetry) -> None:
    """A log line of a failure has the ids of the device and its run."""
    (line,) = [
        line for line in telemetry.log if line["level"] == "ERROR" and "AccessDenied" in line["message"]
    ]
    assert line["device_id"] == str(telemetry.failed.device_id)
    assert line["tenant_id"] == str(telemetry.failed.tenant_id)
    assert line["thing_name"] == telemetry.failed.thing_name
    assert line["workflow_id"] == telemetry.failed.workflow_id


def test_requests_are_logged_with_tenant_and_trace(telemetry: CollectedTelemetry) -> None:
    """The trace of a request can be found from its log line."""
    requests = [line for line in telemetry.log if line.get("path") == "/api/iot/device-events"]
    assert len(requests) == 3
    assert {line["tenant_id"] for line in requests} == {str(telemetry.device.tenant_id)}
    traces = {span.trace_id.hex() for span in telemetry.spans}
    assert {line["trace_id"] for line in requests} <= traces


def test_no_secret_is_logged_measured_or_traced(telemetry: CollectedTelemetry) -> None:
    """No part of a private key, no caller's key and no credentials for AWS are exported at level DEBUG."""
    assert len(telemetry.secrets) > 40
    for place, text in telemetry.texts.items():
        assert len(text) > 10_000, place
        assert "PRIVATE KEY" not in text, place
        assert not [secret for secret in telemetry.secrets if secret in text], place

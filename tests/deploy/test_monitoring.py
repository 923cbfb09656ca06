"""Dashboard and alert rules query only exported metrics, and each alert has a section in the handbook."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final

import httpx2
import promql_parser
import pytest
import yaml
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError

from embedded.processes import choose_ports
from embedded.stack import Addresses
from tests import ROOT
from tests.harness.bridge import until

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "thingbridge.json"
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yaml"
HANDBOOK: Final = ROOT / "docs" / "handbook.md"

# The labels that Prometheus adds to each series.
TARGET_LABELS: Final = frozenset({"job", "instance"})
BRIDGE_LABELS: Final = TARGET_LABELS | {"tenant_id", "operation"}
QUEUE_LABELS: Final = TARGET_LABELS | {"namespace", "task_queue"}
CALL_LABELS: Final = QUEUE_LABELS | {"operation", "status_code"}

# Metrics of Temporal's SDK that are queried here; its latencies are in milliseconds.
TEMPORAL_SDK: Final[Mapping[str, frozenset[str]]] = {
    "temporal_activity_execution_failed": QUEUE_LABELS | {"activity_type", "workflow_type", "failure_reason"},
    "temporal_activity_schedule_to_start_latency_bucket": QUEUE_LABELS | {"le"},
    "temporal_long_request_failure": CALL_LABELS,
    "temporal_request_failure": CALL_LABELS,
    "temporal_sticky_cache_hit": QUEUE_LABELS | {"workflow_type"},
    "temporal_sticky_cache_miss": QUEUE_LABELS | {"workflow_type"},
    "temporal_worker_task_slots_available": QUEUE_LABELS | {"worker_type"},
    "temporal_worker_task_slots_used": QUEUE_LABELS | {"worker_type"},
    "temporal_workflow_completed": QUEUE_LABELS | {"workflow_type"},
    "temporal_workflow_failed": QUEUE_LABELS | {"workflow_type"},
    "temporal_workflow_task_execution_failed": QUEUE_LABELS | {"workflow_type", "failure_reason"},
    "temporal_workflow_task_queue_poll_empty": QUEUE_LABELS,
    "temporal_workflow_task_schedule_to_start_latency_bucket": QUEUE_LABELS | {"le"},
}
# Gauges besides those of the bridge. All other metrics are counters, and are queried for their increase.
OTHER_GAUGES: Final = frozenset(
    {"up", "temporal_worker_task_slots_available", "temporal_worker_task_slots_used"}
)
# Variables that Grafana replaces before it sends a query.
GRAFANA_VARIABLES: Final = {"$__rate_interval": "5m", "$__range": "6h", "$tenant": ".*"}


def listed_metrics() -> list[tuple[str, frozenset[str], str]]:
    """Return the bridge's metrics as docs/metrics.md lists them: name, all labels, and description."""
    row = re.compile(r"^\| `(thingbridge_\w+)` \| (.*?) ?\| (.+) \|$", re.MULTILINE)
    return [
        (name, BRIDGE_LABELS | set(re.findall(r"`(\w+)`", labels)), description)
        for name, labels, description in row.findall((ROOT / "docs" / "metrics.md").read_text())
    ]


def exported_metrics() -> dict[str, frozenset[str]]:
    """Return every exported series name with its labels; a histogram has three series names."""
    exported = {"up": TARGET_LABELS, **TEMPORAL_SDK}
    for name, labels, description in listed_metrics():
        if description.startswith("histogram"):
            exported |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
        else:
            exported[name] = labels
    return exported


def gauges() -> set[str]:
    return {
        name for name, _, description in listed_metrics() if description.startswith("gauge")
    } | OTHER_GAUGES


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in listed if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return each query with the alert or panel it belongs to."""
    on_dashboard = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    return [*((rule["alert"], rule["expr"]) for rule in alerts()), *on_dashboard]


def parse(query: str) -> promql_parser.Expr:
    for variable, value in GRAFANA_VARIABLES.items():
        query = query.replace(variable, value)
    return promql_parser.parse(query)


def nodes(query: str) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(parse(query), lambda node: found.append(node))
    return found


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    for node in nodes(query):
        if isinstance(node, promql_parser.VectorSelector):
            yield node
        elif isinstance(node, promql_parser.MatrixSelector):
            yield node.vector_selector


def grouping_labels(query: str) -> set[str]:
    modifiers = [node.modifier for node in nodes(query) if isinstance(node, promql_parser.AggregateExpr)]
    return {label for modifier in modifiers if modifier for label in modifier.labels}


@pytest.mark.parametrize(("purpose", "query"), queries())
def test_each_query_uses_exported_metrics_and_labels(purpose: str, query: str) -> None:
    """Every metric, every label matched and every label grouped by is exported."""
    exported = exported_metrics()
    used = list(selectors(query))
    assert used, f"{purpose}: no metric is queried"
    assert {selector.name for selector in used} <= exported.keys()
    for selector in used:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= exported[selector.name or ""]
    assert all(grouping_labels(query) <= exported[selector.name or ""] for selector in used)


@pytest.mark.parametrize(("purpose", "query"), queries())
def test_counters_are_queried_over_a_range(purpose: str, query: str) -> None:
    """The value of a counter mostly shows how long a process has run; its increase is what counts."""
    counters = {selector.name or "" for selector in selectors(query)} - gauges()
    ranged = {
        node.vector_selector.name for node in nodes(query) if isinstance(node, promql_parser.MatrixSelector)
    }
    assert counters <= ranged, purpose


def test_every_metric_of_the_bridge_is_on_the_dashboard() -> None:
    """Every metric in docs/metrics.md is used by a panel."""
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    names = {name for name, _, _ in listed_metrics()}
    assert names
    assert {name for name in names if name not in shown} == set()


def test_legends_use_labels_that_the_query_keeps() -> None:
    """A label that is aggregated away would leave the legend empty."""
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= grouping_labels(target["expr"]), panel["title"]


def test_dashboard_works_with_any_prometheus() -> None:
    """All panels use the variable for the data source, which is chosen at import."""
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_overlap() -> None:
    """Each cell of the dashboard's grid belongs to at most one panel."""
    occupied: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        position: Mapping[str, int] = panel["gridPos"]
        cells = {
            (position["x"] + column, position["y"] + line)
            for column in range(position["w"])
            for line in range(position["h"])
        }
        assert position["x"] + position["w"] <= 24
        assert not cells & occupied, panel["title"]
        occupied |= cells


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_has_severity_summary_and_runbook(rule: dict[str, Any]) -> None:
    """A notification shows severity, summary, description and the handbook section, which exists."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    assert annotations["runbook"] == f"docs/handbook.md#{rule['alert'].lower()}"
    assert re.search(rf"^#+ {rule['alert']}$", HANDBOOK.read_text(), re.MULTILINE)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_texts_use_labels_that_the_query_keeps(rule: dict[str, Any]) -> None:
    """A label that is aggregated away would be empty in the text."""
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= grouping_labels(rule["expr"])


def sides_after(operator: str, query: str) -> list[list[promql_parser.Expr]]:
    """Return the nodes on the right side of each comparison with this operator."""
    return [
        nodes(str(node.rhs))
        for node in nodes(query)
        if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == operator
    ]


# Alerts that need no new series: credentials are retried every half minute while the error lasts, and a
# poll that has stopped had visits before.
CONTINUOUS: Final = frozenset({"ThingbridgeCredentialsStale", "ThingbridgeShadowPollStopped"})


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_on_counters_include_new_series(rule: dict[str, Any]) -> None:
    """Events before the first scrape of a series give no increase, so the rule selects new series too."""
    increased = {
        selector.name
        for node in nodes(rule["expr"])
        if isinstance(node, promql_parser.Call) and node.func.name == "increase"
        for selector in selectors(str(node))
    }
    compared = {selector.name for selector in selectors(rule["expr"]) if selector.offset}
    assert increased <= compared or rule["alert"] in CONTINUOUS


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_do_not_depend_on_counters_without_samples(rule: dict[str, Any]) -> None:
    """A counter without a sample has no series, so it is neither 0 nor less than another counter."""
    for side in sides_after(">", rule["expr"]):
        has_default = any(
            isinstance(node, promql_parser.Call) and node.func.name == "vector" for node in side
        )
        assert has_default or not any(isinstance(node, promql_parser.VectorSelector) for node in side)
    counters = {selector.name or "" for selector in selectors(rule["expr"])} - gauges()
    assert not (counters and sides_after("==", rule["expr"]))


def test_credentials_alert_allows_for_the_longest_interval() -> None:
    """An alert on age alone has a threshold above the longest allowed interval, 240 minutes."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "ThingbridgeCredentialsStale")
    *others, by_age = rule["expr"].split("\nor\n")
    assert all('refreshes_total{result="error"}' in other for other in others)
    assert by_age.split(">")[1].split("*") == [" 5 ", " 3600\n"]


async def test_unreachable_temporal_has_a_status_that_the_alert_matches(stack: Addresses) -> None:
    """The status is the one the SDK reports after its connection is lost and no other can be opened."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "ThingbridgeTemporalUnreachable")
    matched = {
        matcher.value
        for selector in selectors(rule["expr"])
        for matcher in selector.matchers.matchers
        if matcher.name == "status_code"
    }
    (port,) = choose_ports(0)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(f"127.0.0.1:{port}")))
    async with relay_to(stack.temporal_address) as address:
        client = await Client.connect(address, runtime=runtime)

    async def statuses() -> set[str]:
        with suppress(RPCError):
            await client.service_client.check_health(timeout=timedelta(seconds=1))
        async with httpx2.AsyncClient() as http:
            shown = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        return set(re.findall(r'^temporal_request_failure\{.*status_code="(\w+)"', shown, re.MULTILINE))

    async def failed() -> bool:
        return bool(await statuses())

    await until(failed, "a call to Temporal has failed")
    found = await statuses()
    assert all(re.fullmatch(pattern, status) for pattern in matched for status in found)


@asynccontextmanager
async def relay_to(address: str) -> AsyncIterator[str]:
    """Relay a server at another address; at the end the address and all its connections are closed."""
    host, port = address.split(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while received := await source.read(65_536):
                sink.write(received)
                await sink.drain()

    async def connected(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        server_source, server_sink = await asyncio.open_connection(host, int(port))
        writers.extend((sink, server_sink))
        await asyncio.gather(copy(source, server_sink), copy(server_source, sink))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    relay_host, relay_port = server.sockets[0].getsockname()
    try:
        yield f"{relay_host}:{relay_port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


def test_alert_names_are_unique() -> None:
    """A handbook section is found by the name of its alert."""
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)

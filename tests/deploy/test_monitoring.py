"""Dashboard and alert rules ask for nothing that is not exported."""

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

# What Prometheus itself adds to each series, and its own metric of whether a target answers.
SCRAPED: Final = frozenset({"job", "instance"})
OF_THE_BRIDGE: Final = SCRAPED | {"tenant_id", "operation"}
OF_A_QUEUE: Final = SCRAPED | {"namespace", "task_queue"}
OF_A_CALL: Final = OF_A_QUEUE | {"operation", "status_code"}

# What the SDK exports under its own names, as far as it is asked for; its latencies are in milliseconds.
TEMPORAL_SDK: Final[Mapping[str, frozenset[str]]] = {
    "temporal_activity_execution_failed": OF_A_QUEUE | {"activity_type", "workflow_type", "failure_reason"},
    "temporal_activity_schedule_to_start_latency_bucket": OF_A_QUEUE | {"le"},
    "temporal_long_request_failure": OF_A_CALL,
    "temporal_request_failure": OF_A_CALL,
    "temporal_sticky_cache_hit": OF_A_QUEUE | {"workflow_type"},
    "temporal_sticky_cache_miss": OF_A_QUEUE | {"workflow_type"},
    "temporal_worker_task_slots_available": OF_A_QUEUE | {"worker_type"},
    "temporal_worker_task_slots_used": OF_A_QUEUE | {"worker_type"},
    "temporal_workflow_completed": OF_A_QUEUE | {"workflow_type"},
    "temporal_workflow_failed": OF_A_QUEUE | {"workflow_type"},
    "temporal_workflow_task_execution_failed": OF_A_QUEUE | {"workflow_type", "failure_reason"},
    "temporal_workflow_task_queue_poll_empty": OF_A_QUEUE,
    "temporal_workflow_task_schedule_to_start_latency_bucket": OF_A_QUEUE | {"le"},
}
# What may be read as it stands: all else counts up, and is asked for its rise.
OTHER_GAUGES: Final = frozenset(
    {"up", "temporal_worker_task_slots_available", "temporal_worker_task_slots_used"}
)
# What Grafana puts in before it asks.
GRAFANA_VARIABLES: Final = {"$__rate_interval": "5m", "$__range": "6h", "$tenant": ".*"}


def listed_metrics() -> list[tuple[str, frozenset[str], str]]:
    """The bridge's metrics as docs/metrics.md lists them: name, all labels, and what each tells."""
    row = re.compile(r"^\| `(thingbridge_\w+)` \| (.*?) ?\| (.+) \|$", re.MULTILINE)
    return [
        (name, OF_THE_BRIDGE | set(re.findall(r"`(\w+)`", labels)), tells)
        for name, labels, tells in row.findall((ROOT / "docs" / "metrics.md").read_text())
    ]


def exported_metrics() -> dict[str, frozenset[str]]:
    """Every series name there is, with its labels: a histogram is three of them."""
    exported = {"up": SCRAPED, **TEMPORAL_SDK}
    for name, labels, tells in listed_metrics():
        if tells.startswith("histogram"):
            exported |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
        else:
            exported[name] = labels
    return exported


def gauges() -> set[str]:
    return {name for name, _, tells in listed_metrics() if tells.startswith("gauge")} | OTHER_GAUGES


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in listed if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Each query with what it is for."""
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
def test_each_query_asks_for_what_is_exported(purpose: str, query: str) -> None:
    """Every metric, label matched and label grouped by is one that the bridge exports."""
    exported = exported_metrics()
    asked = list(selectors(query))
    assert asked, f"{purpose}: no metric is asked for"
    assert {selector.name for selector in asked} <= exported.keys()
    for selector in asked:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= exported[selector.name or ""]
    assert all(grouping_labels(query) <= exported[selector.name or ""] for selector in asked)


@pytest.mark.parametrize(("purpose", "query"), queries())
def test_counters_are_asked_for_their_rise(purpose: str, query: str) -> None:
    """A counter's own value says only how long a process has run; new series are found by comparing two."""
    counters = {selector.name or "" for selector in selectors(query)} - gauges()
    ranged = {
        node.vector_selector.name for node in nodes(query) if isinstance(node, promql_parser.MatrixSelector)
    }
    assert counters <= ranged, purpose


def test_every_metric_of_the_bridge_is_on_the_dashboard() -> None:
    """Nothing is counted that nobody could see."""
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    names = {name for name, _, _ in listed_metrics()}
    assert names
    assert {name for name in names if name not in shown} == set()


def test_the_legends_name_labels_that_the_query_keeps() -> None:
    """A legend of a label that was summed away is empty."""
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= grouping_labels(target["expr"]), panel["title"]


def test_the_dashboard_takes_any_prometheus() -> None:
    """No panel names a data source of its own: whoever imports the dashboard chooses one."""
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_overlap() -> None:
    """Each place of the dashboard's grid is one panel's."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place: Mapping[str, int] = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    """Who is paged sees the severity, what happened, and the section of the handbook that helps."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    assert annotations["runbook"] == f"docs/handbook.md#{rule['alert'].lower()}"
    assert re.search(rf"^#+ {rule['alert']}$", HANDBOOK.read_text(), re.MULTILINE)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_what_an_alert_says_is_known_where_it_fires(rule: dict[str, Any]) -> None:
    """A label that a text names is one that the alert's query keeps."""
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= grouping_labels(rule["expr"])


def sides_after(operator: str, query: str) -> list[list[promql_parser.Expr]]:
    """All that stands to the right of each such comparison."""
    return [
        nodes(str(node.rhs))
        for node in nodes(query)
        if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == operator
    ]


# Tries go on each half minute while the fault lasts; a poll that stands still is seen by its visits before.
STEADY: Final = frozenset({"ThingbridgeCredentialsStale", "ThingbridgeShadowPollStopped"})


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_what_a_counter_begins_with_counts(rule: dict[str, Any]) -> None:
    """A burst within one scrape makes a new series, which has not risen: it is found beside the rise."""
    risen = {
        selector.name
        for node in nodes(rule["expr"])
        if isinstance(node, promql_parser.Call) and node.func.name == "increase"
        for selector in selectors(str(node))
    }
    compared = {selector.name for selector in selectors(rule["expr"]) if selector.offset}
    assert risen <= compared or rule["alert"] in STEADY


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_no_alert_waits_for_a_counter_that_never_began(rule: dict[str, Any]) -> None:
    """One that has counted nothing since the start is not there: it is neither 0 nor less than another."""
    for side in sides_after(">", rule["expr"]):
        in_its_place = any(
            isinstance(node, promql_parser.Call) and node.func.name == "vector" for node in side
        )
        assert in_its_place or not any(isinstance(node, promql_parser.VectorSelector) for node in side)
    counters = {selector.name or "" for selector in selectors(rule["expr"])} - gauges()
    assert not (counters and sides_after("==", rule["expr"]))


def test_credentials_that_are_seldom_read_are_not_stale() -> None:
    """An alert by their age alone begins above the longest interval there may be, 240 minutes."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "ThingbridgeCredentialsStale")
    *others, by_age = rule["expr"].split("\nor\n")
    assert all('refreshes_total{result="error"}' in other for other in others)
    assert by_age.split(">")[1].split("*") == [" 5 ", " 3600\n"]


async def test_a_temporal_that_is_away_has_a_status_the_alert_asks_for(stack: Addresses) -> None:
    """The SDK's own word for it, once its connection is gone and no other is to be had."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "ThingbridgeTemporalUnreachable")
    asked = {
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
    assert all(re.fullmatch(pattern, status) for pattern in asked for status in found)


@asynccontextmanager
async def relay_to(address: str) -> AsyncIterator[str]:
    """Another address of a server, which is gone afterwards with all that is connected to it."""
    host, port = address.split(":")
    open_ends: list[asyncio.StreamWriter] = []

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while received := await source.read(65_536):
                sink.write(received)
                await sink.drain()

    async def connected(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        its_source, its_sink = await asyncio.open_connection(host, int(port))
        open_ends.extend((sink, its_sink))
        await asyncio.gather(pass_on(source, its_sink), pass_on(its_source, sink))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    own_host, own_port = server.sockets[0].getsockname()
    try:
        yield f"{own_host}:{own_port}"
    finally:
        server.close()
        for end in open_ends:
            end.close()


def test_no_alert_is_there_twice() -> None:
    """A name stands for one rule, so that its section is found by it."""
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)

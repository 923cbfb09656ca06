"""The Helm chart, rendered by Helm: `uv run --group checks pytest tests/deploy/test_helm_chart.py`."""

import re
import tomllib
from typing import Any

import pytest
import typer
import yaml

from cli import app
from tests import ROOT
from tests.deploy.test_compose import settings_variables

# These packages are in the group `checks` because of their size. scripts/check installs them.
helm = pytest.importorskip("helm_python")
kubernetes = pytest.importorskip("kubernetes_validate")

CHART = ROOT / "deploy" / "helm" / "thingbridge"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ROLE = "arn:aws:iam::123456789012:role/thingbridge-bridge"
VALUES: dict[str, Any] = {
    "existingSecret": "thingbridge",
    "temporal": {"address": "temporal:7233", "namespace": "devices"},
    "aws": {"region": "eu-west-1"},
    "settings": {"IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME": "device"},
    "worker": {"roleArn": ROLE},
}
Manifest = dict[str, Any]


def rendered(**values: Any) -> list[Manifest]:
    """Render the chart and return all manifests."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(VALUES | values, name="bridge", namespace="iot")
    manifests = (yaml.safe_load_all(text) for path, text in texts.items() if path.endswith(".yaml"))
    return [manifest for each in manifests for manifest in each if manifest]


def of_kind(kind: str, manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the manifests of a kind by component."""
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest
        for manifest in manifests
        if manifest["kind"] == kind
    }


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod specifications by component."""
    return {
        name: manifest["spec"]["template"]["spec"]
        for kind in ("Deployment", "Job")
        for name, manifest in of_kind(kind, manifests).items()
    }


def test_helm_lint_reports_no_error() -> None:
    """Its only message recommends an icon."""
    report = helm.lint(CHART, VALUES, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", ["existingSecret", "temporal", "aws", "settings"])
def test_a_missing_required_value_is_refused(name: str) -> None:
    """The error of the schema names the value."""
    with pytest.raises(helm.HelmError, match=name), helm.Chart.load(CHART) as chart:
        chart.render({key: value for key, value in VALUES.items() if key != name}, name="bridge")


def test_every_manifest_is_valid() -> None:
    """Each manifest is valid by the schemas of Kubernetes, and has no unknown field."""
    for manifest in rendered():
        kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize("component", ["api", "migrate", "worker"])
def test_a_pod_has_minimal_rights(component: str) -> None:
    """It has no root user, capabilities, writable root file system or Kubernetes token."""
    pod = pods(rendered())[component]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def test_only_the_workers_have_the_role() -> None:
    """The API and the migration never call AWS."""
    accounts = of_kind("ServiceAccount", rendered())
    annotated = {name for name, account in accounts.items() if "annotations" in account["metadata"]}
    assert annotated == {"worker"}
    assert accounts["worker"]["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": ROLE}


def test_containers_run_existing_commands() -> None:
    """The command of each container is a command of the CLI, in the image of this version."""
    commands = set(typer.main.get_group(app).commands)
    for pod in pods(rendered()).values():
        (container,) = pod["containers"]
        assert container["args"][0] in commands
        assert container["image"] == f"thingbridge:{VERSION}"


def test_the_chart_sets_only_existing_settings() -> None:
    """A misspelt setting in the chart would stop every pod."""
    for pod in pods(rendered()).values():
        (container,) = pod["containers"]
        variables = {variable["name"] for variable in container["env"]}
        assert {name for name in variables if name.startswith("IOT_AWS_")} <= settings_variables()
        assert container["envFrom"] == [{"secretRef": {"name": "thingbridge"}}]


def test_manifests_contain_no_secret() -> None:
    """Helm stores the manifests of each release, so the operator creates the Secret separately."""
    manifests = rendered()
    assert not of_kind("Secret", manifests)
    assert not re.search(r"PASSWORD|DATABASE_URL|API_KEY", yaml.safe_dump(manifests))


@pytest.mark.parametrize("grace", [0, 30, 600])
def test_a_worker_has_enough_time_to_stop(grace: int) -> None:
    """Kubernetes kills a worker only after the worker's own grace period."""
    pod = pods(rendered(worker={"shutdownGraceSeconds": grace}))["worker"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["IOT_AWS_WORKER__SHUTDOWN_GRACE_SECONDS"] == str(grace)
    assert pod["terminationGracePeriodSeconds"] > 2 * grace


def test_probes_do_not_depend_on_other_services() -> None:
    """The kubelet calls only /healthz. Metrics and readiness also query the database."""
    for name in ("api", "worker"):
        (container,) = pods(rendered())[name]["containers"]
        paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")}
        assert paths == {"/healthz"}


def test_the_migration_runs_before_anything_else() -> None:
    """No pod starts before its tables and search attributes exist."""
    annotations = of_kind("Job", rendered())["migrate"]["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_selectors_match_the_pods_of_their_component() -> None:
    """The selectors of Service, budgets and monitors match the labels of the pods."""
    manifests = rendered(monitoring={"enabled": True})
    deployments = of_kind("Deployment", manifests)
    for kind in ("PodDisruptionBudget", "PodMonitor", "Service"):
        for name, manifest in of_kind(kind, manifests).items():
            selector = manifest["spec"]["selector"]
            labels = selector.get("matchLabels", selector).items()
            assert labels <= deployments[name]["spec"]["template"]["metadata"]["labels"].items()
    assert set(of_kind("PodMonitor", manifests)) == {"api", "worker"}


def test_monitors_and_rules_are_optional() -> None:
    """A cluster without the Prometheus operator does not accept these resources."""
    groups = [{"name": "thingbridge", "rules": []}]
    assert not [each for each in rendered() if each["apiVersion"].startswith("monitoring")]
    (rule,) = of_kind("PrometheusRule", rendered(monitoring={"enabled": True, "ruleGroups": groups})).values()
    assert rule["spec"]["groups"] == groups


def test_one_replica_has_no_disruption_budget() -> None:
    """A budget would only block the draining of its node."""
    assert set(of_kind("PodDisruptionBudget", rendered(api={"replicas": 1}))) == {"worker"}


def test_the_chart_version_is_the_project_version() -> None:
    """Chart and application are released together."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION

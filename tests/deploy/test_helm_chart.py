"""The Helm chart, rendered by Helm itself: `uv run --group checks pytest tests/deploy/test_helm_chart.py`."""

import re
import tomllib
from typing import Any

import pytest
import typer
import yaml

from cli import app
from tests import ROOT
from tests.deploy.test_compose import settings_variables

# Of the group `checks`, for their size; scripts/check brings them.
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
    """Every manifest of a release."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(VALUES | values, name="bridge", namespace="iot")
    manifests = (yaml.safe_load_all(text) for path, text in texts.items() if path.endswith(".yaml"))
    return [manifest for each in manifests for manifest in each if manifest]


def of_kind(kind: str, manifests: list[Manifest]) -> dict[str, Manifest]:
    """The manifests of a kind, by their components."""
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest
        for manifest in manifests
        if manifest["kind"] == kind
    }


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pods' specifications, by their components."""
    return {
        name: manifest["spec"]["template"]["spec"]
        for kind in ("Deployment", "Job")
        for name, manifest in of_kind(kind, manifests).items()
    }


def test_helm_finds_no_fault() -> None:
    """Beyond the advice to have an icon."""
    report = helm.lint(CHART, VALUES, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", ["existingSecret", "temporal", "aws", "settings"])
def test_what_must_be_given_is_asked_for(name: str) -> None:
    """No release without it: the schema names it."""
    with pytest.raises(helm.HelmError, match=name), helm.Chart.load(CHART) as chart:
        chart.render({key: value for key, value in VALUES.items() if key != name}, name="bridge")


def test_every_manifest_is_one_that_kubernetes_takes() -> None:
    """By Kubernetes's own schemas, no field unknown."""
    for manifest in rendered():
        kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize("component", ["api", "migrate", "worker"])
def test_a_pod_has_no_right_it_does_not_need(component: str) -> None:
    """No root, no capability, no writable root file system, no token of Kubernetes's."""
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


def test_containers_run_commands_that_exist() -> None:
    """Each is a command of the CLI, in the image of this version."""
    commands = set(typer.main.get_group(app).commands)
    for pod in pods(rendered()).values():
        (container,) = pod["containers"]
        assert container["args"][0] in commands
        assert container["image"] == f"thingbridge:{VERSION}"


def test_every_setting_given_is_one_the_bridge_knows() -> None:
    """A setting misspelt in the chart would stop every pod."""
    for pod in pods(rendered()).values():
        (container,) = pod["containers"]
        given = {variable["name"] for variable in container["env"]}
        assert {name for name in given if name.startswith("IOT_AWS_")} <= settings_variables()
        assert container["envFrom"] == [{"secretRef": {"name": "thingbridge"}}]


def test_no_secret_stands_in_a_manifest() -> None:
    """Helm keeps its manifests with each release: the Secret is the operator's own."""
    manifests = rendered()
    assert not of_kind("Secret", manifests)
    assert not re.search(r"PASSWORD|DATABASE_URL|API_KEY", yaml.safe_dump(manifests))


@pytest.mark.parametrize("grace", [0, 30, 600])
def test_a_worker_is_given_the_time_it_needs_to_stop(grace: int) -> None:
    """Kubernetes kills it only after its own limit has passed."""
    pod = pods(rendered(worker={"shutdownGraceSeconds": grace}))["worker"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["IOT_AWS_WORKER__SHUTDOWN_GRACE_SECONDS"] == str(grace)
    assert pod["terminationGracePeriodSeconds"] > 2 * grace


def test_no_pod_is_killed_for_what_is_away() -> None:
    """The kubelet asks whether the process lives; metrics and readiness ask the database too."""
    for name in ("api", "worker"):
        (container,) = pods(rendered())[name]["containers"]
        asked = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")}
        assert asked == {"/healthz"}


def test_the_migration_runs_before_anything_else() -> None:
    """No pod meets tables or search attributes that are not there yet."""
    annotations = of_kind("Job", rendered())["migrate"]["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_what_selects_pods_selects_those_of_its_component() -> None:
    """Service, budgets and monitors find the pods by labels that these bear."""
    manifests = rendered(monitoring={"enabled": True})
    deployments = of_kind("Deployment", manifests)
    for kind in ("PodDisruptionBudget", "PodMonitor", "Service"):
        for name, manifest in of_kind(kind, manifests).items():
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            assert wanted <= deployments[name]["spec"]["template"]["metadata"]["labels"].items()
    assert set(of_kind("PodMonitor", manifests)) == {"api", "worker"}


def test_monitors_and_rules_come_only_when_asked_for() -> None:
    """A cluster without the Prometheus operator knows no such resources."""
    groups = [{"name": "thingbridge", "rules": []}]
    assert not [each for each in rendered() if each["apiVersion"].startswith("monitoring")]
    (rule,) = of_kind("PrometheusRule", rendered(monitoring={"enabled": True, "ruleGroups": groups})).values()
    assert rule["spec"]["groups"] == groups


def test_one_replica_has_no_budget() -> None:
    """It could only hold up the draining of its node."""
    assert set(of_kind("PodDisruptionBudget", rendered(api={"replicas": 1}))) == {"worker"}


def test_the_chart_is_of_this_version() -> None:
    """Chart and release go together."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION

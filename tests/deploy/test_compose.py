"""The Compose file, the Dockerfile and the Prometheus configuration match the code."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

import pytest
import typer
import yaml
from check_jsonschema import builtin_schemas
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from cli import app
from settings import ApiSettings, DatabaseSettings, Settings, describe
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.temporal.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BRIDGE_SERVICES = [
    name for name, service in SERVICES.items() if str(service["image"]).startswith("thingbridge:")
]
ONE_TIME_SERVICES = [
    name for name, service in SERVICES.items() if str(service["restart"]).startswith("on-failure")
]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())


def variables_of(model: type[BaseModel], prefix: str, delimiter: str) -> set[str]:
    """Return the environment variables of a settings model and its sections."""
    found = set()
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= variables_of(section, f"{prefix}{name}{delimiter}", delimiter)
        else:
            found.add(str(field.validation_alias or f"{prefix}{name}").upper())
    return found


def settings_variables() -> set[str]:
    """Return the environment variables of all settings."""
    config = Settings.model_config
    return {
        variable
        for model in (Settings, ApiSettings)
        for variable in variables_of(model, config["env_prefix"], config["env_nested_delimiter"] or "")
    }


def images() -> list[str]:
    """Return every image in the Compose file and the Dockerfile."""
    return [
        *(str(service["image"]) for service in SERVICES.values()),
        *re.findall(r"^(?:FROM |COPY --from=(?=\S+:))(\S+)", DOCKERFILE, re.MULTILINE),
    ]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_every_image_is_pinned(image: str) -> None:
    """Each tag is an exact version, so that a later start runs the same image."""
    _, tag = image.split(":")
    assert re.match(r"v?\d+\.\d+", tag)


def test_the_image_tag_is_the_project_version() -> None:
    """The Compose file runs the release that contains it."""
    assert {SERVICES[name]["image"] for name in BRIDGE_SERVICES} == {
        f"thingbridge:{PROJECT['project']['version']}"
    }


def test_bridge_services_run_existing_commands() -> None:
    """The command of each service, and the default of the image, is a command of the CLI."""
    commands = set(typer.main.get_group(app).commands)
    assert {name: SERVICES[name]["command"] for name in BRIDGE_SERVICES} == {
        "migrate": ["migrate"],
        "worker": ["worker"],
        "api": ["api", "--host=0.0.0.0"],
    }
    assert set(BRIDGE_SERVICES) <= commands
    assert 'ENTRYPOINT ["thingbridge"]' in DOCKERFILE
    assert 'CMD ["worker"]' in DOCKERFILE
    assert "thingbridge" in PROJECT["project"]["scripts"]


def test_the_file_is_valid_by_the_compose_specification() -> None:
    """No key is unknown, and no value has the wrong type."""
    Draft202012Validator(builtin_schemas.get_builtin_schema("vendor.compose-spec")).validate(COMPOSE)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_service_waits_for_the_migration(name: str) -> None:
    """No process starts before its tables and search attributes exist."""
    assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_the_right_state_of_its_dependencies(name: str) -> None:
    """A one-time service must have completed, a permanent one must be healthy."""
    for dependency, wait in SERVICES[name].get("depends_on", {}).items():
        is_one_time = dependency in ONE_TIME_SERVICES
        assert wait["condition"] == ("service_completed_successfully" if is_one_time else "service_healthy")
        assert is_one_time or "healthcheck" in SERVICES[dependency]


@pytest.mark.parametrize("name", BRIDGE_SERVICES)
def test_the_file_passes_only_existing_settings(name: str) -> None:
    """The bridge would silently ignore a misspelt setting."""
    given = {
        variable
        for variable in SERVICES[name]["environment"]
        if not variable.startswith(("AWS_", "TEMPORAL_", "OTEL_"))
    }
    assert "DATABASE_URL" in given
    assert given <= settings_variables()


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_file_passes_every_setting(name: str) -> None:
    """A setting in the environment of Compose reaches the service."""
    not_for_this_service = (
        {"IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"} if name == "api" else {"IOT_AWS_API__TEMPORAL_UI_URL"}
    )
    # The Compose file itself sets the metrics address of the worker.
    fixed = {variable for variable in settings_variables() if variable.startswith("IOT_AWS_TELEMETRY__")}
    documented = {knob.variable for _, knobs in describe() for knob in knobs}
    assert documented - not_for_this_service - fixed <= SERVICES[name]["environment"].keys()


@pytest.mark.parametrize(
    ("name", "settings"), [("migrate", DatabaseSettings), ("worker", Settings), ("api", ApiSettings)]
)
def test_the_file_passes_every_required_setting(
    name: str, settings: type[DatabaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of each service can be loaded from its variables in the Compose file."""
    for variable in [*os.environ]:
        if variable.startswith("IOT_AWS_") or variable == "DATABASE_URL":
            monkeypatch.delenv(variable)
    for variable, value in SERVICES[name]["environment"].items():
        if value is not None:
            monkeypatch.setenv(
                variable, re.sub(r"\$\{\w+(:-(.*?)|:\?.*?)?\}", lambda reference: reference[2] or "x", value)
            )
    settings.load()


def test_the_worker_has_enough_time_to_stop() -> None:
    """Docker kills the worker only after the worker's own grace period."""
    grace = Settings.model_fields["worker"].get_default(call_default_factory=True).shutdown_grace_seconds
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > 2 * grace


def test_the_file_contains_no_secret() -> None:
    """Passwords come from the environment, and Compose reports a missing one by name."""
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if (
                re.search(r"PASSWORD|PWD|SECRET_ACCESS|TOKEN|_KEY$|DATABASE_URL", variable)
                and value is not None
            ):
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {variable}"


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "ports" in service])
def test_ports_are_bound_to_localhost(name: str) -> None:
    """Temporal and its UI have no authentication."""
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_mounted_files_exist() -> None:
    """Docker silently creates an empty folder for a missing bind mount."""
    mounted = [
        source
        for service in SERVICES.values()
        for source in (str(volume).split(":")[0] for volume in service.get("volumes", []))
        if source.startswith(".")
    ]
    assert mounted
    assert all((ROOT / source).exists() for source in mounted)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_health_check_uses_healthz(name: str) -> None:
    """The metrics query the database, but a process is healthy while the database is unavailable."""
    assert "/healthz'" in SERVICES[name]["healthcheck"]["test"][-1]


def test_prometheus_scrapes_the_metrics_of_each_service() -> None:
    """Its targets are the names of the services and the ports of their metrics."""
    scraped = {
        tuple(target["names"]): target["port"]
        for job in PROMETHEUS["scrape_configs"]
        for target in job["dns_sd_configs"]
    }
    worker = SERVICES["worker"]["environment"]["IOT_AWS_TELEMETRY__METRICS_PORT"]
    (api,) = (port.split(":")[-1] for port in SERVICES["api"]["ports"])
    assert scraped == {("worker",): int(worker), ("api",): int(api)}


def test_dockerignore_allows_every_module_of_the_wheel() -> None:
    """A module added to the wheel must also be in the build context of the image."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    wheel = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    project = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert wheel | project | {"deploy/requirements.txt"} <= allowed


def test_the_image_does_not_run_as_root() -> None:
    """The bridge needs no rights on its host."""
    user = re.findall(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert user
    assert user[-1] != "0"

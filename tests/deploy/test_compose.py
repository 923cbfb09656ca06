"""The files that put the bridge into production say what the code says."""

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
OURS = [name for name, service in SERVICES.items() if str(service["image"]).startswith("thingbridge:")]
ONCE = [name for name, service in SERVICES.items() if str(service["restart"]).startswith("on-failure")]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())


def variables_of(model: type[BaseModel], prefix: str, delimiter: str) -> set[str]:
    """The environment variables that a settings model reads, its sections' included."""
    found = set()
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= variables_of(section, f"{prefix}{name}{delimiter}", delimiter)
        else:
            found.add(str(field.validation_alias or f"{prefix}{name}").upper())
    return found


def settings_variables() -> set[str]:
    """The environment variables that the settings know."""
    config = Settings.model_config
    return {
        variable
        for model in (Settings, ApiSettings)
        for variable in variables_of(model, config["env_prefix"], config["env_nested_delimiter"] or "")
    }


def images() -> list[str]:
    """Every image that production names."""
    return [
        *(str(service["image"]) for service in SERVICES.values()),
        *re.findall(r"^(?:FROM |COPY --from=(?=\S+:))(\S+)", DOCKERFILE, re.MULTILINE),
    ]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_every_image_is_pinned(image: str) -> None:
    """What runs tomorrow is what runs today: a tag that names a version to the last figure."""
    _, tag = image.split(":")
    assert re.match(r"v?\d+\.\d+", tag)


def test_the_image_bears_the_version_of_the_project() -> None:
    """The compose file runs the release it ships with."""
    assert {SERVICES[name]["image"] for name in OURS} == {f"thingbridge:{PROJECT['project']['version']}"}


def test_our_services_run_commands_that_exist() -> None:
    """Each service of ours is a command of the CLI, and so is the image's default."""
    commands = set(typer.main.get_group(app).commands)
    assert {name: SERVICES[name]["command"] for name in OURS} == {
        "migrate": ["migrate"],
        "worker": ["worker"],
        "api": ["api", "--host=0.0.0.0"],
    }
    assert set(OURS) <= commands
    assert 'ENTRYPOINT ["thingbridge"]' in DOCKERFILE
    assert 'CMD ["worker"]' in DOCKERFILE
    assert "thingbridge" in PROJECT["project"]["scripts"]


def test_the_file_is_one_of_the_compose_specification() -> None:
    """Docker Compose takes it: no key is misspelt, and none of a wrong kind."""
    Draft202012Validator(builtin_schemas.get_builtin_schema("vendor.compose-spec")).validate(COMPOSE)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_what_stays_up_waits_for_the_migration(name: str) -> None:
    """No process meets tables or search attributes that are not there yet."""
    assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_the_state_it_needs(name: str) -> None:
    """What runs once is waited for to its end, what stays up until it is healthy."""
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
        assert how["condition"] == wanted
        assert needed in ONCE or "healthcheck" in SERVICES[needed]


@pytest.mark.parametrize("name", OURS)
def test_every_setting_given_is_one_the_bridge_knows(name: str) -> None:
    """A setting misspelt here would be ignored in silence there."""
    given = {
        variable
        for variable in SERVICES[name]["environment"]
        if not variable.startswith(("AWS_", "TEMPORAL_", "OTEL_"))
    }
    assert "DATABASE_URL" in given
    assert given <= settings_variables()


@pytest.mark.parametrize("name", ["api", "worker"])
def test_every_setting_can_be_given(name: str) -> None:
    """Whoever sets one beside the file finds it at work."""
    elsewhere = (
        {"IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"} if name == "api" else {"IOT_AWS_API__TEMPORAL_UI_URL"}
    )
    # Where the worker serves its metrics is the composition's own affair.
    own = {variable for variable in settings_variables() if variable.startswith("IOT_AWS_TELEMETRY__")}
    all_there_are = {knob.variable for _, knobs in describe() for knob in knobs}
    assert all_there_are - elsewhere - own <= SERVICES[name]["environment"].keys()


@pytest.mark.parametrize(
    ("name", "settings"), [("migrate", DatabaseSettings), ("worker", Settings), ("api", ApiSettings)]
)
def test_every_setting_without_a_default_is_given(
    name: str, settings: type[DatabaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each service starts on what the compose file gives it, and needs no more."""
    for variable in [*os.environ]:
        if variable.startswith("IOT_AWS_") or variable == "DATABASE_URL":
            monkeypatch.delenv(variable)
    for variable, value in SERVICES[name]["environment"].items():
        if value is not None:
            monkeypatch.setenv(
                variable, re.sub(r"\$\{\w+(:-(.*?)|:\?.*?)?\}", lambda given: given[2] or "x", value)
            )
    settings.load()


def test_the_worker_is_given_the_time_it_needs_to_stop() -> None:
    """Docker kills the worker only after the worker's own limit has passed."""
    grace = Settings.model_fields["worker"].get_default(call_default_factory=True).shutdown_grace_seconds
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > 2 * grace


def test_no_secret_stands_in_the_file() -> None:
    """Passwords come from the environment, and their absence is told by name."""
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if (
                re.search(r"PASSWORD|PWD|SECRET_ACCESS|TOKEN|_KEY$|DATABASE_URL", variable)
                and value is not None
            ):
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {variable}"


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "ports" in service])
def test_ports_are_open_to_this_machine_alone(name: str) -> None:
    """Neither Temporal nor its UI asks who is calling."""
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_files_mounted_are_in_the_repository() -> None:
    """Docker makes an empty folder of a bind mount that is not there, in silence."""
    mounted = [
        source
        for service in SERVICES.values()
        for source in (str(volume).split(":")[0] for volume in service.get("volumes", []))
        if source.startswith(".")
    ]
    assert mounted
    assert all((ROOT / source).exists() for source in mounted)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_process_is_healthy_while_it_lives(name: str) -> None:
    """Metrics ask the database too, and a worker is well where that is away."""
    assert "/healthz'" in SERVICES[name]["healthcheck"]["test"][-1]


def test_prometheus_scrapes_what_is_served() -> None:
    """The names of the services, and the ports of their metrics."""
    scraped = {
        tuple(found["names"]): found["port"]
        for job in PROMETHEUS["scrape_configs"]
        for found in job["dns_sd_configs"]
    }
    worker = SERVICES["worker"]["environment"]["IOT_AWS_TELEMETRY__METRICS_PORT"]
    (api,) = (port.split(":")[-1] for port in SERVICES["api"]["ports"])
    assert scraped == {("worker",): int(worker), ("api",): int(api)}


def test_the_image_is_built_from_all_that_the_wheel_holds() -> None:
    """A module added to the wheel is let through to the image's build as well."""
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    wheel = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    project = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert wheel | project | {"deploy/requirements.txt"} <= let_through


def test_the_image_does_not_run_as_root() -> None:
    """The bridge needs no right on its host."""
    user = re.findall(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert user
    assert user[-1] != "0"

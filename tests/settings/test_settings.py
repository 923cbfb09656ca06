"""Reading the settings: their sources, their defaults, and the errors for wrong ones."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import (
    ApiSettings,
    ClientSettings,
    DatabaseSettings,
    InvalidSettingsError,
    Settings,
    describe,
)
from settings.sections import SECTIONS

REQUIRED = {
    "DATABASE_URL": "postgresql://bridge:hush@db.example/platform",
    "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME": "devices",
}
ARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:fleet-AbCdEf"

# As docs and other systems rely on them.
DEFAULTS: dict[str, dict[str, object]] = {
    "credentials": {
        "fleet_credential_secret_arn": None,
        "rotation_check_interval_minutes": 5,
        "initial_fetch_timeout_seconds": 15,
    },
    "provisioning": {
        "device_policy_name": "devices",
        "secret_name_template": "iot/devices/{thingName}/key",
        "secret_kms_key_id": None,
    },
    "shadow": {
        "poll_interval_seconds": 30,
        "poll_batch_size": 100,
        "auto_push_lifecycle_status": True,
    },
    "jobs": {
        "job_id_prefix": "granit",
        "job_tracking_ttl_hours": 72,
        "status_poll_interval_seconds": 300,
        "status_poll_batch_size": 100,
    },
    "fleet_provisioning": {
        "expiry_warning_window_days": 30,
        "rotation_check_interval_hours": 24,
        "rotation_check_batch_size": 1000,
        "allow_reprovision": True,
    },
    "erasure": {
        "retention_days": None,
        "hash_key": None,
    },
    "encryption": {
        "keys": None,
        "key_id": None,
    },
    "events": {
        "sink": "log",
        "webhook_url": None,
        "webhook_secret": None,
        "event_bus_name": None,
        "topic_arn": None,
        "park_after_hours": 24,
        "retention_days": 30,
    },
}
BOUNDS = {
    "IOT_AWS_CREDENTIALS__ROTATION_CHECK_INTERVAL_MINUTES": (1, 240),
    "IOT_AWS_CREDENTIALS__INITIAL_FETCH_TIMEOUT_SECONDS": (1, 60),
    "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS": (5, 600),
    "IOT_AWS_SHADOW__POLL_BATCH_SIZE": (1, 1000),
    "IOT_AWS_JOBS__JOB_TRACKING_TTL_HOURS": (1, 720),
    "IOT_AWS_JOBS__STATUS_POLL_INTERVAL_SECONDS": (15, 3600),
    "IOT_AWS_JOBS__STATUS_POLL_BATCH_SIZE": (1, 1000),
    "IOT_AWS_FLEET_PROVISIONING__EXPIRY_WARNING_WINDOW_DAYS": (1, 180),
    "IOT_AWS_FLEET_PROVISIONING__ROTATION_CHECK_INTERVAL_HOURS": (1, 168),
    "IOT_AWS_FLEET_PROVISIONING__ROTATION_CHECK_BATCH_SIZE": (1, 10_000),
    "IOT_AWS_EVENTS__PARK_AFTER_HOURS": (0, 720),
    "IOT_AWS_EVENTS__RETENTION_DAYS": (1, 3650),
}


def load(*given: dict[str, str]) -> Settings:
    """Load the settings from an environment with the required variables and the given ones."""
    with patch.dict(
        os.environ, REQUIRED | {name: value for each in given for name, value in each.items()}, clear=True
    ):
        return Settings.load()


def error_of(*given: dict[str, str]) -> str:
    """Return the error message for a wrong environment."""
    with pytest.raises(InvalidSettingsError) as refused:
        load(*given)
    return str(refused.value)


def value_of(settings: Settings, variable: str) -> object:
    """Return the loaded value of a variable."""
    section, name = variable.removeprefix("IOT_AWS_").lower().split("__")
    return getattr(getattr(settings, section), name)


def test_settings_have_the_documented_defaults() -> None:
    """With only the required variables set, every setting has its documented default."""
    settings = load()
    found = {
        section: {name: getattr(getattr(settings, section), name) for name in names}
        for section, names in DEFAULTS.items()
    }
    assert found == DEFAULTS


@pytest.mark.parametrize(("variable", "bounds"), BOUNDS.items())
def test_number_just_outside_its_bounds_is_refused(variable: str, bounds: tuple[int, int]) -> None:
    """The bounds themselves are accepted; one less or one more is refused with the name and both bounds."""
    least, most = bounds
    for value in bounds:
        assert value_of(load({variable: str(value)}), variable) == value
    for value in (least - 1, most + 1):
        message = error_of({variable: str(value)})
        assert message.startswith(f"{variable}: ")
        assert f"{least} to {most}" in message


@given(variable=st.sampled_from(sorted(BOUNDS)), number=st.integers(-20_000, 20_000))
def test_number_is_accepted_exactly_within_its_bounds(variable: str, number: int) -> None:
    """Any number is accepted unchanged or refused by name, depending on the bounds."""
    least, most = BOUNDS[variable]
    if least <= number <= most:
        assert value_of(load({variable: str(number)}), variable) == number
    else:
        assert error_of({variable: str(number)}).startswith(f"{variable}: ")


@given(
    variable=st.sampled_from(sorted(setting.variable for _, section in describe() for setting in section)),
    value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_any_text_is_accepted_or_refused_in_one_line(variable: str, value: str) -> None:
    """Any text in any variable is either accepted or refused in one line that begins with the variable."""
    try:
        load({variable: value})
    except InvalidSettingsError as refused:
        (line,) = str(refused).splitlines()
        assert line.startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS", "soon", "5 to 600"),
        ("IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS", "7.5", "5 to 600"),
        ("IOT_AWS_SHADOW__AUTO_PUSH_LIFECYCLE_STATUS", "perhaps", "true or false"),
        (
            "IOT_AWS_WORKER__AREAS",
            "provisioning",
            "JSON list of provisioning, shadow, jobs, fleet_provisioning",
        ),
        (
            "IOT_AWS_WORKER__AREAS",
            '["shadows"]',
            "JSON list of provisioning, shadow, jobs, fleet_provisioning",
        ),
        ("IOT_AWS_WORKER__AREAS", "[]", "JSON list of provisioning, shadow, jobs, fleet_provisioning"),
        ("IOT_AWS_WORKER__AREAS", '{"jobs": true}', "must be a JSON list"),
        ("IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME", "two words", "the name of the IoT policy"),
        ("IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME", "é", "the name of the IoT policy"),
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "iot/devices/key", "must contain {thingName}"),
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "a b/{thingName}", "only ASCII letters, digits"),
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "{tenant}/{thingName}", "only ASCII letters, digits"),
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "x" * 385 + "{thingName}", "AWS allows 512"),
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "{thingName}" * 5, "AWS allows 512"),
        ("IOT_AWS_PROVISIONING__STEP_RETRY_SECONDS", "nan", "1 to 2592000"),
        ("IOT_AWS_JOBS__JOB_ID_PREFIX", "x" * 28, "1 to 27 of letters, digits, _ and -"),
        ("IOT_AWS_JOBS__JOB_ID_PREFIX", "a.b", "1 to 27 of letters, digits, _ and -"),
        ("IOT_AWS_WORKER__MAX_ACTIVITIES_PER_SECOND", "inf", "above 0"),
        ("IOT_AWS_WORKER__MAX_ACTIVITIES_PER_SECOND", "0", "above 0"),
        ("IOT_AWS_WORKER__DEPLOYMENT_NAME", "a.b", "without dots"),
        ("IOT_AWS_EVENTS__SINK", "kafka", "log, webhook, eventbridge or sns"),
        ("IOT_AWS_EVENTS__EVENT_BUS_NAME", "two words", "an event bus's name or ARN"),
        ("IOT_AWS_EVENTS__TOPIC_ARN", "topic", "an SNS topic's ARN"),
        ("IOT_AWS_LOG__LEVEL", "LOUD", "DEBUG, INFO, WARNING or ERROR"),
        ("IOT_AWS_LOG__FORMAT", "xml", "json or text"),
    ],
)
def test_wrong_value_is_refused_with_the_allowed_values(variable: str, value: str, allowed: str) -> None:
    """The error begins with the variable's name and contains the allowed values."""
    message = error_of({variable: value})
    assert message.startswith(f"{variable}: ")
    assert allowed in message


def test_secret_name_template_of_maximum_length_is_accepted() -> None:
    """A template and a Thing name of 128 characters may together reach AWS's limit of 512."""
    template = "x" * 384 + "{thingName}"
    settings = load({"IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE": template})
    assert settings.provisioning.secret_name_template == template


def test_error_lists_every_wrong_and_missing_setting() -> None:
    """The error has one line for each setting at fault, so that one start shows all of them."""
    nothing = dict.fromkeys(REQUIRED, "")
    message = error_of(nothing, {"IOT_AWS_JOBS__JOB_TRACKING_TTL_HOURS": "721", "IOT_AWS_LOG__LEVEL": "LOUD"})
    assert sorted(line.partition(": ")[0] for line in message.splitlines()) == [
        "DATABASE_URL",
        "IOT_AWS_JOBS__JOB_TRACKING_TTL_HOURS",
        "IOT_AWS_LOG__LEVEL",
        "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "existing"),
    [
        ("IOT_AWS_SHADOW__POLL_SECONDS", "30", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS__MORE", "30", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW", "notjson", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW", '{"poll_interval_seconds": 30}', "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOWS__POLL_INTERVAL_SECONDS", "30", "IOT_AWS_SHADOW__…"),
        ("IOT_AWS_POLL_INTERVAL_SECONDS", "30", "IOT_AWS_SHADOW__…"),
    ],
)
def test_unknown_variable_is_refused_with_the_existing_ones(variable: str, value: str, existing: str) -> None:
    """A misspelt variable, a section set as a variable, and an unknown section are refused."""
    message = error_of({variable: value})
    assert message.startswith(f"{variable}: no such setting; there are ")
    assert existing in message


def test_variables_without_the_prefix_are_ignored() -> None:
    """Only variables with the prefix are read, in any case."""
    settings = load({"AWS_REGION": "eu-west-1", "IOT_OTHER": "x", "iot_aws_shadow__poll_batch_size": "7"})
    assert settings.shadow.poll_batch_size == 7


def test_fleet_credential_secret_requires_an_arn() -> None:
    """Worker and API accept an ARN; a name alone is refused, since it contains no region."""
    given = {"IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN": ARN}
    assert load(given).credentials.fleet_credential_secret_arn == ARN
    with patch.dict(os.environ, REQUIRED | given, clear=True):
        assert ApiSettings.load().credentials.fleet_credential_secret_arn == ARN
    message = error_of(dict.fromkeys(given, "fleet-keys"))
    assert message.startswith("IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN: ")


def test_erasure_retention_requires_a_hash_key() -> None:
    """A number of days requires the key, a short key is refused, and no representation contains the key."""
    days = {"IOT_AWS_ERASURE__RETENTION_DAYS": "30"}
    assert error_of(days).startswith(
        "IOT_AWS_ERASURE__HASH_KEY: is required where IOT_AWS_ERASURE__RETENTION"
    )
    message = error_of(days, {"IOT_AWS_ERASURE__HASH_KEY": "hush"})
    assert message.startswith("IOT_AWS_ERASURE__HASH_KEY: ")
    assert "hush" not in message
    settings = load(days, {"IOT_AWS_ERASURE__HASH_KEY": 8 * "hush"})
    assert settings.erasure.hashing is not None
    assert "hush" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("sink", "needed"),
    [
        ("log", []),
        ("webhook", ["WEBHOOK_URL", "WEBHOOK_SECRET"]),
        ("eventbridge", ["EVENT_BUS_NAME"]),
        ("sns", ["TOPIC_ARN"]),
    ],
)
def test_chosen_sink_requires_its_own_settings(sink: str, needed: list[str]) -> None:
    """The settings of the chosen sink are required by name, those of the other sinks are not."""
    given = {
        "IOT_AWS_EVENTS__WEBHOOK_URL": "https://hooks.example/in?token=hush",
        "IOT_AWS_EVENTS__WEBHOOK_SECRET": f"whsec_{32 * 'A'} whsec_{84 * 'B'}9w==",
        "IOT_AWS_EVENTS__EVENT_BUS_NAME": "arn:aws:events:eu-west-1:111122223333:event-bus/devices",
        "IOT_AWS_EVENTS__TOPIC_ARN": "arn:aws:sns:eu-west-1:111122223333:devices.fifo",
    }
    chosen = {"IOT_AWS_EVENTS__SINK": sink}
    for name in needed:
        message = error_of(chosen, {other: given[other] for other in given if not other.endswith(name)})
        assert message.startswith(f"IOT_AWS_EVENTS__{name}: is required where IOT_AWS_EVENTS__SINK is {sink}")
    settings = load(chosen, {name: given[name] for name in given if name.endswith(tuple(needed))})
    assert settings.events.sink == sink
    assert not {"hush", 32 * "A"} & set(f"{settings!r} {settings}".split("'"))


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example:8443/in",
        "https://user:hush@hooks.example/in?x=y",
        "http://localhost/in",
        "http://127.0.0.1:8000/in",
        "http://[::1]:8000/in",
    ],
)
def test_a_webhook_is_https_or_on_this_machine(url: str) -> None:
    """Events go in the clear to this machine alone, and the URL, which may hold a token, is shown nowhere."""
    settings = load({"IOT_AWS_EVENTS__WEBHOOK_URL": url})
    assert settings.events.webhook_url is not None
    assert settings.events.webhook_url.get_secret_value() == url
    assert url not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/hush",
        "http://127.0.0.1.hooks.example/hush",
        "http://10.0.0.1/hush",
        "ftp://localhost/hush",
        "https:///hush",
        "https://hooks.example:port/hush",
        "https://hooks.example:99999/hush",
        "hooks.example/hush",
    ],
)
def test_insecure_or_malformed_webhook_url_is_refused(url: str) -> None:
    """The error names the setting and does not repeat the value."""
    message = error_of({"IOT_AWS_EVENTS__WEBHOOK_URL": url})
    assert message.startswith("IOT_AWS_EVENTS__WEBHOOK_URL: ")
    assert "hush" not in message


@pytest.mark.parametrize(
    "secret",
    [
        32 * "A",
        "whsec_" + 28 * "A",
        "whsec_" + 88 * "A",
        "whsec_" + 31 * "A",
        "whsec_" + 31 * "A" + "*",
        f"whsec_{32 * 'A'} {32 * 'A'}",
        f"whsec_{32 * 'A'},whsec_{32 * 'B'}",
        " ",
    ],
)
def test_malformed_webhook_secret_is_refused(secret: str) -> None:
    """Each secret must be `whsec_` and the base64 of 24 to 64 bytes; the error does not repeat the value."""
    message = error_of({"IOT_AWS_EVENTS__WEBHOOK_SECRET": secret})
    assert message.startswith("IOT_AWS_EVENTS__WEBHOOK_SECRET: each secret must be whsec_")
    assert "AAA" not in message


def test_environment_overrides_the_toml_file(tmp_path: Path) -> None:
    """The file sets what the environment does not, with names in lower or upper case."""
    file = tmp_path / "thingbridge.toml"
    file.write_text(
        f'DATABASE_URL = "{REQUIRED["DATABASE_URL"]}"\n'
        '[provisioning]\ndevice_policy_name = "from-file"\n'
        "[shadow]\npoll_interval_seconds = 60\npoll_batch_size = 7\n"
        "[JOBS]\nJOB_TRACKING_TTL_HOURS = 5\n"
    )
    variables = {"IOT_AWS_CONFIG_FILE": str(file), "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS": "90"}
    with patch.dict(os.environ, variables, clear=True):
        settings = Settings.load()
    assert settings.provisioning.device_policy_name == "from-file"
    assert (settings.shadow.poll_interval_seconds, settings.shadow.poll_batch_size) == (90, 7)
    assert settings.jobs.job_tracking_ttl_hours == 5
    assert settings.database_url.get_secret_value() == REQUIRED["DATABASE_URL"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[shadow]\npoll_interval_seconds = 4", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_interval_seconds = true", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_interval_seconds.x = 1", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_seconds = 30", "IOT_AWS_SHADOW__POLL_SECONDS (in FILE): no such setting; "),
        ("shadow = 30", "IOT_AWS_SHADOW (in FILE): no such setting; "),
        ('config_file = "other.toml"', "IOT_AWS_CONFIG_FILE (in FILE): no such setting; "),
        ("[shadows]\npoll_batch_size = 30", "IOT_AWS_SHADOWS__POLL_BATCH_SIZE (in FILE): no such setting; "),
        ("[shadow", "IOT_AWS_CONFIG_FILE: FILE is not TOML: "),
        ("\xff", "IOT_AWS_CONFIG_FILE: FILE is not TOML: "),
        (None, "IOT_AWS_CONFIG_FILE: cannot read FILE: No such file or directory"),
    ],
)
def test_wrong_toml_file_is_refused_with_setting_and_file(
    tmp_path: Path, content: str | None, message: str
) -> None:
    """The error names the setting and the file, also a file that does not exist or is not TOML."""
    file = tmp_path / "thingbridge.toml"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    assert error_of({"IOT_AWS_CONFIG_FILE": str(file)}).replace(str(file), "FILE").startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bridge:hush@db.example:5433/platform",
        "postgres://bridge:hush@db.example/platform",
        "postgresql:///platform?host=/run/postgresql&user=bridge&password=hush",
        "postgresql://bridge:hush@%2Frun%2Fpostgresql/platform",
        "postgresql://bridge:hush@one.example:5432,two.example:5433/platform?target_session_attrs=read-write",
        "postgresql://bridge:hush%40hush%2F@[2001:db8::1]/platform?sslmode=verify-full",
    ],
)
def test_database_url_that_libpq_can_parse_is_accepted(url: str) -> None:
    """TCP, unix sockets and several hosts are accepted unchanged; no representation shows the password."""
    settings = load({"DATABASE_URL": url})
    assert settings.database_url.get_secret_value() == url
    assert "hush" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://bridge:hush@db.example/platform",
        "host=db.example password=hush",
        "postgresql+psycopg://bridge:hush@db.example/platform",
        "postgresql://bridge:hu%zzsh@db.example/platform",
        "postgresql://db.example/platform?pasword=hush",
        # libpq reads the rest of these passwords as a host or a port.
        "postgresql://bridge:x@hush@db.example/platform",
        "postgresql://bridge:hush/x@db.example/platform",
    ],
)
def test_malformed_database_url_is_refused_without_its_password(url: str) -> None:
    """The error shows the form to use and does not repeat the value."""
    message = error_of({"DATABASE_URL": url})
    assert message.startswith("DATABASE_URL: ")
    assert "postgresql://USER:PASSWORD@HOST:PORT/NAME" in message
    assert "hush" not in message


def test_each_process_requires_only_the_settings_it_uses() -> None:
    """A client of the workflows requires no setting, a reader of the database only DATABASE_URL."""
    with patch.dict(os.environ, clear=True):
        assert ClientSettings.load().worker.task_queue == "thingbridge"
        with pytest.raises(InvalidSettingsError, match=r"^DATABASE_URL: is required"):
            DatabaseSettings.load()


@pytest.mark.parametrize("settings_class", [ApiSettings, Settings])
def test_described_sections_are_the_ones_that_are_read(settings_class: type[ClientSettings]) -> None:
    """Every section of a process is described, in the most complete form that any process reads."""
    for name, field in settings_class.model_fields.items():
        if name != "database_url":
            assert isinstance(field.annotation, type)
            assert issubclass(SECTIONS[name], field.annotation)


def test_every_described_section_is_read_by_a_process() -> None:
    """No section is described that no process reads."""
    assert SECTIONS.keys() == (ApiSettings.model_fields | Settings.model_fields).keys() - {"database_url"}

"""Settings as an operator gives them: what is read from where, and that nothing wrong is taken."""

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

REQUIRED = {
    "DATABASE_URL": "postgresql://bridge:hush@db.example/platform",
    "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME": "devices",
}
ARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:fleet-AbCdEf"

# The contract's table.
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
    """The settings of an environment that holds what is required, and this."""
    with patch.dict(
        os.environ, REQUIRED | {name: value for each in given for name, value in each.items()}, clear=True
    ):
        return Settings.load()


def refusal(*given: dict[str, str]) -> str:
    """Why an environment is refused."""
    with pytest.raises(InvalidSettingsError) as refused:
        load(*given)
    return str(refused.value)


def value_of(settings: Settings, variable: str) -> object:
    """What a variable has become."""
    section, knob = variable.removeprefix("IOT_AWS_").lower().split("__")
    return getattr(getattr(settings, section), knob)


def test_the_defaults_are_the_contracts() -> None:
    """With nothing but what is required, every knob of the contract has the contract's default."""
    settings = load()
    found = {
        section: {knob: getattr(getattr(settings, section), knob) for knob in knobs}
        for section, knobs in DEFAULTS.items()
    }
    assert found == DEFAULTS


@pytest.mark.parametrize(("variable", "bounds"), BOUNDS.items())
def test_a_number_just_outside_its_bounds_is_refused(variable: str, bounds: tuple[int, int]) -> None:
    """The bounds themselves are taken; one less or one more is refused with the name and both bounds."""
    least, most = bounds
    for value in bounds:
        assert value_of(load({variable: str(value)}), variable) == value
    for value in (least - 1, most + 1):
        said = refusal({variable: str(value)})
        assert said.startswith(f"{variable}: ")
        assert f"{least} to {most}" in said


@given(variable=st.sampled_from(sorted(BOUNDS)), number=st.integers(-20_000, 20_000))
def test_a_number_is_taken_where_it_lies_within_its_bounds(variable: str, number: int) -> None:
    """Whatever the number, it is taken as it is or refused by name, as the bounds say."""
    least, most = BOUNDS[variable]
    if least <= number <= most:
        assert value_of(load({variable: str(number)}), variable) == number
    else:
        assert refusal({variable: str(number)}).startswith(f"{variable}: ")


@given(
    variable=st.sampled_from(sorted(knob.variable for _, knobs in describe() for knob in knobs)),
    value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_no_text_at_all_breaks_the_reading(variable: str, value: str) -> None:
    """Any text in any variable is either taken or refused in one line that begins with the variable."""
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
        ("IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE", "iot/devices/key", "must hold {thingName}"),
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
def test_a_wrong_value_is_refused_with_what_is_allowed(variable: str, value: str, allowed: str) -> None:
    """The refusal begins with the variable's name and ends with what it may hold."""
    said = refusal({variable: value})
    assert said.startswith(f"{variable}: ")
    assert allowed in said


def test_a_secret_of_the_longest_name_is_allowed() -> None:
    """A template may be as long as AWS's limit of 512 leaves it beside a Thing name of 128."""
    template = "x" * 384 + "{thingName}"
    settings = load({"IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE": template})
    assert settings.provisioning.secret_name_template == template


def test_all_that_is_wrong_or_missing_is_said_at_once() -> None:
    """One line for each setting at fault, so that one start tells it all."""
    nothing = dict.fromkeys(REQUIRED, "")
    said = refusal(nothing, {"IOT_AWS_JOBS__JOB_TRACKING_TTL_HOURS": "721", "IOT_AWS_LOG__LEVEL": "LOUD"})
    assert sorted(line.partition(": ")[0] for line in said.splitlines()) == [
        "DATABASE_URL",
        "IOT_AWS_JOBS__JOB_TRACKING_TTL_HOURS",
        "IOT_AWS_LOG__LEVEL",
        "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "there_is"),
    [
        ("IOT_AWS_SHADOW__POLL_SECONDS", "30", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS__MORE", "30", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW", "notjson", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOW", '{"poll_interval_seconds": 30}', "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS"),
        ("IOT_AWS_SHADOWS__POLL_INTERVAL_SECONDS", "30", "IOT_AWS_SHADOW__…"),
        ("IOT_AWS_POLL_INTERVAL_SECONDS", "30", "IOT_AWS_SHADOW__…"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(variable: str, value: str, there_is: str) -> None:
    """A misspelt variable, a section given as one, or an unknown section is refused with what there is."""
    said = refusal({variable: value})
    assert said.startswith(f"{variable}: no such setting; there are ")
    assert there_is in said


def test_other_variables_are_nobodys_business() -> None:
    """Only what bears the prefix is ours to judge, and its letters' case does not matter."""
    settings = load({"AWS_REGION": "eu-west-1", "IOT_OTHER": "x", "iot_aws_shadow__poll_batch_size": "7"})
    assert settings.shadow.poll_batch_size == 7


def test_the_fleet_credential_secret_is_named_by_its_arn() -> None:
    """Worker and API take the same one; a name alone tells no region, so it is refused."""
    given = {"IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN": ARN}
    assert load(given).credentials.fleet_credential_secret_arn == ARN
    with patch.dict(os.environ, REQUIRED | given, clear=True):
        assert ApiSettings.load().credentials.fleet_credential_secret_arn == ARN
    said = refusal(dict.fromkeys(given, "fleet-keys"))
    assert said.startswith("IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN: ")


def test_nothing_is_erased_by_itself_without_the_key_that_denies_it() -> None:
    """A number of days needs the key, a short key is none, and the key is in no representation."""
    days = {"IOT_AWS_ERASURE__RETENTION_DAYS": "30"}
    assert refusal(days).startswith("IOT_AWS_ERASURE__HASH_KEY: is required where IOT_AWS_ERASURE__RETENTION")
    said = refusal(days, {"IOT_AWS_ERASURE__HASH_KEY": "hush"})
    assert said.startswith("IOT_AWS_ERASURE__HASH_KEY: ")
    assert "hush" not in said
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
def test_a_sink_needs_its_address(sink: str, needed: list[str]) -> None:
    """What the chosen sink cannot do without is asked for by name, and of the others nothing."""
    given = {
        "IOT_AWS_EVENTS__WEBHOOK_URL": "https://hooks.example/in?token=hush",
        "IOT_AWS_EVENTS__WEBHOOK_SECRET": f"whsec_{32 * 'A'} whsec_{84 * 'B'}9w==",
        "IOT_AWS_EVENTS__EVENT_BUS_NAME": "arn:aws:events:eu-west-1:111122223333:event-bus/devices",
        "IOT_AWS_EVENTS__TOPIC_ARN": "arn:aws:sns:eu-west-1:111122223333:devices.fifo",
    }
    chosen = {"IOT_AWS_EVENTS__SINK": sink}
    for name in needed:
        said = refusal(chosen, {other: given[other] for other in given if not other.endswith(name)})
        assert said.startswith(f"IOT_AWS_EVENTS__{name}: is required where IOT_AWS_EVENTS__SINK is {sink}")
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
def test_another_webhook_is_refused(url: str) -> None:
    """With the form to write, and without what was given."""
    said = refusal({"IOT_AWS_EVENTS__WEBHOOK_URL": url})
    assert said.startswith("IOT_AWS_EVENTS__WEBHOOK_URL: ")
    assert "hush" not in said


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
def test_what_is_no_webhook_secret_is_refused(secret: str) -> None:
    """Each must be `whsec_` and the base64 of 24 to 64 bytes; what was given is not repeated."""
    said = refusal({"IOT_AWS_EVENTS__WEBHOOK_SECRET": secret})
    assert said.startswith("IOT_AWS_EVENTS__WEBHOOK_SECRET: each secret must be whsec_")
    assert "AAA" not in said


def test_the_toml_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    """What the file says stands, in the table's letters too, but where the environment says otherwise."""
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
    ("content", "said"),
    [
        ("[shadow]\npoll_interval_seconds = 4", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_interval_seconds = true", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_interval_seconds.x = 1", "IOT_AWS_SHADOW__POLL_INTERVAL_SECONDS (in FILE): "),
        ("[shadow]\npoll_seconds = 30", "IOT_AWS_SHADOW__POLL_SECONDS: no such setting; "),
        ("shadow = 30", "IOT_AWS_SHADOW: no such setting; "),
        ("[shadows]\npoll_batch_size = 30", "IOT_AWS_SHADOWS__POLL_BATCH_SIZE: no such setting; "),
        ("[shadow", "IOT_AWS_CONFIG_FILE: FILE is no TOML file: "),
        ("\xff", "IOT_AWS_CONFIG_FILE: FILE is no TOML file: "),
        (None, "IOT_AWS_CONFIG_FILE: cannot read FILE: No such file or directory"),
    ],
)
def test_what_is_wrong_in_the_toml_file_is_refused_by_name(
    tmp_path: Path, content: str | None, said: str
) -> None:
    """The setting and the file are named; so is a file that is not there or is no TOML."""
    file = tmp_path / "thingbridge.toml"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    assert refusal({"IOT_AWS_CONFIG_FILE": str(file)}).replace(str(file), "FILE").startswith(said)


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
def test_a_database_url_is_what_libpq_takes(url: str) -> None:
    """TCP, unix sockets, several hosts: taken as written, and the password is in no representation."""
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
        # With these, libpq takes the rest of the password for a host or a port.
        "postgresql://bridge:x@hush@db.example/platform",
        "postgresql://bridge:hush/x@db.example/platform",
    ],
)
def test_another_database_url_is_refused_without_its_password(url: str) -> None:
    """The refusal gives the form to write, and never repeats what was given."""
    said = refusal({"DATABASE_URL": url})
    assert said.startswith("DATABASE_URL: ")
    assert "postgresql://USER:PASSWORD@HOST:PORT/NAME" in said
    assert "hush" not in said


def test_each_command_needs_no_more_than_it_uses() -> None:
    """A client of the workflows needs no setting at all, a reader of the rows its database alone."""
    with patch.dict(os.environ, clear=True):
        assert ClientSettings.load().worker.task_queue == "thingbridge"
        with pytest.raises(InvalidSettingsError, match=r"^DATABASE_URL: is required"):
            DatabaseSettings.load()

"""Every setting there is, read once at start; a wrong one is refused with its name and what is allowed."""

import binascii
import json
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import httpx2
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from domain.area import ALL_AREAS, Area
from domain.encryption import ENCRYPTION_KEY_BYTES, KEY_ID_PATTERN, EncryptionKeys
from domain.erasure import KEY_LENGTH, SerialHashing
from domain.names import TASK_QUEUE
from domain.serial_policy import SERIAL_POLICY_GROUP, SerialPatterns

PREFIX: Final = "IOT_AWS_"
CONFIG_FILE_VARIABLE: Final = f"{PREFIX}CONFIG_FILE"
DATABASE_VARIABLE: Final = "DATABASE_URL"

_SECRET_NAME_LIMIT: Final = 512
_LONGEST_THING_NAME: Final = 128 * "x"
# As the Standard Webhooks spec writes a secret.
_WEBHOOK_SECRET: Final = re.compile(r"whsec_([A-Za-z0-9+/]+={0,2})")


class InvalidSettingsError(ValueError):
    """Settings are missing or wrong; a line for each."""


def _database_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://, as libpq writes it")
    if not _reads_as_meant(url):
        raise ValueError("libpq cannot read it; a special character in a password is written as %40 for @")
    return value


def _reads_as_meant(url: str) -> bool:
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return False
    # Of a password with a bare @ or / in it, libpq takes the rest for the host or the port, and an error of
    # the connection would show it.
    host, port = str(given.get("host", "")), str(given.get("port", ""))
    return "@" not in host and re.fullmatch(r"[\d,]*", port) is not None


def _secret_name_template(value: str) -> str:
    if "{thingName}" not in value:
        raise ValueError("must hold {thingName}, else all devices would share one secret")
    rest = value.replace("{thingName}", "")
    if not all(letter.isascii() and (letter.isalnum() or letter in "/_+=.@-") for letter in rest):
        raise ValueError("may hold, beside {thingName}, only ASCII letters, digits and /_+=.@-")
    longest = len(value.replace("{thingName}", _LONGEST_THING_NAME))
    if longest > _SECRET_NAME_LIMIT:
        raise ValueError(
            f"gives names of up to {longest} characters, AWS allows {_SECRET_NAME_LIMIT}: "
            f"{len(_LONGEST_THING_NAME)} for each {{thingName}}, and the rest"
        )
    return value


def _needed_to_erase(value: SecretStr | None, given: ValidationInfo) -> SecretStr | None:
    if value is None and given.data.get("retention_days") is not None:
        raise ValueError("is required where IOT_AWS_ERASURE__RETENTION_DAYS is set")
    return value


def _needed_by(sink: str) -> AfterValidator:
    """Refuse to go without what a sink needs, where it is the one chosen."""

    def refuse_none(value: Any, given: ValidationInfo) -> Any:
        if value is None and given.data.get("sink") == sink:
            raise ValueError(f"is required where IOT_AWS_EVENTS__SINK is {sink}")
        return value

    return AfterValidator(refuse_none)


def _webhook_url(value: SecretStr) -> SecretStr:
    try:
        url = httpx2.URL(value.get_secret_value())
    except httpx2.InvalidURL:
        raise ValueError("is no URL") from None
    if not url.host or (url.port or 0) > 65_535:
        raise ValueError("is no URL of a host")
    if url.scheme != "https" and not (url.scheme == "http" and _is_this_machine(url.host)):
        raise ValueError("must begin with https://, since events name devices; http:// to this machine alone")
    return value


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _webhook_secrets(value: SecretStr) -> SecretStr:
    secrets = value.get_secret_value().split()
    if not secrets or not all(map(_is_webhook_secret, secrets)):
        raise ValueError("each secret must be whsec_ and the base64 of 24 to 64 bytes")
    return value


def _is_webhook_secret(secret: str) -> bool:
    match = _WEBHOOK_SECRET.fullmatch(secret)
    try:
        return match is not None and 24 <= len(b64decode(match[1], validate=True)) <= 64
    except binascii.Error:
        return False


def _serial_patterns(value: object) -> object:
    """Patterns as an environment variable or the TOML file writes them, once they are known to be some."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("is no JSON") from None
    if isinstance(value, dict) and all(isinstance(pattern, str) for pattern in value.values()):
        SerialPatterns(value)
        return value
    raise ValueError("must be a JSON object of strings")


def _encryption_keys(value: object) -> object:
    """Keys as an environment variable or the TOML file writes them; none of them is ever repeated."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("is no JSON") from None
    if not isinstance(value, dict) or not value:
        raise ValueError("must be a JSON object of at least one key by its id")
    if not all(re.fullmatch(KEY_ID_PATTERN, key_id) for key_id in value):
        raise ValueError("an id must be 1 to 32 of ASCII letters, digits, . _ and -")
    for key_id, key in value.items():
        if not isinstance(key, str) or len(_read_key(key)) != ENCRYPTION_KEY_BYTES:
            raise ValueError(f"the key {key_id} must be {ENCRYPTION_KEY_BYTES} bytes in base64")
    return value


def _read_key(key: str) -> bytes:
    try:
        return b64decode(key, validate=True)
    except ValueError:
        return b""


def _one_of_the_keys(value: str | None, given: ValidationInfo) -> str | None:
    # Where the keys are at fault themselves, that is said of them.
    if value is not None and "keys" in given.data:
        keys = given.data["keys"]
        if keys is None:
            raise ValueError("is one of IOT_AWS_ENCRYPTION__KEYS, which is not set")
        if value not in keys:
            raise ValueError(f"must be one of the ids in IOT_AWS_ENCRYPTION__KEYS: {', '.join(keys)}")
    return value


def _areas(value: object) -> object:
    """Areas as an environment variable or the TOML file writes them."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("is no JSON") from None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a JSON list of one area or more")
    if any(each not in ALL_AREAS for each in value):
        raise ValueError("names an area that there is not")
    return tuple(area for area in ALL_AREAS if area in value)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Credentials(_Section):
    """How the bridge proves itself to AWS."""

    fleet_credential_secret_arn: str | None = Field(
        None,
        pattern=r"^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[!-~]+$",
        description="the ARN of the secret that holds the keys for AWS; none: boto3's default chain has them",
    )
    rotation_check_interval_minutes: int = Field(
        5, ge=1, le=240, description="minutes until the secret is read again, 1 to 240"
    )
    initial_fetch_timeout_seconds: int = Field(
        15, ge=1, le=60, description="seconds a worker's start waits for the secret, 1 to 60"
    )


class SecretNames(_Section):
    """What the secrets of devices are called."""

    # The rest of the section is the worker's, and `load` refuses a name that is no setting at all.
    model_config = ConfigDict(frozen=True, extra="ignore")

    secret_name_template: Annotated[str, AfterValidator(_secret_name_template)] = Field(
        "iot/devices/{thingName}/key", description="a secret's name, holding {thingName}"
    )


class Provisioning(SecretNames):
    """What is made for a device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_policy_name: str = Field(
        pattern=r"^[A-Za-z0-9_+=,.@-]{1,128}$", description="the name of the IoT policy every device gets"
    )
    secret_kms_key_id: str | None = Field(
        None, min_length=1, description="a KMS key's id, ARN or alias; none: the account's own key"
    )
    step_retry_seconds: float = Field(
        86_400, ge=1, le=30 * 86_400, description="seconds a step is retried before Failed, 1 to 2592000"
    )


class Shadow(_Section):
    """The Device Shadows."""

    poll_interval_seconds: int = Field(30, ge=5, le=600, description="seconds, 5 to 600")
    poll_batch_size: int = Field(100, ge=1, le=1000, description="bindings a page, 1 to 1000")
    auto_push_lifecycle_status: bool = Field(True, description="true or false")


class Jobs(_Section):
    """Commands to devices."""

    job_id_prefix: str = Field(
        "granit", pattern=r"^[A-Za-z0-9_-]{1,27}$", description="1 to 27 of letters, digits, _ and -"
    )
    job_tracking_ttl_hours: int = Field(72, ge=1, le=720, description="hours, 1 to 720")
    status_poll_interval_seconds: int = Field(300, ge=15, le=3600, description="seconds, 15 to 3600")
    status_poll_batch_size: int = Field(100, ge=1, le=1000, description="jobs an interval, 1 to 1000")


class FleetProvisioning(_Section):
    """Devices that enrol themselves (JITP)."""

    expiry_warning_window_days: int = Field(30, ge=1, le=180, description="days, 1 to 180")
    rotation_check_interval_hours: int = Field(24, ge=1, le=168, description="hours, 1 to 168")
    rotation_check_batch_size: int = Field(1000, ge=1, le=10_000, description="bindings a page, 1 to 10000")
    allow_reprovision: bool = Field(True, description="true or false")
    account_id: str | None = Field(
        None,
        pattern=r"^[0-9]{12}$",
        description="the AWS account's 12 digits; none: the worker asks AWS (sts:GetCallerIdentity)",
    )
    serial_policy: str | None = Field(
        None,
        min_length=1,
        description="package.module:callable, or the name of an entry point in the group "
        f"{SERIAL_POLICY_GROUP}, asked whether a serial number may enrol; none: all may",
    )
    # With None allowed, what is no JSON comes to the validator and not out of pydantic-settings.
    serial_patterns: Annotated[dict[str, str] | None, BeforeValidator(_serial_patterns)] = Field(
        None,
        description="JSON, each tenant's UUID with the regular expression that its serial numbers match as a "
        "whole, the null tenant as the zero UUID, * for all others, who else may not enrol; none: all may",
    )


class Erasure(_Section):
    """What is still known of decommissioned devices."""

    retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="days until a decommissioned device is erased, 1 to 36500; none: never",
    )
    hash_key: Annotated[SecretStr | None, AfterValidator(_needed_to_erase)] = Field(
        None,
        min_length=KEY_LENGTH,
        validate_default=True,
        description=f"a secret of {KEY_LENGTH} characters or more, the same for ever, by which erased serial "
        "numbers are denied; none: nothing is erased",
    )

    @property
    def hashing(self) -> SerialHashing | None:
        """What stands for erased serial numbers, where any may be erased."""
        return SerialHashing(self.hash_key.get_secret_value()) if self.hash_key else None


_WebhookUrl = Annotated[SecretStr, AfterValidator(_webhook_url)]
_WebhookSecrets = Annotated[SecretStr, AfterValidator(_webhook_secrets)]


class Events(_Section):
    """Where events go, and what becomes of those that are not taken."""

    sink: Literal["log", "webhook", "eventbridge", "sns"] = Field(
        "log", description="log, webhook, eventbridge or sns"
    )
    # A URL may hold a token.
    webhook_url: Annotated[_WebhookUrl | None, _needed_by("webhook")] = Field(
        None, validate_default=True, description="https://…, or http://… to this machine"
    )
    webhook_secret: Annotated[_WebhookSecrets | None, _needed_by("webhook")] = Field(
        None,
        validate_default=True,
        description="whsec_ and the base64 of 24 to 64 bytes, as Standard Webhooks has it; several, parted "
        "by a space, all sign: so a new one is brought in",
    )
    event_bus_name: Annotated[str | None, _needed_by("eventbridge")] = Field(
        None,
        pattern=r"^(arn:aws[\w-]*:events:[a-z0-9-]+:[0-9]{12}:event-bus/)?[/.\-_A-Za-z0-9]{1,256}$",
        validate_default=True,
        description="an event bus's name or ARN, in AWS_REGION; AWS tells nobody that there is none of it",
    )
    topic_arn: Annotated[str | None, _needed_by("sns")] = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?$",
        validate_default=True,
        description="an SNS topic's ARN, of any region; one that ends in .fifo keeps each device's order",
    )
    park_after_hours: int = Field(
        24,
        ge=0,
        le=720,
        description="hours for which an event that the sink refuses is sent again, while its device's later "
        "ones wait, 0 to 720",
    )
    retention_days: int = Field(
        30, ge=1, le=3650, description="days until an event that was sent is deleted, 1 to 3650"
    )

    @property
    def webhook_secrets(self) -> list[str]:
        """What a webhook is signed with."""
        return self.webhook_secret.get_secret_value().split() if self.webhook_secret else []


class Api(_Section):
    """The HTTP doors."""

    request_timeout_seconds: float = Field(
        10, ge=0.1, le=120, description="seconds for a request's body, and for its answer, 0.1 to 120"
    )
    max_concurrent_requests: int = Field(
        8, ge=1, le=500, description="threads and database connections, 1 to 500"
    )
    key_cache_seconds: float = Field(
        5,
        ge=0,
        le=300,
        description="seconds a key is taken without asking again whether it is revoked, 0 to 300",
    )
    temporal_ui_url: str | None = Field(
        None,
        pattern=r"^https?://[!-~]+$",
        description="Temporal's UI at the namespace, as https://HOST/namespaces/NAME; none: no links to it",
    )


class Worker(_Section):
    """This process's share of the work."""

    task_queue: str = Field(TASK_QUEUE, min_length=1, max_length=255, description="a task queue's name")
    # Not decoded by pydantic-settings, whose complaint of what is no JSON would lack the name.
    areas: Annotated[tuple[Area, ...], NoDecode, BeforeValidator(_areas)] = Field(
        ALL_AREAS,
        description=f"JSON list of {', '.join(ALL_AREAS)}: what there is here, the same for every worker of "
        "the task queue and for HTTP",
    )
    max_concurrent_activities: int = Field(
        32, ge=1, le=500, description="threads, AWS and database connections, 1 to 500"
    )
    max_concurrent_workflow_tasks: int = Field(100, ge=2, le=1000, description="at once, 2 to 1000")
    max_cached_workflows: int = Field(1000, ge=0, le=100_000, description="workflows, 0 to 100000")
    max_activities_per_second: float = Field(
        50,
        gt=0,
        allow_inf_nan=False,
        description="above 0, for all workers of the queue together: choose it by AWS's own quotas",
    )
    shutdown_grace_seconds: int = Field(30, ge=0, le=3600, description="seconds, 0 to 3600")
    deployment_name: str = Field(
        "thingbridge", pattern=r"^[^.]{1,128}$", description="a worker deployment's name, without dots"
    )
    build_id: str | None = Field(
        None, min_length=1, max_length=255, description="turns worker versioning on; none: off"
    )


class Encryption(_Section):
    """What Temporal keeps of the payloads: see docs/encryption.md."""

    keys: Annotated[dict[str, SecretStr] | None, BeforeValidator(_encryption_keys)] = Field(
        None,
        description=f"JSON, each key's id with its {ENCRYPTION_KEY_BYTES} bytes in base64, the same wherever "
        "payloads are read; none: they are plain",
    )
    key_id: Annotated[str | None, AfterValidator(_one_of_the_keys)] = Field(
        None, description="the id of the key that encrypts what is new; none: that stays plain"
    )

    @property
    def in_use(self) -> EncryptionKeys | None:
        """The keys, where there are any."""
        if self.keys is None:
            return None
        keys = {key_id: b64decode(key.get_secret_value()) for key_id, key in self.keys.items()}
        return EncryptionKeys(keys, self.key_id)


class Log(_Section):
    """What the process says of itself, on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    format: Literal["json", "text"] = Field("json", description="json or text")


class Telemetry(_Section):
    """What a worker shows of itself over HTTP. Traces go to OTEL_EXPORTER_OTLP_ENDPOINT, if set."""

    metrics_host: str = Field("127.0.0.1", min_length=1, description="the address to listen on")
    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="a port, 1 to 65535, for /metrics and /healthz; none: off"
    )


class ClientSettings(BaseSettings):
    """What a client of the workflows needs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    log: Log = Log()
    worker: Worker = Worker()
    encryption: Encryption = Encryption()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the one TOML file, if one is named."""
        return env_settings, InitSettingsSource(settings_cls, init_kwargs=_config_file())

    @classmethod
    def load(cls) -> Self:
        """Read the settings.

        Raises:
            InvalidSettingsError: one line for each that is missing or wrong, by its name.
        """
        in_environment = {name.upper() for name in os.environ if name.upper().startswith(PREFIX)}
        in_file = set(_variables(_config_file()))
        unknown = [*_unknown(in_environment - {CONFIG_FILE_VARIABLE}), *_unknown(in_file)]
        if unknown:
            raise InvalidSettingsError("\n".join(unknown))
        try:
            return cls()
        except ValidationError as error:
            # Neither input nor context: a value may be a secret.
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            raise InvalidSettingsError("\n".join(_fault(fault, in_file) for fault in faults)) from None


class CommandSettings(ClientSettings):
    """What sending commands needs."""

    jobs: Jobs = Jobs()


class DatabaseSettings(ClientSettings):
    """What reading and migrating the bridge's rows needs."""

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = Field(
        validation_alias=DATABASE_VARIABLE, description="postgresql://USER:PASSWORD@HOST:PORT/NAME"
    )
    erasure: Erasure = Erasure()


class CodecSettings(DatabaseSettings):
    """What the codec server needs."""

    api: Api = Api()


class ApiSettings(DatabaseSettings):
    """All that the HTTP doors need."""

    api: Api = Api()
    credentials: Credentials = Credentials()
    provisioning: SecretNames = SecretNames()
    jobs: Jobs = Jobs()
    fleet_provisioning: FleetProvisioning = FleetProvisioning()


class Settings(DatabaseSettings):
    """All that a worker needs."""

    credentials: Credentials = Credentials()
    provisioning: Provisioning
    shadow: Shadow = Shadow()
    jobs: Jobs = Jobs()
    fleet_provisioning: FleetProvisioning = FleetProvisioning()
    events: Events = Events()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_missing(cls, given: dict[str, Any]) -> dict[str, Any]:
        # A section nobody set would be reported missing as a whole, not the setting in it.
        return {"provisioning": {}} | given


class Knob(NamedTuple):
    """One setting, as an operator has to know it."""

    variable: str
    default: str | None
    """None where the setting is required."""
    allowed: str


def describe() -> Iterator[tuple[str, list[Knob]]]:
    """Every setting there is, by sections, each with what it is about."""
    database = DatabaseSettings.model_fields["database_url"].description or ""
    yield "The database, PostgreSQL 15 or later.", [Knob(DATABASE_VARIABLE, None, database)]
    for section, model in _sections().items():
        yield (
            model.__doc__ or "",
            [
                Knob(
                    _variable(section, name),
                    None if field.is_required() else _written(field.default),
                    field.description or "",
                )
                for name, field in model.model_fields.items()
            ],
        )


def _written(default: object) -> str:
    """A default as one would write it; what is off by default has none."""
    if default is None:
        return "none"
    return json.dumps(default) if isinstance(default, bool | tuple) else str(default)


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in (ApiSettings.model_fields | Settings.model_fields).items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _variable(section: str, name: str) -> str:
    return f"{PREFIX}{section}__{name}".upper()


def _config_file() -> dict[str, Any]:
    """What the one TOML file says, if one is named: sections as tables, all names in lower case.

    Raises:
        InvalidSettingsError: there is no such file, or it is no TOML.
    """
    file = os.environ.get(CONFIG_FILE_VARIABLE)
    if not file:
        return {}
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise InvalidSettingsError(
            f"{CONFIG_FILE_VARIABLE}: cannot read {file}: {error.strerror} (allowed: a TOML file)"
        ) from None
    except ValueError as error:
        raise InvalidSettingsError(f"{CONFIG_FILE_VARIABLE}: {file} is no TOML file: {error}") from None
    return {
        name.lower(): {knob.lower(): given for knob, given in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in content.items()
    }


def _variables(content: Mapping[str, Any]) -> Iterator[str]:
    """The variables that the TOML file's content stands for."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from (_variable(name, knob) for knob in value)
        else:
            yield name.upper() if name.upper() == DATABASE_VARIABLE else f"{PREFIX}{name}".upper()


def _unknown(variables: Iterable[str]) -> Iterator[str]:
    """A line for each variable that is no setting, with those that are."""
    known = {
        section: [_variable(section, name) for name in model.model_fields]
        for section, model in _sections().items()
    }
    names = {DATABASE_VARIABLE, *(variable for section in known.values() for variable in section)}
    for variable in sorted(set(variables) - names):
        section = variable.removeprefix(PREFIX).partition("__")[0].lower()
        there_are = known.get(section) or [f"{PREFIX}{each}__…".upper() for each in known]
        yield f"{variable}: no such setting; there are {', '.join(there_are)}"


def _fault(fault: ErrorDetails, in_file: set[str]) -> str:
    section, name = (*map(str, fault["loc"]), "")[:2]
    if name:
        variable, field = _variable(section, name), _sections()[section].model_fields[name]
    else:
        variable, field = DATABASE_VARIABLE, DatabaseSettings.model_fields["database_url"]
    what = "is required" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    # Also where it stands, for someone who has never set such a variable.
    from_file = variable in in_file and variable not in map(str.upper, os.environ)
    where = f" (in {os.environ[CONFIG_FILE_VARIABLE]})" if from_file else ""
    return f"{variable}{where}: {what} (allowed: {field.description})"

"""The sections of the settings: every name, default, bound and description is here and nowhere else.

`thingbridge --help` prints the docstring of each section and the descriptions of its fields.
"""

from base64 import b64decode
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from domain.area import ALL_AREAS, Area
from domain.encryption import ENCRYPTION_KEY_BYTES, EncryptionKeys
from domain.erasure import KEY_LENGTH, SerialHashing
from domain.names import TASK_QUEUE
from domain.serial_policy import SERIAL_POLICY_GROUP
from settings import validation

PREFIX: Final = "IOT_AWS_"
CONFIG_FILE_VARIABLE: Final = f"{PREFIX}CONFIG_FILE"
DATABASE_VARIABLE: Final = "DATABASE_URL"
DATABASE_URL_FORM: Final = "postgresql://USER:PASSWORD@HOST:PORT/NAME"


class Section(BaseModel):
    """A group of settings, which cannot change after the start."""

    # Deferred, since `thingbridge --help` describes the sections without validating a value.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Credentials(Section):
    """The credentials with which the bridge calls AWS."""

    fleet_credential_secret_arn: str | None = Field(
        None,
        pattern=r"^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[!-~]+$",
        description="ARN of the secret that contains the AWS credentials; none: boto3's default chain",
    )
    rotation_check_interval_minutes: int = Field(
        5, ge=1, le=240, description="minutes between two reads of that secret, 1 to 240"
    )
    initial_fetch_timeout_seconds: int = Field(
        15, ge=1, le=60, description="seconds that a starting worker waits for that secret, 1 to 60"
    )


class SecretNames(Section):
    """The names of the devices' secrets in Secrets Manager."""

    # The API reads only this part of [provisioning]. `load` rejects a name that no section has.
    model_config = ConfigDict(extra="ignore")

    secret_name_template: Annotated[str, AfterValidator(validation.secret_name_template)] = Field(
        "iot/devices/{thingName}/key", description="name of a device's secret, containing {thingName}"
    )


class Provisioning(SecretNames):
    """The AWS resources that are created for a device."""

    model_config = ConfigDict(extra="forbid")

    device_policy_name: str = Field(
        pattern=r"^[A-Za-z0-9_+=,.@-]{1,128}$",
        description="the name of the IoT policy that is attached to every device's certificate",
    )
    secret_kms_key_id: str | None = Field(
        None,
        min_length=1,
        description="KMS key that encrypts the secrets, by id, ARN or alias; none: the account's default key",
    )
    step_retry_seconds: float = Field(
        86_400,
        ge=1,
        le=30 * 86_400,
        description="seconds for which a step is retried before the device is Failed, 1 to 2592000",
    )


class Shadow(Section):
    """The Device Shadows: the poll for desired state, and the reported status."""

    poll_interval_seconds: int = Field(
        30, ge=5, le=600, description="seconds between two polls of all active devices, 5 to 600"
    )
    poll_batch_size: int = Field(100, ge=1, le=1000, description="devices read by one activity, 1 to 1000")
    auto_push_lifecycle_status: bool = Field(
        True, description="true or false: report Active or Suspended in the device's shadow"
    )


class Jobs(Section):
    """Commands to devices, which are AWS IoT jobs."""

    job_id_prefix: str = Field(
        "granit",
        pattern=r"^[A-Za-z0-9_-]{1,27}$",
        description="the beginning of every job id, 1 to 27 of letters, digits, _ and -",
    )
    job_tracking_ttl_hours: int = Field(
        72, ge=1, le=720, description="hours after which an open job is cancelled, 1 to 720"
    )
    status_poll_interval_seconds: int = Field(
        300, ge=15, le=3600, description="seconds between two look-ups of an open job, 15 to 3600"
    )
    status_poll_batch_size: int = Field(
        100,
        ge=1,
        le=1000,
        description="a rate limit: jobs looked up in each STATUS_POLL_INTERVAL_SECONDS by all workers "
        "together, 1 to 1000",
    )


class FleetProvisioning(Section):
    """Devices that enrol themselves (JITP)."""

    expiry_warning_window_days: int = Field(
        30, ge=1, le=180, description="days before a claim certificate expires that it is reported, 1 to 180"
    )
    rotation_check_interval_hours: int = Field(
        24, ge=1, le=168, description="hours between two checks of the claim certificates, 1 to 168"
    )
    rotation_check_batch_size: int = Field(
        1000, ge=1, le=10_000, description="bindings checked by one activity, 1 to 10000"
    )
    allow_reprovision: bool = Field(
        True, description="true or false: a device that has a live binding may enrol again"
    )
    account_id: str | None = Field(
        None,
        pattern=r"^[0-9]{12}$",
        description="the AWS account's 12 digits; none: the worker reads them (sts:GetCallerIdentity)",
    )
    serial_policy: str | None = Field(
        None,
        min_length=1,
        description="package.module:callable, or the name of an entry point in the group "
        f"{SERIAL_POLICY_GROUP}, which decides whether a serial number may enrol; none: all may",
    )
    serial_patterns: Annotated[dict[str, str] | None, BeforeValidator(validation.serial_patterns)] = Field(
        None,
        description="JSON object: a tenant's UUID and the regular expression that its serial numbers must "
        "match as a whole; the zero UUID is the null tenant, * every other tenant, and a tenant without a "
        "pattern may not enrol; none: all may",
    )


class Erasure(Section):
    """The erasure of decommissioned devices: see docs/erasure.md."""

    retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="days until a decommissioned device is erased, 1 to 36500; none: never",
    )
    hash_key: Annotated[SecretStr | None, AfterValidator(validation.required_for_retention)] = Field(
        None,
        min_length=KEY_LENGTH,
        validate_default=True,
        description=f"a secret of {KEY_LENGTH} characters or more that hashes erased serial numbers, so that "
        "they stay denied; never change it; none: nothing can be erased",
    )

    @property
    def hashing(self) -> SerialHashing | None:
        """Return the hash function for erased serial numbers, or None where nothing can be erased."""
        return SerialHashing(self.hash_key.get_secret_value()) if self.hash_key else None


_WebhookUrl = Annotated[SecretStr, AfterValidator(validation.webhook_url)]
_WebhookSecrets = Annotated[SecretStr, AfterValidator(validation.webhook_secrets)]


class Events(Section):
    """The sink of outgoing events, and the limits of delivery."""

    sink: Literal["log", "webhook", "eventbridge", "sns"] = Field(
        "log", description="log, webhook, eventbridge or sns"
    )
    # A secret, since a URL may contain a token.
    webhook_url: Annotated[_WebhookUrl | None, validation.required_by_sink("webhook")] = Field(
        None, validate_default=True, description="https://…, or http://… to this machine"
    )
    webhook_secret: Annotated[_WebhookSecrets | None, validation.required_by_sink("webhook")] = Field(
        None,
        validate_default=True,
        description="whsec_ and the base64 of 24 to 64 bytes, as Standard Webhooks defines it; several, "
        "separated by spaces, all sign, for a rotation",
    )
    event_bus_name: Annotated[str | None, validation.required_by_sink("eventbridge")] = Field(
        None,
        pattern=r"^(arn:aws[\w-]*:events:[a-z0-9-]+:[0-9]{12}:event-bus/)?[/.\-_A-Za-z0-9]{1,256}$",
        validate_default=True,
        description="an event bus's name or ARN, in AWS_REGION; check it, since AWS reports no error "
        "for a bus that does not exist",
    )
    topic_arn: Annotated[str | None, validation.required_by_sink("sns")] = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?$",
        validate_default=True,
        description="an SNS topic's ARN, of any region; a .fifo topic keeps each device's order",
    )
    park_after_hours: int = Field(
        24,
        ge=0,
        le=720,
        description="hours for which a refused event is sent again while the device's later events "
        "wait; then it is parked, 0 to 720",
    )
    retention_days: int = Field(
        30, ge=1, le=3650, description="days until an event that was sent is deleted, 1 to 3650"
    )

    @property
    def webhook_secrets(self) -> list[str]:
        """Return the secrets that sign a webhook request."""
        return self.webhook_secret.get_secret_value().split() if self.webhook_secret else []


class Api(Section):
    """The HTTP API."""

    request_timeout_seconds: float = Field(
        10,
        ge=0.1,
        le=120,
        description="seconds for a request's body to arrive, and for its response, 0.1 to 120",
    )
    max_concurrent_requests: int = Field(
        8, ge=1, le=500, description="threads and database connections, 1 to 500"
    )
    key_cache_seconds: float = Field(
        5,
        ge=0,
        le=300,
        description="seconds for which a revoked key may still be accepted, 0 to 300",
    )
    temporal_ui_url: str | None = Field(
        None,
        pattern=r"^https?://[!-~]+$",
        description="Temporal's UI at the namespace, as https://HOST/namespaces/NAME; none: no links to it",
    )


class Worker(Section):
    """The capacity and the identity of a worker process."""

    task_queue: str = Field(
        TASK_QUEUE, min_length=1, max_length=255, description="name of the workflows' task queue"
    )
    areas: Annotated[tuple[Area, ...], BeforeValidator(validation.areas)] = Field(
        ALL_AREAS,
        description=f"JSON list of {', '.join(ALL_AREAS)}: the active parts of the bridge, the same in every "
        "worker of the task queue and in the API",
    )
    max_concurrent_activities: int = Field(
        32, ge=1, le=500, description="threads, AWS connections and database connections, 1 to 500"
    )
    max_concurrent_workflow_tasks: int = Field(
        100, ge=2, le=1000, description="workflow tasks at the same time, 2 to 1000"
    )
    max_cached_workflows: int = Field(
        1000, ge=0, le=100_000, description="workflows kept in memory, 0 to 100000"
    )
    max_activities_per_second: float = Field(
        50,
        gt=0,
        allow_inf_nan=False,
        description="a rate limit for all workers of the task queue together, above 0: choose it by AWS's "
        "quotas",
    )
    shutdown_grace_seconds: int = Field(
        30, ge=0, le=3600, description="seconds that running activities have to end after SIGTERM, 0 to 3600"
    )
    deployment_name: str = Field(
        "thingbridge", pattern=r"^[^.]{1,128}$", description="name of the worker deployment, without dots"
    )
    build_id: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="id of this build, which turns worker versioning on; none: off",
    )


class Encryption(Section):
    """The encryption of the payloads in Temporal: see docs/encryption.md."""

    keys: Annotated[dict[str, SecretStr] | None, BeforeValidator(validation.encryption_keys)] = Field(
        None,
        description=f"JSON object: each key's id and its {ENCRYPTION_KEY_BYTES} bytes in base64, the same in "
        "every process that reads payloads; none: payloads are not encrypted",
    )
    key_id: Annotated[str | None, AfterValidator(validation.encrypting_key_id)] = Field(
        None, description="id of the key that encrypts new payloads; none: new payloads are not encrypted"
    )

    @property
    def decoded_keys(self) -> EncryptionKeys | None:
        """Return the keys decoded from base64, or None if none are set."""
        if self.keys is None:
            return None
        keys = {key_id: b64decode(key.get_secret_value()) for key_id, key in self.keys.items()}
        return EncryptionKeys(keys, self.key_id)


class Log(Section):
    """The log of the process, on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    format: Literal["json", "text"] = Field("json", description="json or text")


class Telemetry(Section):
    """The metrics of a worker. Traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT, if set."""

    metrics_host: str = Field("127.0.0.1", min_length=1, description="the address to listen on")
    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="the port of /metrics and /healthz, 1 to 65535; none: off"
    )


SECTIONS: Final[dict[str, type[Section]]] = {
    "credentials": Credentials,
    "provisioning": Provisioning,
    "shadow": Shadow,
    "jobs": Jobs,
    "fleet_provisioning": FleetProvisioning,
    "erasure": Erasure,
    "encryption": Encryption,
    "events": Events,
    "api": Api,
    "worker": Worker,
    "log": Log,
    "telemetry": Telemetry,
}
"""Every section by its name."""


def variable_name(section: str, name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{section}__{name}".upper()

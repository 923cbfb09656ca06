"""The tables. Columns that rows made elsewhere may not know have a server default."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Enum,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from domain.device_state import DesiredStatus
from domain.names import NO_TENANT, SERIAL_NUMBER_LIMIT, TENANT_PREFIX_LENGTH
from domain.outbox import OUTBOX_SHARDS
from domain.provisioning_status import ProvisioningStatus

# Written out, for an index serves only the very expression it is over.
serial_number_of_thing: Final = literal_column(f"substr(thing_name, {TENANT_PREFIX_LENGTH + 1})", String)
age_in_outbox: Final = literal_column("(id + 0)", BigInteger)
_LIVE: Final = text("deleted_at IS NULL")
_WAITING: Final = text("published_at IS NULL AND parked_at IS NULL")
_SHARD: Final = f"(get_byte(uuid_send(coalesce(device_id, event_id)), 15) % {OUTBOX_SHARDS})::smallint"


class Table(SQLModel):
    """Base of every table of the bridge, with constraint names that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _time(**kwargs: Any) -> Any:
    return Field(sa_type=DateTime(timezone=True), **kwargs)


def _now() -> datetime:
    return datetime.now(UTC)


def _no_zero_tenant() -> CheckConstraint:
    return CheckConstraint(f"tenant_id <> '{NO_TENANT}'", name="tenant_is_not_zero")


def _one_of(words: type[StrEnum]) -> Enum:
    """A column of plain words, readable in SQL, that loads as the enum."""
    return Enum(
        words, native_enum=False, length=32, values_callable=lambda kind: [word.value for word in kind]
    )


def _only(column: str, words: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


_STATUS: Final = _one_of(ProvisioningStatus)


class AwsThingBinding(Table, table=True):
    """One device's tie to AWS: what was made for it, and how far that has come."""

    __tablename__ = "iotaws_thing_bindings"
    __table_args__ = (
        _only("provisioning_status", ProvisioningStatus),
        _no_zero_tenant(),
        Index("uq_iotaws_thing_bindings_thing_name", "thing_name", unique=True, postgresql_where=_LIVE),
        Index(
            "uq_iotaws_thing_bindings_device",
            "tenant_id",
            "device_id",
            unique=True,
            postgresql_where=_LIVE,
            postgresql_nulls_not_distinct=True,
        ),
        Index("uq_iotaws_thing_bindings_certificate", "certificate_arn", unique=True, postgresql_where=_LIVE),
        Index(
            "uq_iotaws_thing_bindings_secret", "certificate_secret_arn", unique=True, postgresql_where=_LIVE
        ),
        Index("ix_iotaws_thing_bindings_device_id", "device_id"),
        # The newest row of a tenant's serial, deleted or not, decides whether it may be provisioned.
        Index("ix_iotaws_thing_bindings_thing_name_created_at", "thing_name", "created_at"),
        # An erased row has its serial's hash in place of the name.
        Index(
            "ix_iotaws_thing_bindings_serial_hash_created_at",
            "serial_hash",
            "created_at",
            postgresql_where=text("serial_hash IS NOT NULL"),
        ),
        Index("ix_iotaws_thing_bindings_provisioning_status_id", "provisioning_status", "id"),
        Index(
            "ix_iotaws_thing_bindings_claim_certificate_expires_at",
            "claim_certificate_expires_at",
            "id",
            postgresql_where=text("deleted_at IS NULL AND claim_certificate_expires_at IS NOT NULL"),
        ),
        Index("ix_iotaws_thing_bindings_tenant_id_id", "tenant_id", "id"),
        Index("ix_iotaws_thing_bindings_serial_number_id", serial_number_of_thing, "id"),
    )

    id: UUID = Field(
        default_factory=uuid4,
        primary_key=True,
        sa_column_kwargs={"server_default": text("gen_random_uuid()")},
    )
    device_id: UUID
    tenant_id: UUID | None = None
    # Null while another device's live binding holds the name, and where it has been erased.
    thing_name: str | None = Field(default=None, sa_type=String(128))
    thing_arn: str | None = Field(default=None, sa_type=Text)
    certificate_arn: str | None = Field(default=None, sa_type=Text)
    certificate_secret_arn: str | None = Field(default=None, sa_type=Text)
    provisioning_status: ProvisioningStatus = Field(
        default=ProvisioningStatus.PENDING,
        sa_type=_STATUS,
        sa_column_kwargs={"server_default": ProvisioningStatus.PENDING.value},
    )
    serial_hash: str | None = Field(default=None, sa_type=String(80))
    # The last error: what stopped provisioning, or the last that an Active device or a teardown met.
    failure_code: str | None = Field(default=None, sa_type=String(64))
    failure_reason: str | None = Field(default=None, sa_type=Text)
    last_shadow_reported_at: datetime | None = _time(default=None)
    claim_certificate_expires_at: datetime | None = _time(default=None)
    provisioned_via_jitp: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    created_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    created_by: str | None = Field(default=None, sa_type=Text)
    modified_at: datetime | None = _time(default=None)
    modified_by: str | None = Field(default=None, sa_type=Text)
    deleted_at: datetime | None = _time(default=None)
    deleted_by: str | None = Field(default=None, sa_type=Text)
    version: int = Field(default=1, sa_type=BigInteger, sa_column_kwargs={"server_default": text("1")})


class BindingTransition(Table, table=True):
    """One change of a binding's status. Append-only: a trigger refuses any other write but an erasure's."""

    __tablename__ = "iotaws_binding_transitions"
    __table_args__ = (Index("ix_iotaws_binding_transitions_binding_id_id", "binding_id", "id"),)

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),)
    )
    binding_id: UUID
    device_id: UUID
    tenant_id: UUID | None = None
    from_status: ProvisioningStatus | None = Field(default=None, sa_type=_STATUS)
    to_status: ProvisioningStatus = Field(sa_type=_STATUS)
    occurred_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    actor: str = Field(sa_type=Text)
    workflow_id: str | None = Field(default=None, sa_type=Text)
    run_id: str | None = Field(default=None, sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)


class DeviceStateRow(Table, table=True):
    """The memory of a device's events, which outlives every workflow run (see `domain.device_state`)."""

    __tablename__ = "iotaws_device_states"
    __table_args__ = (
        _only("desired_status", DesiredStatus),
        CheckConstraint(
            "(desired_status IS NULL) = (occurred_at IS NULL) AND (occurred_at IS NULL) = (event_id IS NULL)",
            name="desired_status_is_complete",
        ),
        _no_zero_tenant(),
        Index(
            "ix_iotaws_device_states_to_erase",
            "decommissioned_at",
            "device_id",
            postgresql_where=text("decommissioned_at IS NOT NULL AND erased_at IS NULL"),
        ),
    )

    device_id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    serial_number: str | None = Field(default=None, sa_type=String(SERIAL_NUMBER_LIMIT))
    desired_status: DesiredStatus | None = Field(default=None, sa_type=_one_of(DesiredStatus))
    occurred_at: datetime | None = _time(default=None)
    event_id: UUID | None = None
    decommissioned_at: datetime | None = _time(default=None)
    erased_at: datetime | None = _time(default=None)
    # The event whose status the shadow reports, so that a repeat is not pushed again.
    reported_event_id: UUID | None = None
    # Counts the device's outbox rows, so that their order stands in the rows themselves.
    outbox_sequence: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")}
    )


class Erasure(Table, table=True):
    """That a device's data was erased, when and by whom. Append-only: a trigger refuses any other write."""

    __tablename__ = "iotaws_erasures"
    __table_args__ = (_no_zero_tenant(),)

    device_id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    erased_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    actor: str = Field(sa_type=Text)
    workflow_id: str | None = Field(default=None, sa_type=Text)
    run_id: str | None = Field(default=None, sa_type=Text)


class OutboxRow(Table, table=True):
    """An event to be sent, written in the transaction of the change it tells of."""

    __tablename__ = "iotaws_outbox"
    __table_args__ = (
        UniqueConstraint("event_id"),
        UniqueConstraint("device_id", "sequence"),
        CheckConstraint("(device_id IS NULL) = (sequence IS NULL)", name="numbered_for_a_device"),
        Index("ix_iotaws_outbox_waiting", "shard", age_in_outbox, postgresql_where=_WAITING),
        Index(
            "ix_iotaws_outbox_refused",
            "shard",
            "id",
            postgresql_where=text("published_at IS NULL AND first_refused_at IS NOT NULL"),
        ),
        Index(
            "ix_iotaws_outbox_published",
            "shard",
            "published_at",
            postgresql_where=text("published_at IS NOT NULL"),
        ),
    )

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),)
    )
    event_id: UUID
    type: str = Field(sa_type=String(64))
    # Null where an event is of no one device: a command to a group.
    device_id: UUID | None = None
    tenant_id: UUID | None = None
    sequence: int | None = Field(default=None, sa_type=BigInteger)
    occurred_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    data: dict[str, Any] = Field(sa_type=JSONB)
    published_at: datetime | None = _time(default=None)
    # Of an event that the sink refuses: since when, in what words, when it is sent again, and from when on it
    # is not any more, until an operator says so.
    first_refused_at: datetime | None = _time(default=None)
    refused_because: str | None = Field(default=None, sa_type=Text)
    send_again_at: datetime | None = _time(default=None)
    parked_at: datetime | None = _time(default=None)
    # All of a device's rows have one shard, and so one publisher at a time.
    shard: int | None = Field(
        default=None, sa_type=SmallInteger, sa_column_args=(Computed(_SHARD, persisted=True),)
    )

    @property
    def order_key(self) -> UUID:
        """What the events that must keep their order have in common: the device, or this event alone."""
        return self.device_id or self.event_id


class EventSinkRow(Table, table=True):
    """A sink that wants no more events; one that takes them has no row."""

    __tablename__ = "iotaws_event_sinks"

    # See `events.sink.fingerprint`.
    fingerprint: str = Field(primary_key=True, sa_type=String(64))
    kind: str = Field(sa_type=String(32))
    disabled_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    reason: str = Field(sa_type=Text)


class ShadowDeltaRow(Table, table=True):
    """The delta last seen in a device's shadow; a device without one has no row.

    It tells a delta that is new from one that was told before, and outlives the run that found it: the
    command is started from here, also by the poll after one that crashed.
    """

    __tablename__ = "iotaws_shadow_deltas"
    __table_args__ = (
        Index(
            "ix_iotaws_shadow_deltas_uncommanded",
            "device_id",
            postgresql_where=text("command_started_at IS NULL"),
        ),
    )

    device_id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    delta_hash: str = Field(sa_type=String(64))
    delta: dict[str, Any] = Field(sa_type=JSONB)
    # The version the delta was first seen at, not the newest: that rises with every report of the device.
    shadow_version: int = Field(sa_type=BigInteger)
    correlation_id: UUID
    first_seen_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    # The workflow run that found it: after a crash it counts what it has found already.
    found_by: str = Field(sa_type=Text)
    command_started_at: datetime | None = _time(default=None)


class CommandGroupRow(Table, table=True):
    """A dynamic thing group made for commands to a query; AWS allows few, so unused ones are deleted."""

    __tablename__ = "iotaws_command_groups"
    __table_args__ = (Index("ix_iotaws_command_groups_last_used_at", "last_used_at"),)

    name: str = Field(primary_key=True, sa_type=String(128))
    query: str = Field(sa_type=Text)
    created_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    last_used_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})


class DeviceRow(Table, table=True):
    """The platform's own record of a device enrolled by fleet provisioning; the saga needs none."""

    __tablename__ = "iot_devices"
    __table_args__ = (
        _no_zero_tenant(),
        Index("ix_iot_devices_tenant_id_serial_number", "tenant_id", "serial_number"),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    # Null where it has been erased.
    serial_number: str | None = Field(sa_type=String(SERIAL_NUMBER_LIMIT))
    model: str = Field(sa_type=Text)
    firmware_version: str = Field(sa_type=Text)
    label: str | None = Field(default=None, sa_type=Text)
    status: str = Field(sa_type=String(32))
    created_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})


class RetiredCertificate(Table, table=True):
    """A certificate that another took the place of on a live binding, until it is torn down in AWS."""

    __tablename__ = "iotaws_retired_certificates"
    __table_args__ = (
        _no_zero_tenant(),
        Index(
            "ix_iotaws_retired_certificates_pending",
            "device_id",
            postgresql_where=text("completed_at IS NULL"),
        ),
        Index("ix_iotaws_retired_certificates_certificate_arn", "certificate_arn"),
    )

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),)
    )
    binding_id: UUID
    device_id: UUID
    tenant_id: UUID | None = None
    certificate_arn: str = Field(sa_type=Text)
    # Null where the certificate that took its place uses the same secret.
    secret_arn: str | None = Field(default=None, sa_type=Text)
    # Whether a caller named it, or the saga issued it.
    provisioned_via_jitp: bool
    retired_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    # From here on AWS is being asked to erase it, and no enrolment takes its secret back.
    decided_at: datetime | None = _time(default=None)
    # Why the certificate itself was left in AWS.
    kept_reason: str | None = Field(default=None, sa_type=Text)
    completed_at: datetime | None = _time(default=None)


class AwsLocationRow(Table, table=True):
    """The one row that says where in AWS the bridge is, as its workers have found it."""

    __tablename__ = "iotaws_aws_location"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: int = Field(
        default=1, primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"server_default": text("1")}
    )
    partition: str = Field(sa_type=Text)
    account_id: str = Field(sa_type=String(12))
    region: str = Field(sa_type=Text)
    found_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})


class AwsCredentialsRow(Table, table=True):
    """How reading the secret with the AWS keys has gone, over all workers."""

    __tablename__ = "iotaws_aws_credentials"

    secret_arn: str = Field(primary_key=True, sa_type=Text)
    # Null until it was first read well.
    fetched_at: datetime | None = _time(default=None)
    checked_at: datetime = _time()
    # What went wrong at the last check, as a code.
    error: str | None = Field(default=None, sa_type=Text)


class ApiKeyRow(Table, table=True):
    """A key of the HTTP doors: a tenant's, or where it names none an operator's (see `domain.api_key`)."""

    __tablename__ = "iotaws_api_keys"
    __table_args__ = (_no_zero_tenant(),)

    id: str = Field(primary_key=True, sa_type=String(8))
    digest: bytes = Field(sa_type=LargeBinary)
    tenant_id: UUID | None = None
    label: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = _time(default_factory=_now, sa_column_kwargs={"server_default": func.now()})
    revoked_at: datetime | None = _time(default=None)

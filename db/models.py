"""The tables. Columns that other systems need not fill have a server default."""

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

# Literal SQL: PostgreSQL uses an expression index only for the identical expression.
serial_number_of_thing: Final = literal_column(f"substr(thing_name, {TENANT_PREFIX_LENGTH + 1})", String)
outbox_order: Final = literal_column("(id + 0)", BigInteger)
_LIVE: Final = text("deleted_at IS NULL")
_UNSENT: Final = text("published_at IS NULL AND parked_at IS NULL")
_SHARD: Final = f"(get_byte(uuid_send(coalesce(device_id, event_id)), 15) % {OUTBOX_SHARDS})::smallint"


class Table(SQLModel):
    """Base of every table of the bridge. The naming convention gives each constraint a predictable name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _time_of_insert() -> Any:
    """Return the field of a time that defaults to the time of the insert."""
    return Field(default_factory=_now, sa_type=_TIME, sa_column_kwargs={"server_default": func.now()})


def _tenant_is_not_zero() -> CheckConstraint:
    return CheckConstraint(f"tenant_id <> '{NO_TENANT}'", name="tenant_is_not_zero")


def _enum_type(enum: type[StrEnum]) -> Enum:
    """Return the column type that stores an enum's values as text and loads them as members."""
    return Enum(
        enum, native_enum=False, length=32, values_callable=lambda kind: [member.value for member in kind]
    )


def _enum_check(column: str, enum: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{member}'" for member in enum)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


_TIME: Final = DateTime(timezone=True)
_STATUS: Final = _enum_type(ProvisioningStatus)


class AwsThingBinding(Table, table=True):
    """The binding of one device to AWS: its resources there and the progress of provisioning."""

    __tablename__ = "iotaws_thing_bindings"
    __table_args__ = (
        _enum_check("provisioning_status", ProvisioningStatus),
        _tenant_is_not_zero(),
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
        # The newest row of a tenant's serial number, deleted or not, decides whether it may be provisioned.
        Index("ix_iotaws_thing_bindings_thing_name_created_at", "thing_name", "created_at"),
        # An erased row stores a hash of tenant and serial number instead of the Thing name.
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
    # Null while the live binding of another device has the name, and after erasure.
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
    # The last error: of the step that made the device Failed, of an Active device, or of a teardown.
    failure_code: str | None = Field(default=None, sa_type=String(64))
    failure_reason: str | None = Field(default=None, sa_type=Text)
    last_shadow_reported_at: datetime | None = Field(default=None, sa_type=_TIME)
    claim_certificate_expires_at: datetime | None = Field(default=None, sa_type=_TIME)
    provisioned_via_jitp: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    created_at: datetime = _time_of_insert()
    created_by: str | None = Field(default=None, sa_type=Text)
    modified_at: datetime | None = Field(default=None, sa_type=_TIME)
    modified_by: str | None = Field(default=None, sa_type=Text)
    deleted_at: datetime | None = Field(default=None, sa_type=_TIME)
    deleted_by: str | None = Field(default=None, sa_type=Text)
    version: int = Field(default=1, sa_type=BigInteger, sa_column_kwargs={"server_default": text("1")})


class BindingTransition(Table, table=True):
    """One status change of a binding.

    Append-only: triggers reject every change, except that an erasure may remove the reason.
    """

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
    occurred_at: datetime = _time_of_insert()
    actor: str = Field(sa_type=Text)
    workflow_id: str | None = Field(default=None, sa_type=Text)
    run_id: str | None = Field(default=None, sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)


class DeviceStateRow(Table, table=True):
    """The state that a device's events result in (see `domain.device_state`). It outlives workflow runs."""

    __tablename__ = "iotaws_device_states"
    __table_args__ = (
        _enum_check("desired_status", DesiredStatus),
        CheckConstraint(
            "(desired_status IS NULL) = (occurred_at IS NULL) AND (occurred_at IS NULL) = (event_id IS NULL)",
            name="desired_status_is_complete",
        ),
        _tenant_is_not_zero(),
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
    desired_status: DesiredStatus | None = Field(default=None, sa_type=_enum_type(DesiredStatus))
    occurred_at: datetime | None = Field(default=None, sa_type=_TIME)
    event_id: UUID | None = None
    decommissioned_at: datetime | None = Field(default=None, sa_type=_TIME)
    erased_at: datetime | None = Field(default=None, sa_type=_TIME)
    # The event whose status was last written to the shadow, so that a repeat does not write it again.
    reported_event_id: UUID | None = None
    # The sequence number of the device's last outbox row.
    outbox_sequence: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")}
    )


class Erasure(Table, table=True):
    """The record that a device's data was erased: when and by which actor. Append-only, by a trigger."""

    __tablename__ = "iotaws_erasures"
    __table_args__ = (_tenant_is_not_zero(),)

    device_id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    erased_at: datetime = _time_of_insert()
    actor: str = Field(sa_type=Text)
    workflow_id: str | None = Field(default=None, sa_type=Text)
    run_id: str | None = Field(default=None, sa_type=Text)


class OutboxRow(Table, table=True):
    """An event to publish, written in the transaction of the change that it reports."""

    __tablename__ = "iotaws_outbox"
    __table_args__ = (
        UniqueConstraint("event_id"),
        UniqueConstraint("device_id", "sequence"),
        CheckConstraint("(device_id IS NULL) = (sequence IS NULL)", name="numbered_for_a_device"),
        Index("ix_iotaws_outbox_waiting", "shard", outbox_order, postgresql_where=_UNSENT),
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
    # Null for an event that belongs to no single device, such as the end of a command to a group.
    device_id: UUID | None = None
    tenant_id: UUID | None = None
    sequence: int | None = Field(default=None, sa_type=BigInteger)
    occurred_at: datetime = _time_of_insert()
    data: dict[str, Any] = Field(sa_type=JSONB)
    published_at: datetime | None = Field(default=None, sa_type=_TIME)
    # Set for an event that the sink rejects: the time of the first rejection, the reason of the last one and
    # the time of the next attempt. A parked event is not sent again until an operator resends it.
    first_refused_at: datetime | None = Field(default=None, sa_type=_TIME)
    refused_because: str | None = Field(default=None, sa_type=Text)
    send_again_at: datetime | None = Field(default=None, sa_type=_TIME)
    parked_at: datetime | None = Field(default=None, sa_type=_TIME)
    # All events of a device are in one shard, so that a single publisher sends them in order.
    shard: int | None = Field(
        default=None, sa_type=SmallInteger, sa_column_args=(Computed(_SHARD, persisted=True),)
    )

    @property
    def order_key(self) -> UUID:
        """Return the key shared by the events that must be sent in order: the device, or this event alone."""
        return self.device_id or self.event_id


class EventSinkRow(Table, table=True):
    """A disabled sink, to which no events are sent. An enabled sink has no row."""

    __tablename__ = "iotaws_event_sinks"

    # See `events.sink.fingerprint`.
    fingerprint: str = Field(primary_key=True, sa_type=String(64))
    kind: str = Field(sa_type=String(32))
    disabled_at: datetime = _time_of_insert()
    reason: str = Field(sa_type=Text)


class ShadowDeltaRow(Table, table=True):
    """The delta last read from a device's shadow. A device without a delta has no row.

    The row distinguishes a new delta from one that was published before. It outlives the run that found the
    delta, so that the next poll starts the command after a crash.
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
    # The version at which the delta was first seen. The current one rises with each report of the device.
    shadow_version: int = Field(sa_type=BigInteger)
    correlation_id: UUID
    first_seen_at: datetime = _time_of_insert()
    # The workflow run that found the delta: a repeated attempt counts it again although it is not new.
    found_by: str = Field(sa_type=Text)
    command_started_at: datetime | None = Field(default=None, sa_type=_TIME)


class CommandGroupRow(Table, table=True):
    """A dynamic thing group for commands to a query. AWS allows few of them, so unused ones are deleted."""

    __tablename__ = "iotaws_command_groups"
    __table_args__ = (Index("ix_iotaws_command_groups_last_used_at", "last_used_at"),)

    name: str = Field(primary_key=True, sa_type=String(128))
    query: str = Field(sa_type=Text)
    created_at: datetime = _time_of_insert()
    last_used_at: datetime = _time_of_insert()


class DeviceRow(Table, table=True):
    """The platform's record of a device enrolled by fleet provisioning. The saga does not need it."""

    __tablename__ = "iot_devices"
    __table_args__ = (
        _tenant_is_not_zero(),
        Index("ix_iot_devices_tenant_id_serial_number", "tenant_id", "serial_number"),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    # Null after erasure.
    serial_number: str | None = Field(sa_type=String(SERIAL_NUMBER_LIMIT))
    model: str = Field(sa_type=Text)
    firmware_version: str = Field(sa_type=Text)
    label: str | None = Field(default=None, sa_type=Text)
    status: str = Field(sa_type=String(32))
    created_at: datetime = _time_of_insert()


class RetiredCertificate(Table, table=True):
    """A certificate of a live binding that was replaced and may still have to be deleted in AWS."""

    __tablename__ = "iotaws_retired_certificates"
    __table_args__ = (
        _tenant_is_not_zero(),
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
    # Null if the replacing certificate uses the same secret.
    secret_arn: str | None = Field(default=None, sa_type=Text)
    # True if a caller of `/registered` named the certificate, false if the saga issued it.
    provisioned_via_jitp: bool
    retired_at: datetime = _time_of_insert()
    # The start of the deletion in AWS. From then on no enrolment can use the secret again.
    decided_at: datetime | None = Field(default=None, sa_type=_TIME)
    # The reason why the certificate was not deleted in AWS.
    kept_reason: str | None = Field(default=None, sa_type=Text)
    completed_at: datetime | None = Field(default=None, sa_type=_TIME)


class AwsLocationRow(Table, table=True):
    """The single row with the bridge's partition, account and region, as its workers have found them."""

    __tablename__ = "iotaws_aws_location"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: int = Field(
        default=1, primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"server_default": text("1")}
    )
    partition: str = Field(sa_type=Text)
    account_id: str = Field(sa_type=String(12))
    region: str = Field(sa_type=Text)
    found_at: datetime = _time_of_insert()


class AwsCredentialsRow(Table, table=True):
    """The last result of reading the secret with the AWS credentials, over all workers."""

    __tablename__ = "iotaws_aws_credentials"

    secret_arn: str = Field(primary_key=True, sa_type=Text)
    # Null until a worker has read the secret successfully.
    fetched_at: datetime | None = Field(default=None, sa_type=_TIME)
    checked_at: datetime = Field(sa_type=_TIME)
    # The error code of the last check, null if it succeeded.
    error: str | None = Field(default=None, sa_type=Text)


class ApiKeyRow(Table, table=True):
    """A key of the HTTP API: of a tenant, or of an operator if it has no tenant (see `domain.api_key`)."""

    __tablename__ = "iotaws_api_keys"
    __table_args__ = (_tenant_is_not_zero(),)

    id: str = Field(primary_key=True, sa_type=String(8))
    digest: bytes = Field(sa_type=LargeBinary)
    tenant_id: UUID | None = None
    label: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = _time_of_insert()
    revoked_at: datetime | None = Field(default=None, sa_type=_TIME)

"""What the database itself holds against: duplicates, lost updates, a rewritten audit."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlmodel import Session

from db.bindings import (
    Actor,
    IllegalTransitionError,
    StaleBindingError,
    advance,
    failed_at,
    newest_binding,
    open_binding,
)
from db.migrate import configuration, upgrade
from db.models import AwsThingBinding
from db.outbox import put
from domain.outgoing_event import AwsThingDecommissioned
from domain.provisioning_status import ProvisioningStatus as Status

TEST = Actor("a test")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine, expire_on_commit=False) as opened:
        yield opened


def opened(session: Session, tenant: UUID | None = None, name: str | None = None) -> AwsThingBinding:
    binding = open_binding(
        session, device_id=uuid4(), tenant_id=tenant, thing_name=name or f"thing-{uuid4()}", actor=TEST
    )
    session.commit()
    return binding


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    """No table, column, constraint or index differs between migrations and models."""
    with engine.begin() as connection:
        command.check(configuration(connection))


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    """A database that is up to date is left as it is."""
    assert upgrade(engine) == upgrade(engine)


@pytest.mark.parametrize("column", ["thing_name", "certificate_arn", "certificate_secret_arn"])
def test_live_bindings_share_nothing(session: Session, column: str) -> None:
    """Thing name, certificate and secret belong to one live binding; a deleted one gives them back."""
    shared, rows = str(uuid4()), [opened(session), opened(session)]
    setattr(rows[0], column, shared)
    session.commit()
    setattr(rows[1], column, shared)
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    advance(session, rows[0], Status.DECOMMISSIONED, TEST)
    setattr(rows[1], column, shared)
    session.commit()


@pytest.mark.parametrize("tenant", [None, uuid4()])
def test_a_device_has_one_live_binding(session: Session, tenant: UUID | None) -> None:
    """Also a device of no tenant: nulls are not distinct here."""
    first = opened(session, tenant)
    with pytest.raises(IntegrityError):
        open_binding(session, device_id=first.device_id, tenant_id=tenant, thing_name=None, actor=TEST)


@pytest.mark.parametrize("table", ["iotaws_thing_bindings", "iotaws_device_states", "iot_devices"])
def test_the_zero_uuid_is_no_tenant(session: Session, table: str) -> None:
    """The null tenant is null, in every table that names one."""
    columns = {
        "iotaws_thing_bindings": "device_id, tenant_id",
        "iotaws_device_states": "device_id, tenant_id",
        "iot_devices": "serial_number, model, firmware_version, status, id, tenant_id",
    }[table]
    values = "'1', '1', '1', '1', " if table == "iot_devices" else ""
    statement = f"INSERT INTO {table} ({columns}) VALUES ({values}gen_random_uuid(), :zero)"  # noqa: S608
    with pytest.raises(IntegrityError, match="tenant_is_not_zero"):
        session.execute(text(statement), {"zero": UUID(int=0)})


def test_a_binding_changed_in_between_is_not_overwritten(session: Session) -> None:
    """Of two writers who read the same version the second is refused."""
    binding = opened(session)
    stale = AwsThingBinding.model_validate(binding.model_dump())
    advance(session, binding, Status.THING_CREATED, TEST)
    session.commit()
    with pytest.raises(StaleBindingError):
        advance(session, stale, Status.THING_CREATED, TEST)


def test_a_refused_transition_leaves_no_trace(session: Session) -> None:
    """What the rules refuse writes neither status nor audit."""
    binding = opened(session)
    with pytest.raises(IllegalTransitionError):
        advance(session, binding, Status.ACTIVE, TEST)
    session.rollback()
    assert newest_binding(session, binding.device_id) == binding


def test_a_retry_goes_back_to_where_the_last_failure_was(session: Session) -> None:
    """The audit tells the station; a binding that failed twice goes by the last."""
    binding = opened(session)
    for status in (Status.FAILED, Status.PENDING, Status.THING_CREATED, Status.FAILED):
        binding = advance(session, binding, status, TEST)
    assert failed_at(session, binding) is Status.THING_CREATED


@pytest.mark.parametrize("statement", ["UPDATE {} SET reason = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_audit_cannot_be_rewritten(session: Session, statement: str) -> None:
    """The transitions are append-only, for the bridge's own role too."""
    opened(session)
    with pytest.raises(ProgrammingError, match="append-only"):
        session.execute(text(statement.format("iotaws_binding_transitions")))


def test_the_outbox_numbers_a_devices_events_without_gaps(session: Session) -> None:
    """Each event of a device stands behind the one before it; one put twice is one."""
    device, binding = uuid4(), uuid4()
    event = AwsThingDecommissioned(
        device_id=device, tenant_id=None, binding_id=binding, thing_name=None, kept=[]
    )
    for number in (0, 0, 1, 0, 2, 2):
        put(session, event, number)
    session.commit()
    put(session, event, 1)
    session.commit()
    put(session, event, 3)
    session.commit()
    numbers = session.execute(
        text("SELECT sequence FROM iotaws_outbox WHERE device_id = :device ORDER BY id"), {"device": device}
    ).scalars()
    assert list(numbers) == [1, 2, 3, 4]


def test_a_row_of_the_contracts_columns_alone_is_enough(session: Session) -> None:
    """Other systems insert no more than the contract names; the rest has defaults."""
    device = uuid4()
    session.execute(
        text("INSERT INTO iotaws_thing_bindings (device_id, thing_name) VALUES (:device, :name)"),
        {"device": device, "name": f"thing-{device}"},
    )
    binding = newest_binding(session, device)
    assert binding is not None
    assert (binding.provisioning_status, binding.provisioned_via_jitp) == (Status.PENDING, False)

"""The schema: the migration matches the models, and the database enforces the rules of its rows."""

from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import CheckConstraint, Engine, PrimaryKeyConstraint, inspect, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlmodel import Session

from db.bindings import Actor, newest_binding, open_binding
from db.migrate import configuration, upgrade
from db.models import Table
from domain.provisioning_status import ProvisioningStatus


def test_migration_creates_the_schema_of_the_models(engine: Engine) -> None:
    """Tables, columns, indexes and unique constraints are the same in the migration and the models."""
    with engine.begin() as connection:
        command.check(configuration(connection))


def test_migration_names_constraints_as_the_models_do(engine: Engine) -> None:
    """Alembic compares neither checks nor primary keys: their names are the same too."""
    found = inspect(engine)
    for table in Table.metadata.sorted_tables:
        checks = {each.name for each in table.constraints if isinstance(each, CheckConstraint)}
        assert {each["name"] for each in found.get_check_constraints(table.name)} == checks
        (primary_key,) = (each for each in table.constraints if isinstance(each, PrimaryKeyConstraint))
        assert found.get_pk_constraint(table.name)["name"] == primary_key.name


def test_second_migration_changes_nothing(engine: Engine) -> None:
    """A migration of a current database leaves it unchanged."""
    assert upgrade(engine) == upgrade(engine)


@pytest.mark.parametrize("table", ["iotaws_thing_bindings", "iotaws_device_states", "iot_devices"])
def test_zero_uuid_is_rejected_as_tenant(session: Session, table: str) -> None:
    """The null tenant is stored as null in every table with a tenant."""
    columns = {
        "iotaws_thing_bindings": "device_id, tenant_id",
        "iotaws_device_states": "device_id, tenant_id",
        "iot_devices": "serial_number, model, firmware_version, status, id, tenant_id",
    }[table]
    values = "'1', '1', '1', '1', " if table == "iot_devices" else ""
    statement = f"INSERT INTO {table} ({columns}) VALUES ({values}gen_random_uuid(), :zero)"  # noqa: S608
    with pytest.raises(IntegrityError, match="tenant_is_not_zero"):
        session.execute(text(statement), {"zero": UUID(int=0)})


@pytest.mark.parametrize("statement", ["UPDATE {} SET reason = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
def test_transitions_are_append_only(session: Session, statement: str) -> None:
    """The database rejects changes of the audit, also by the bridge's own role."""
    open_binding(
        session, device_id=uuid4(), tenant_id=None, thing_name=f"thing-{uuid4()}", actor=Actor("a test")
    )
    session.commit()
    with pytest.raises(ProgrammingError, match="append-only"):
        session.execute(text(statement.format("iotaws_binding_transitions")))


def test_binding_inserted_by_another_system_gets_defaults(session: Session) -> None:
    """Another system inserts only columns of docs/reference.md. The other columns have defaults."""
    device = uuid4()
    session.execute(
        text("INSERT INTO iotaws_thing_bindings (device_id, thing_name) VALUES (:device, :name)"),
        {"device": device, "name": f"thing-{device}"},
    )
    binding = newest_binding(session, device)
    assert binding is not None
    assert (binding.provisioning_status, binding.provisioned_via_jitp) == (ProvisioningStatus.PENDING, False)

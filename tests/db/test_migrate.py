"""`thingbridge migrate`: PostgreSQL and Temporal made ready, or a sentence why not."""

import asyncio

import pytest
from alembic import command
from sqlalchemy import Engine, text
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client

from db.engine import open_engine
from db.migrate import configuration, upgrade
from domain.outbox import OUTBOX_SHARDS
from embedded.stack import Addresses
from tests.harness.command_line import call_beside, empty_database, empty_namespace, run

KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
INT = IndexedValueType.INDEXED_VALUE_TYPE_INT


@pytest.fixture
def database_url(engine: Engine, stack: Addresses) -> str:
    """A database with nothing in it."""
    return empty_database(engine, stack.database_url)


@pytest.fixture
async def namespace(client: Client) -> str:
    """A namespace with nothing registered in it."""
    return await empty_namespace(client)


async def register(client: Client, namespace: str, **types: IndexedValueType.ValueType) -> None:
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=namespace, search_attributes=types)
    )


async def test_two_at_once_make_everything_and_a_third_changes_nothing(
    database_url: str, namespace: str
) -> None:
    """However many start it, schema and search attributes are there afterwards, and stay as they are."""
    place = {"DATABASE_URL": database_url, "TEMPORAL_NAMESPACE": namespace}
    before = await call_beside("bindings", **place)
    assert (before.exit_code, "run `thingbridge migrate`" in before.stderr) == (2, True)
    said = await asyncio.gather(run("migrate", **place), run("migrate", **place))
    assert [(each.exit_code, each.stderr) for each in said] == [(0, ""), (0, "")]
    assert any("registered TenantId, ThingName, ProvisioningStatus" in each.stdout for each in said)
    again = await call_beside("migrate", **place)
    assert (again.exit_code, again.stderr) == (0, "")
    assert f"namespace {namespace}: all search attributes are registered" in again.stdout
    assert said[0].stdout.splitlines()[0] == again.stdout.splitlines()[0]
    assert (await call_beside("bindings", **place)).stdout == "there is no binding yet\n"


def test_what_waits_in_the_outbox_is_shared_out_by_the_upgrade(database_url: str) -> None:
    """Events that an earlier version wrote, and that nobody has sent yet, get their publisher's shard."""
    engine = open_engine(database_url)
    with engine.begin() as connection:
        command.upgrade(configuration(connection), "0001")
        connection.execute(
            text("""
                INSERT INTO iotaws_outbox (event_id, type, device_id, sequence, data)
                VALUES (gen_random_uuid(), 'AwsThingProvisionedEvent', :device, 1, '{}')
            """),
            {"device": "11111111-2222-3333-4444-555555555557"},
        )
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT shard FROM iotaws_outbox")) == 0x57 % OUTBOX_SHARDS
    engine.dispose()


async def test_the_command_is_said_where_it_may_not_register(
    client: Client, database_url: str, namespace: str
) -> None:
    """Where Temporal refuses to register, the database is migrated and someone else is told what to run."""
    await register(client, namespace, **{f"Taken{number}": KEYWORD for number in range(8)}, ThingName=KEYWORD)
    said = await call_beside("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE=namespace)
    assert said.exit_code == 2
    assert said.stdout.startswith("database: schema ")
    assert "cannot have more than 10 search attribute of type Keyword" in said.stderr
    flags = "--name TenantId --type Keyword --name ProvisioningStatus --type Keyword"
    assert f"\ntemporal operator search-attribute create --namespace {namespace} {flags}\n" in said.stderr


async def test_a_search_attribute_of_another_type_is_refused_with_the_remedy(
    client: Client, database_url: str, namespace: str
) -> None:
    """One that cannot hold our values is not taken for registered; the way to be rid of it is said."""
    await register(client, namespace, TenantId=INT)
    said = await call_beside("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE=namespace)
    assert said.exit_code == 2
    assert (
        f"temporal operator search-attribute remove --namespace {namespace} --name TenantId\n" in said.stderr
    )


async def test_a_namespace_that_is_not_there_is_named(database_url: str) -> None:
    """A misspelt namespace is a sentence, not a stack trace."""
    said = await call_beside("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE="misspelt")
    assert said.exit_code == 2
    assert "TEMPORAL_NAMESPACE" in said.stderr
    assert "misspelt" in said.stderr


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://bridge:hush@127.0.0.1:1/platform", "Connection refused"),
        ("postgresql://bridge:hush@127.0.0.1:1/platform?sslmode=hardly", "sslmode"),
    ],
)
async def test_a_database_that_does_not_answer_is_a_sentence(url: str, why: str) -> None:
    """The reason is given in libpq's words, and the password in nobody's."""
    said = await call_beside("migrate", DATABASE_URL=url)
    assert said.exit_code == 2
    assert said.stderr.startswith("error: the database (DATABASE_URL) refuses or does not answer: ")
    assert why in said.stderr
    assert "hush" not in said.stderr

"""`thingbridge migrate` prepares PostgreSQL and Temporal, or reports why it cannot."""

import asyncio

import pytest
from sqlalchemy import Engine
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client

from embedded.stack import Addresses
from tests.harness.command_line import call_in_thread, empty_database, empty_namespace, run

KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
INT = IndexedValueType.INDEXED_VALUE_TYPE_INT


@pytest.fixture
def database_url(engine: Engine, stack: Addresses) -> str:
    """The URL of an empty database."""
    return empty_database(engine, stack.database_url)


@pytest.fixture
async def namespace(client: Client) -> str:
    """A namespace without registered search attributes."""
    return await empty_namespace(client)


async def register(client: Client, namespace: str, **types: IndexedValueType.ValueType) -> None:
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=namespace, search_attributes=types)
    )


async def test_concurrent_migrations_succeed_and_a_third_changes_nothing(
    database_url: str, namespace: str
) -> None:
    """Concurrent calls create the schema and the search attributes once, and a later call keeps them."""
    environment = {"DATABASE_URL": database_url, "TEMPORAL_NAMESPACE": namespace}
    before = await call_in_thread("bindings", **environment)
    assert (before.exit_code, "run `thingbridge migrate`" in before.stderr) == (2, True)
    results = await asyncio.gather(run("migrate", **environment), run("migrate", **environment))
    assert [(each.exit_code, each.stderr) for each in results] == [(0, ""), (0, "")]
    assert any("registered TenantId, ThingName, ProvisioningStatus" in each.stdout for each in results)
    again = await call_in_thread("migrate", **environment)
    assert (again.exit_code, again.stderr) == (0, "")
    assert f"namespace {namespace}: all search attributes are registered" in again.stdout
    assert results[0].stdout.splitlines()[0] == again.stdout.splitlines()[0]
    assert (await call_in_thread("bindings", **environment)).stdout == "there is no binding yet\n"


async def test_rejected_registration_prints_the_command_to_run(
    client: Client, database_url: str, namespace: str
) -> None:
    """If Temporal rejects the registration, the database is migrated and the output has a command to run."""
    await register(client, namespace, **{f"Taken{number}": KEYWORD for number in range(8)}, ThingName=KEYWORD)
    result = await call_in_thread("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE=namespace)
    assert result.exit_code == 2
    assert result.stdout.startswith("database: schema ")
    assert "cannot have more than 10 search attribute of type Keyword" in result.stderr
    flags = "--name TenantId --type Keyword --name ProvisioningStatus --type Keyword"
    assert f"\ntemporal operator search-attribute create --namespace {namespace} {flags}\n" in result.stderr


async def test_search_attribute_of_another_type_is_rejected_with_the_remedy(
    client: Client, database_url: str, namespace: str
) -> None:
    """An attribute that cannot store the bridge's values is rejected, with the command that removes it."""
    await register(client, namespace, TenantId=INT)
    result = await call_in_thread("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE=namespace)
    assert result.exit_code == 2
    assert (
        f"temporal operator search-attribute remove --namespace {namespace} --name TenantId\n"
        in result.stderr
    )


async def test_missing_namespace_is_named(database_url: str) -> None:
    """A misspelt namespace results in an error message, not in a stack trace."""
    result = await call_in_thread("migrate", DATABASE_URL=database_url, TEMPORAL_NAMESPACE="misspelt")
    assert result.exit_code == 2
    assert "TEMPORAL_NAMESPACE" in result.stderr
    assert "misspelt" in result.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://bridge:hush@127.0.0.1:1/platform", "Connection refused"),
        ("postgresql://bridge:hush@127.0.0.1:1/platform?sslmode=hardly", "sslmode"),
    ],
)
async def test_unreachable_database_is_reported_without_the_password(url: str, reason: str) -> None:
    """The error message contains libpq's reason, and never the password."""
    result = await call_in_thread("migrate", DATABASE_URL=url)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the database (DATABASE_URL) refuses or does not answer: ")
    assert reason in result.stderr
    assert "hush" not in result.stderr

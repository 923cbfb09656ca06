"""`thingbridge keys`: creating, listing and revoking API keys."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from domain.api_key import ApiKey
from tests.harness.command_line import call_in_thread
from tests.harness.http_api import HttpApi


async def test_key_is_accepted_and_its_secret_is_stored_nowhere(http_api: HttpApi, engine: Engine) -> None:
    """The API accepts a key; the list and the database contain its id and hash only; it can be revoked."""
    tenant = str(uuid4())
    created = await call_in_thread("keys", "create", "--tenant", tenant, "--label", "gate 3")
    assert created.exit_code == 0
    key = created.stdout.strip()
    key_id, secret = key[3:11], key[12:]
    async with http_api.client(key) as http:
        assert (await http.get("/api/iot/bindings")).status_code == 200
        assert (await http.get("/api/iot/bindings", params={"tenantId": tenant})).status_code == 200
    listed = await call_in_thread("keys", "list")
    (line,) = (each for each in listed.stdout.splitlines() if each.startswith(key_id))
    assert (line.split()[1], line.split(maxsplit=3)[3]) == (tenant, "gate 3")
    with engine.connect() as connection:
        rows = str(connection.execute(text("SELECT * FROM iotaws_api_keys")).all())
    assert key_id in rows
    assert secret not in rows + listed.stdout
    revoked = await call_in_thread("keys", "revoke", key_id)
    assert (revoked.exit_code, revoked.stdout) == (0, f"{key_id} is revoked\n")
    once = (await call_in_thread("keys", "list")).stdout
    assert (await call_in_thread("keys", "revoke", key_id)).exit_code == 0
    assert (await call_in_thread("keys", "list")).stdout == once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create",), "--operator"),
        (("create", "--operator", "--tenant", str(uuid4())), "--operator"),
        (("create", "--tenant", "00000000-0000-0000-0000-000000000000"), "zero UUID"),
        (("create", "--tenant", "me"), "UUID"),
        (("revoke", "ffffffff"), "there is no key ffffffff: see `thingbridge keys list`"),
    ],
)
async def test_wrong_arguments_for_a_key_are_refused(
    http_api: HttpApi, arguments: tuple[str, ...], message: str
) -> None:
    """A key is for one tenant or for an operator, and only an existing key can be revoked."""
    result = await call_in_thread("keys", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_keys_are_unique() -> None:
    """Ids and secrets differ, and each key is parsed from its text."""
    created = [ApiKey.generate() for _ in range(100)]
    assert len({key.id for key, _ in created}) == len({key.digest for key, _ in created}) == 100
    assert all(ApiKey.parse(text) == key for key, text in created)

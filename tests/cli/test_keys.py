"""`thingbridge keys`: made and shown once, listed without their text, revoked."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from domain.api_key import ApiKey
from tests.harness.command_line import call_beside
from tests.harness.http_api import HttpApi


async def test_a_key_opens_the_doors_until_it_is_revoked(http_api: HttpApi, engine: Engine) -> None:
    """It is printed once, and neither the list nor the database has more of it than its id and hash."""
    tenant = str(uuid4())
    made = await call_beside("keys", "create", "--tenant", tenant, "--label", "gate 3")
    assert made.exit_code == 0
    key = made.stdout.strip()
    key_id, secret = key[3:11], key[12:]
    async with http_api.client(key) as http:
        assert (await http.get("/api/iot/bindings")).status_code == 200
        assert (await http.get("/api/iot/bindings", params={"tenantId": tenant})).status_code == 200
    listed = await call_beside("keys", "list")
    (line,) = (each for each in listed.stdout.splitlines() if each.startswith(key_id))
    assert (line.split()[1], line.split(maxsplit=3)[3]) == (tenant, "gate 3")
    with engine.connect() as connection:
        rows = str(connection.execute(text("SELECT * FROM iotaws_api_keys")).all())
    assert key_id in rows
    assert secret not in rows + listed.stdout
    revoked = await call_beside("keys", "revoke", key_id)
    assert (revoked.exit_code, revoked.stdout) == (0, f"{key_id} is revoked\n")
    once = (await call_beside("keys", "list")).stdout
    assert (await call_beside("keys", "revoke", key_id)).exit_code == 0
    assert (await call_beside("keys", "list")).stdout == once


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create",), "--operator"),
        (("create", "--operator", "--tenant", str(uuid4())), "--operator"),
        (("create", "--tenant", "00000000-0000-0000-0000-000000000000"), "zero UUID"),
        (("create", "--tenant", "me"), "UUID"),
        (("revoke", "ffffffff"), "there is no key ffffffff: see `thingbridge keys list`"),
    ],
)
async def test_what_is_no_ones_key_is_refused(
    http_api: HttpApi, arguments: tuple[str, ...], said: str
) -> None:
    """A key is a tenant's or an operator's, and one to be revoked must be there."""
    answer = await call_beside("keys", *arguments)
    assert answer.exit_code == 2
    assert said in answer.stderr


def test_no_two_keys_are_alike() -> None:
    """Neither id nor secret, and each is read as it is written."""
    made = [ApiKey.make() for _ in range(100)]
    assert len({key.id for key, _ in made}) == len({key.digest for key, _ in made}) == 100
    assert all(ApiKey.read(text) == key for key, text in made)

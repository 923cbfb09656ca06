"""The erasure of decommissioned devices from the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from rich.console import Console
from sqlalchemy import Engine
from sqlmodel import Session

from cli.database import open_database
from db.bindings import Actor
from db.erasure import count_unerased, erase_device, erase_some, require_hash_key
from domain.erasure import SerialHashing
from settings import DatabaseSettings, InvalidSettingsError

_ACTOR: Final = Actor("thingbridge erase")
_PAGE_SIZE: Final = 100


def erase(settings: DatabaseSettings, console: Console, device_id: UUID) -> None:
    """Erase a decommissioned device.

    Raises:
        InvalidSettingsError, WrongHashKeyError: there is no key with which its serial number can stay denied.
        NotErasableError: the device cannot be erased, with the reason.
    """
    with _erasing(settings) as (engine, hashing), Session(engine) as session, session.begin():
        erased = erase_device(session, device_id, hashing, _ACTOR)
    console.print(f"device {device_id} " + ("erased" if erased else "was erased before"))


def erase_tenant(settings: DatabaseSettings, console: Console, tenant_id: UUID) -> int:
    """Erase every decommissioned device of a tenant, and return how many other devices it has.

    Raises:
        InvalidSettingsError, WrongHashKeyError: there is no key with which serial numbers can stay denied.
    """
    with _erasing(settings) as (engine, hashing):
        erased = 0
        while True:
            with Session(engine) as session, session.begin():
                page = erase_some(session, hashing, _ACTOR, limit=_PAGE_SIZE, tenant_id=tenant_id)
                left = count_unerased(session, tenant_id)
            erased += page
            if not page:
                break
    console.print(f"{erased} erased, {left} left")
    return left


@contextmanager
def _erasing(settings: DatabaseSettings) -> Iterator[tuple[Engine, SerialHashing]]:
    """Open the database, and check that the hash key is the one of earlier erasures.

    Raises:
        InvalidSettingsError: there is no hash key.
        WrongHashKeyError: the hash key is not the one of earlier erasures.
    """
    hashing = settings.erasure.hashing
    if hashing is None:
        raise InvalidSettingsError(
            "IOT_AWS_ERASURE__HASH_KEY: is required to erase: its hash keeps a serial number denied"
        )
    with open_database(settings) as engine:
        with Session(engine) as session:
            require_hash_key(session, hashing)
        yield engine, hashing

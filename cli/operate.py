"""What an operator does from a shell: migrate, look at bindings, retry, erase."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from typing import Final
from uuid import UUID

from rich.console import Console
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from cli.database import open_database
from cli.output import shown_time
from db.bindings import Actor, BindingFilter, newest_binding
from db.engine import open_engine
from db.erasure import count_unerased, erase_device, erase_some, require_hash_key
from db.migrate import upgrade
from db.models import AwsThingBinding, BindingTransition
from domain.erasure import SerialHashing
from orchestration.client import connect
from orchestration.requests import send_retry
from orchestration.search_attributes import register_search_attributes
from settings import DatabaseSettings, InvalidSettingsError

_ERASER: Final = Actor("thingbridge erase")
_ERASED_AT_ONCE: Final = 100


class UnknownDeviceError(LookupError):
    """The bridge has no binding for the device."""


async def migrate(settings: DatabaseSettings, console: Console) -> None:
    """Bring database and Temporal namespace to what this version needs."""
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        console.print(f"database: schema {await asyncio.to_thread(upgrade, engine)}")
    finally:
        engine.dispose()
    client = await connect(settings.encryption.in_use)
    added = await register_search_attributes(client)
    console.print(
        f"namespace {client.namespace}: "
        + (f"registered {', '.join(added)}" if added else "all search attributes are registered")
    )


async def retry(settings: DatabaseSettings, console: Console, device_id: UUID) -> None:
    """Send `retry` to a device's workflow.

    Raises:
        UnknownDeviceError: there is no such device, so nothing was sent.
    """
    with _reading(settings) as session:
        binding = newest_binding(session, device_id)
    if binding is None:
        raise UnknownDeviceError(f"device {device_id} has no binding: see `thingbridge bindings`")
    client = await connect(settings.encryption.in_use)
    workflow_id = await send_retry(client, device_id, settings.worker.task_queue)
    console.print(f"retry sent to {workflow_id}, whose binding is {binding.provisioning_status}")


def list_bindings(settings: DatabaseSettings, console: Console, wanted: BindingFilter, *, limit: int) -> None:
    """Print the bindings, the newest first; a single device's with its ARNs and transitions.

    A line for each, which a terminal may break where it likes: an id that is cut cannot be copied.
    """
    with _reading(settings) as session:
        found = session.exec(_query(wanted, limit)).all()
        transitions = session.exec(
            select(BindingTransition)
            .where(BindingTransition.device_id == wanted.device_id)
            .order_by(col(BindingTransition.id))
        ).all()
    if not found:
        lines = iter(["no binding matches" if wanted.conditions else "there is no binding yet"])
    elif wanted.device_id:
        lines = chain(_listed(found), _resources(found), _told(transitions))
    else:
        lines = _listed(found[:limit])
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if len(found) > limit:
        console.print(f"the newest {limit} of more: see --limit")


def erase(settings: DatabaseSettings, console: Console, device_id: UUID) -> None:
    """Erase a decommissioned device.

    Raises:
        InvalidSettingsError, WrongHashKeyError: there is no key by which its serial number could be denied.
        NotErasableError: why the device is none to erase.
    """
    with _erasing(settings) as (engine, hashing), Session(engine) as session, session.begin():
        erased = erase_device(session, device_id, hashing, _ERASER)
    console.print(f"device {device_id} " + ("erased" if erased else "was erased before"))


def erase_tenant(settings: DatabaseSettings, console: Console, tenant_id: UUID) -> int:
    """Erase every decommissioned device of a tenant, and return how many others it has.

    Raises:
        InvalidSettingsError, WrongHashKeyError: there is no key by which serial numbers could be denied.
    """
    with _erasing(settings) as (engine, hashing):
        erased = 0
        while True:
            with Session(engine) as session, session.begin():
                page = erase_some(session, hashing, _ERASER, limit=_ERASED_AT_ONCE, tenant_id=tenant_id)
                left = count_unerased(session, tenant_id)
            erased += page
            if not page:
                break
    console.print(f"{erased} erased, {left} left")
    return left


@contextmanager
def _erasing(settings: DatabaseSettings) -> Iterator[tuple[Engine, SerialHashing]]:
    hashing = settings.erasure.hashing
    if hashing is None:
        raise InvalidSettingsError(
            "IOT_AWS_ERASURE__HASH_KEY: is required to erase, since by it alone an erased serial is denied"
        )
    with open_database(settings) as engine:
        with Session(engine) as session:
            require_hash_key(session, hashing)
        yield engine, hashing


@contextmanager
def _reading(settings: DatabaseSettings) -> Iterator[Session]:
    with open_database(settings) as engine, Session(engine) as session:
        yield session


def _query(wanted: BindingFilter, limit: int) -> SelectOfScalar[AwsThingBinding]:
    query = select(AwsThingBinding).order_by(col(AwsThingBinding.created_at).desc()).limit(limit + 1)
    return query.where(*wanted.conditions)


def _listed(bindings: Sequence[AwsThingBinding]) -> Iterator[str]:
    things = max(len(binding.thing_name or "") for binding in bindings)
    yield f"{'device':36}  {'status':14}  {'since':20}  Thing"
    for binding in bindings:
        since = shown_time(binding.modified_at or binding.created_at)
        thing = f"{binding.thing_name or '':{things}}"
        failure = f"{binding.failure_code}: {binding.failure_reason}" if binding.failure_code else ""
        yield f"{binding.device_id}  {binding.provisioning_status:14}  {since}  {thing}  {failure}".rstrip()


def _resources(bindings: Sequence[AwsThingBinding]) -> Iterator[str]:
    for binding in bindings:
        yield from filter(None, (binding.thing_arn, binding.certificate_arn, binding.certificate_secret_arn))


def _told(transitions: Sequence[BindingTransition]) -> Iterator[str]:
    """The changes of status, below the run that made them."""
    for (actor, run_id), made in groupby(transitions, lambda each: (each.actor, each.run_id)):
        yield ""
        yield f"{actor}, run {run_id}" if run_id else actor
        for each in made:
            yield f"  {shown_time(each.occurred_at)}  {each.to_status:14}  {each.reason or ''}".rstrip()

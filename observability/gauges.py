"""What is looked up when metrics are asked for: how the outbox, its sink and the AWS keys stand."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from threading import Lock, Thread
from typing import Final

from sqlalchemy import Engine
from sqlmodel import Session

from db.outbox import count_parked, disabled_sink, oldest_unsent
from domain.outbox import OUTBOX_SHARDS
from observability.metrics import (
    CREDENTIALS_AGE,
    CREDENTIALS_READY,
    EVENTS_PARKED,
    OUTBOX_OLDEST,
    SINK_DISABLED,
)

logger = logging.getLogger("thingbridge.telemetry")

# For each of three; Prometheus gives up a scrape after ten.
_LOOK_SECONDS: Final = 2.0

_Values = Mapping[str, float]


def measure_outbox(engine: Engine, sink_kind: str, sink_fingerprint: str) -> None:
    """Have the outbox looked at whenever metrics are asked for.

    Args:
        engine: the bridge's database.
        sink_kind: the kind of sink its events go to, as the settings name it.
        sink_fingerprint: identifies the sink in the database.
    """

    def ages() -> _Values:
        with Session(engine) as session:
            since, now = oldest_unsent(session), datetime.now(UTC)
        return {
            str(shard): max((now - since[shard]).total_seconds(), 0.0) if shard in since else 0.0
            for shard in range(OUTBOX_SHARDS)
        }

    def parked() -> _Values:
        with Session(engine) as session:
            return {"": count_parked(session)}

    def disabled() -> _Values:
        with Session(engine) as session:
            return {sink_kind: float(disabled_sink(session, sink_fingerprint) is not None)}

    OUTBOX_OLDEST.watch(_in_time(OUTBOX_OLDEST.name, ages))
    EVENTS_PARKED.watch(_in_time(EVENTS_PARKED.name, parked))
    SINK_DISABLED.watch(_in_time(SINK_DISABLED.name, disabled))


def _in_time(name: str, read: Callable[[], _Values]) -> Callable[[], _Values]:
    """The same, or nothing where it takes too long: a database that hangs must not hide all other metrics."""
    guard, under_way = Lock(), Future[_Values]()
    under_way.set_result({})

    def look(found: Future[_Values]) -> None:
        try:
            found.set_result(read())
        except Exception as error:  # noqa: BLE001  # it is raised where the answer is awaited
            found.set_exception(error)

    def ask() -> _Values:
        nonlocal under_way
        with guard:
            # One at a time, whose answer serves all who ask meanwhile.
            if under_way.done():
                under_way = Future()
                Thread(target=look, args=(under_way,), name="measures", daemon=True).start()
            asked = under_way
        try:
            return asked.result(_LOOK_SECONDS)
        except TimeoutError:
            logger.warning("%s is not shown: the database does not answer in time", name)
            return {}

    return ask


def measure_credentials(age_seconds: Callable[[], float | None], ready: Callable[[], bool]) -> None:
    """Read the state of the process's AWS keys whenever metrics are scraped.

    Args:
        age_seconds: returns how long ago the keys were last read with success; None where never.
        ready: returns whether AWS can be called.
    """

    def age() -> _Values:
        seconds = age_seconds()
        return {} if seconds is None else {"": seconds}

    CREDENTIALS_AGE.watch(age)
    CREDENTIALS_READY.watch(lambda: {"": float(ready())})


def stop_measuring() -> None:
    """Have nothing looked up any more, since what it was looked up in is about to be closed."""
    for gauge in (OUTBOX_OLDEST, EVENTS_PARKED, SINK_DISABLED, CREDENTIALS_AGE, CREDENTIALS_READY):
        gauge.watch(dict)

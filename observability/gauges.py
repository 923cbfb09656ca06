"""Values that are read when metrics are scraped: the state of the outbox, of its sink and of the AWS keys."""

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

# Three gauges read the database one after the other, and Prometheus ends a scrape after ten seconds.
_READ_SECONDS: Final = 2.0

_Values = Mapping[str, float]


def measure_outbox(engine: Engine, sink_kind: str, sink_fingerprint: str) -> None:
    """Read the state of the outbox and its sink whenever metrics are scraped.

    Args:
        engine: the bridge's database.
        sink_kind: the kind of sink, as the settings name it.
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

    OUTBOX_OLDEST.read_with(_with_timeout(OUTBOX_OLDEST.name, ages))
    EVENTS_PARKED.read_with(_with_timeout(EVENTS_PARKED.name, parked))
    SINK_DISABLED.read_with(_with_timeout(SINK_DISABLED.name, disabled))


def _with_timeout(name: str, read: Callable[[], _Values]) -> Callable[[], _Values]:
    """Return a function that reads in a thread, and returns no values after a timeout.

    Without it a database that does not answer would hide all other metrics of the process.
    """
    lock, reading = Lock(), Future[_Values]()
    reading.set_result({})

    def run(result: Future[_Values]) -> None:
        try:
            result.set_result(read())
        except Exception as error:  # noqa: BLE001  # the caller that waits for the result raises it
            result.set_exception(error)

    def read_with_timeout() -> _Values:
        nonlocal reading
        with lock:
            # One read at a time: its result is shared by all scrapes that wait for it.
            if reading.done():
                reading = Future()
                Thread(target=run, args=(reading,), name="gauge", daemon=True).start()
            current = reading
        try:
            return current.result(_READ_SECONDS)
        except TimeoutError:
            logger.warning("%s is not shown: the database does not answer in time", name)
            return {}

    return read_with_timeout


def measure_credentials(age_seconds: Callable[[], float | None], ready: Callable[[], bool]) -> None:
    """Read the state of the process's AWS keys whenever metrics are scraped.

    Args:
        age_seconds: returns the time since the keys were last read successfully; None if they never were.
        ready: returns whether AWS can be called.
    """

    def age() -> _Values:
        seconds = age_seconds()
        return {} if seconds is None else {"": seconds}

    CREDENTIALS_AGE.read_with(age)
    CREDENTIALS_READY.read_with(lambda: {"": float(ready())})


def stop_measuring() -> None:
    """Stop reading values, because the database and clients they are read from are about to be closed."""
    for gauge in (OUTBOX_OLDEST, EVENTS_PARKED, SINK_DISABLED, CREDENTIALS_AGE, CREDENTIALS_READY):
        gauge.read_with(dict)

"""What is looked up when metrics are asked for: how the outbox, its sink and the AWS keys stand."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlmodel import Session

from activities.aws import Aws
from activities.event_sinks import EventSink
from db.outbox import count_parked, disabled_sink, oldest_unsent
from domain.outbox import OUTBOX_SHARDS
from instruments import CREDENTIALS_AGE, CREDENTIALS_READY, EVENTS_PARKED, OUTBOX_OLDEST, SINK_DISABLED


def measure_outbox(engine: Engine, sink: EventSink) -> None:
    """Have the outbox looked at whenever metrics are asked for.

    Args:
        engine: the bridge's database.
        sink: where its events go.
    """

    def ages() -> Mapping[str, float]:
        with Session(engine) as session:
            since, now = oldest_unsent(session), datetime.now(UTC)
        return {
            str(shard): max((now - since[shard]).total_seconds(), 0.0) if shard in since else 0.0
            for shard in range(OUTBOX_SHARDS)
        }

    def parked() -> Mapping[str, float]:
        with Session(engine) as session:
            return {"": count_parked(session)}

    def disabled() -> Mapping[str, float]:
        with Session(engine) as session:
            return {sink.kind: float(disabled_sink(session, sink.fingerprint) is not None)}

    OUTBOX_OLDEST.watch(ages)
    EVENTS_PARKED.watch(parked)
    SINK_DISABLED.watch(disabled)


def measure_credentials(aws: Aws) -> None:
    """Have the AWS keys of the process looked at whenever metrics are asked for."""

    def age() -> Mapping[str, float]:
        seconds = aws.credentials_age_seconds
        return {} if seconds is None else {"": seconds}

    CREDENTIALS_AGE.watch(age)
    CREDENTIALS_READY.watch(lambda: {"": float(aws.credentials_ready)})


def stop_measuring() -> None:
    """Have nothing looked up any more, since what it was looked up in is about to be closed."""
    for gauge in (OUTBOX_OLDEST, EVENTS_PARKED, SINK_DISABLED, CREDENTIALS_AGE, CREDENTIALS_READY):
        gauge.watch(dict)

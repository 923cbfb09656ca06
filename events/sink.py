"""Where events go, and what a sink may say of an event it does not take."""

import json
import logging
from datetime import timedelta
from hashlib import sha256
from typing import Final, Protocol

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

logger = logging.getLogger("thingbridge.events")

# Long enough to be worth asking for, short enough that a sink's slip of the pen costs no day.
_LONGEST_WAIT: Final = timedelta(minutes=10)


class EventRejectedError(Exception):
    """The sink will not take this event as it stands, and would take others."""


class SinkGoneError(Exception):
    """The sink says that nothing is ever to be sent to it again."""


class SinkUnavailableError(Exception):
    """The sink took nothing this time, for a reason that is none of the event's.

    Args:
        why: what an operator is to see.
        wait: how long the sink asks to be left alone; more than ten minutes are not granted.
    """

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = None if wait is None else max(timedelta(seconds=1), min(wait, _LONGEST_WAIT))


class EventSink(Protocol):
    """A way out. It is called by one thread for each shard, at once."""

    @property
    def kind(self) -> str:
        """What it is called in the settings."""

    @property
    def fingerprint(self) -> str:
        """The same for every sink of this kind at this address, and of none other."""

    def send(self, event: CloudEvent) -> None:
        """Hand an event over, within ten seconds.

        Returning says that it has arrived. Raising says that it may not have, and it is sent again: until it
        has arrived, nothing of its shard is sent after it. The error is shown to operators: no secret in it.

        Raises:
            EventRejectedError: of this event alone; only its device's later events wait for it, and not for
                ever.
            SinkGoneError: nothing more is sent until an operator says so.
            SinkUnavailableError: with how long to wait. Any other error says the same without.
        """


def fingerprint(kind: str, address: str) -> str:
    """What a sink is remembered by: its address may hold a token, which is not for the database."""
    return sha256(f"{kind} {address}".encode()).hexdigest()


def as_json(event: CloudEvent) -> str:
    """The event in CloudEvents' structured JSON."""
    return JSONFormat().write(event).decode()


class LogSink:
    """The process's own log: a line for each event, with all of it."""

    kind = "log"
    fingerprint = fingerprint("log", "")

    def send(self, event: CloudEvent) -> None:
        """Say the event."""
        logger.info(
            "%s %s",
            event.get_type(),
            event.get_subject() or event.get_id(),
            extra={"event": json.loads(as_json(event))},
        )

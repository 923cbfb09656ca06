"""The interface of an event sink, and the errors by which a sink reports that an event was not accepted.

Exception
├── EventRefusedError       this event is not accepted; others may be
├── SinkGoneError           no further event is to be sent to this sink
└── SinkUnavailableError    no event can be sent now; a later attempt may succeed
"""

from datetime import timedelta
from hashlib import sha256
from typing import Final, Protocol

from cloudevents.core.v1.event import CloudEvent

_SHORTEST_WAIT: Final = timedelta(seconds=1)
# Limits the harm of a sink that sends a wrong `Retry-After`.
_LONGEST_WAIT: Final = timedelta(minutes=10)


class EventRefusedError(Exception):
    """The sink refuses this event because of its content, and would accept others."""


class SinkGoneError(Exception):
    """The sink accepts no further events, for good."""


class SinkUnavailableError(Exception):
    """The sink did not accept the event, for a reason that is unrelated to the event.

    Args:
        reason: the text that an operator is shown.
        wait: how long to send no request; limited to between one second and ten minutes.
    """

    def __init__(self, reason: str, wait: timedelta | None = None) -> None:
        super().__init__(reason)
        self.wait = None if wait is None else max(_SHORTEST_WAIT, min(wait, _LONGEST_WAIT))


class EventSink(Protocol):
    """A destination of events. One thread for each shard calls it, concurrently."""

    @property
    def kind(self) -> str:
        """The name of this kind of sink in the settings."""

    @property
    def fingerprint(self) -> str:
        """A value that is equal for sinks of the same kind and address, and differs for all others."""

    def send(self, event: CloudEvent) -> None:
        """Send an event, within ten seconds.

        Return only if the event has arrived. After an error it may or may not have arrived and is sent again,
        and no later event of its shard is sent before it. The error is shown to operators, so it must not
        contain a secret.

        Raises:
            EventRefusedError: the event is refused; later events of its device wait for it, for a limited
                time.
            SinkGoneError: nothing is sent until an operator enables the sink.
            SinkUnavailableError: nothing is sent for a while; any other error has the same effect, without a
                given wait.
        """


def fingerprint(kind: str, address: str) -> str:
    """Return the value that identifies a sink in the database.

    It is a hash, because an address may contain a token that must not be stored.
    """
    return sha256(f"{kind} {address}".encode()).hexdigest()

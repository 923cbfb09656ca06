"""Events into Amazon EventBridge."""

from typing import Final

from cloudevents.core.v1.event import CloudEvent

from aws.clients import AwsClients
from aws.errors import InvalidParameterError
from events.sink import EventRejectedError, SinkUnavailableError, as_json, fingerprint

# An entry's own fault. Any other code of an entry says that nothing can be put on the bus now.
_REFUSALS: Final = frozenset({"InvalidArgument", "MalformedDetail", "RedactionFailure"})


class EventBusSink:
    """A bus, whose rules find the event by its type and in `detail` the whole of it.

    Args:
        aws: the AWS clients.
        bus: its name or ARN.
    """

    kind = "eventbridge"

    def __init__(self, aws: AwsClients, bus: str) -> None:
        self._aws = aws
        self._events = aws.events()
        self._bus = bus
        self.fingerprint = fingerprint(self.kind, bus)

    def send(self, event: CloudEvent) -> None:
        """Put the event on the bus."""
        try:
            answer = self._aws.call(
                self._events.put_events,
                Entries=[
                    {
                        "EventBusName": self._bus,
                        "Source": event.get_source(),
                        "DetailType": event.get_type(),
                        "Detail": as_json(event),
                        "Resources": [],
                    }
                ],
            )
        except InvalidParameterError as error:
            # All but the bus is the event's own.
            if "busname" in error.what.lower():
                raise
            raise EventRejectedError(error.what) from None
        # The call succeeds where its entries fail.
        if answer["FailedEntryCount"]:
            (entry,) = answer["Entries"]
            code = entry.get("ErrorCode", "Unknown")
            what = f"PutEvents: {code}: {entry.get('ErrorMessage', '')}".rstrip(": ")
            raise EventRejectedError(what) if code in _REFUSALS else SinkUnavailableError(what)

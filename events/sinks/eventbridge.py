"""Events to Amazon EventBridge."""

from typing import Final

from cloudevents.core.v1.event import CloudEvent

from aws.clients import AwsClients
from aws.errors import InvalidParameterError
from events.cloud_events import as_json
from events.sink import EventRefusedError, SinkUnavailableError, fingerprint

# The entry's content is at fault. With any other code of an entry, the bus accepts no entry at the moment.
_REFUSAL_CODES: Final = frozenset({"InvalidArgument", "MalformedDetail", "RedactionFailure"})


class EventBridgeSink:
    """Puts events on an event bus, with the type as `detail-type` and the whole CloudEvent as `detail`.

    Args:
        aws: the AWS clients.
        bus: name or ARN of the event bus.
    """

    kind = "eventbridge"

    def __init__(self, aws: AwsClients, bus: str) -> None:
        self._aws = aws
        self._events = aws.events()
        self._bus = bus
        self.fingerprint = fingerprint(self.kind, bus)

    def send(self, event: CloudEvent) -> None:
        """Put the event on the bus.

        Raises:
            EventRefusedError: EventBridge refuses the event because of its content.
            SinkUnavailableError: EventBridge could not process the entry.
            AwsError: the call failed.
        """
        try:
            response = self._aws.call(
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
            # AWS gives ValidationException for every invalid field, so only the message shows which field it
            # is. The bus name comes from the settings, all other fields from the event.
            if "busname" in error.message.lower():
                raise
            raise EventRefusedError(error.message) from None
        # PutEvents answers 200 also where entries failed.
        if response["FailedEntryCount"]:
            (entry,) = response["Entries"]
            code = entry.get("ErrorCode", "Unknown")
            reason = f"PutEvents: {code}: {entry.get('ErrorMessage', '')}".rstrip(": ")
            raise EventRefusedError(reason) if code in _REFUSAL_CODES else SinkUnavailableError(reason)

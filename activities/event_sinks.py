"""Where events go."""

import json
import logging
from typing import Protocol

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

logger = logging.getLogger("thingbridge.events")


class EventSink(Protocol):
    """A way out. It is called by one thread for each shard, at once."""

    def send(self, event: CloudEvent) -> None:
        """Hand an event over, within ten seconds.

        Returning says that it has arrived. Raising says that it may not have: it is sent again, and until it
        has arrived nothing of its shard is sent after it. The error is shown to operators: no secret in it.
        """


class LogSink:
    """The process's own log: a line for each event, with all of it."""

    def send(self, event: CloudEvent) -> None:
        """Say the event."""
        logger.info(
            "%s %s",
            event.get_type(),
            event.get_subject() or event.get_id(),
            extra={"event": json.loads(JSONFormat().write(event))},
        )

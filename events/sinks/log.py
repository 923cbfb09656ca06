"""Events as lines of the process's log."""

import json
import logging

from cloudevents.core.v1.event import CloudEvent

from events.cloud_events import as_json
from events.sink import fingerprint

logger = logging.getLogger("thingbridge.events")


class LogSink:
    """Writes one line with the whole event to the log of the process."""

    kind = "log"
    fingerprint = fingerprint("log", "")

    def send(self, event: CloudEvent) -> None:
        """Log the event."""
        logger.info(
            "%s %s",
            event.get_type(),
            event.get_subject() or event.get_id(),
            extra={"event": json.loads(as_json(event))},
        )

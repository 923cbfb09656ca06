"""The rows of the outbox as CloudEvents 1.0."""

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from db.models import OutboxRow
from domain.outgoing_event import SOURCE


def cloud_event(row: OutboxRow) -> CloudEvent:
    """Return the event of a row; it is identical each time the row is sent."""
    attributes = {
        "specversion": "1.0",
        "id": str(row.event_id),
        "source": SOURCE,
        "type": row.type,
        "time": row.occurred_at,
        "datacontenttype": "application/json",
    }
    if row.device_id is not None:
        attributes["subject"] = str(row.device_id)
    if row.sequence is not None:
        # CloudEvents' Sequence extension requires values that sort as text; 2^63 has 19 digits.
        attributes["sequence"] = f"{row.sequence:019}"
    return CloudEvent(attributes, row.data)


def as_json(event: CloudEvent) -> str:
    """Return the event in CloudEvents' structured JSON format."""
    return JSONFormat().write(event).decode()

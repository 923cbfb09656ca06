"""The outbox's rows in the form the world gets them in: CloudEvents 1.0."""

from cloudevents.core.v1.event import CloudEvent

from db.models import OutboxRow
from domain.outgoing_event import SOURCE


def cloud_event(row: OutboxRow) -> CloudEvent:
    """The event of a row; every time it is sent it is the same, to the letter."""
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
        # CloudEvents' Sequence extension wants what sorts as text too; 2^63 has 19 digits.
        attributes["sequence"] = f"{row.sequence:019}"
    return CloudEvent(attributes, row.data)

"""The outbox: sequence numbers and shards."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlmodel import Session

from db.outbox import enqueue
from domain.outbox import OUTBOX_SHARDS
from domain.outgoing_event import AwsThingDecommissioned


def event_of(device: UUID) -> AwsThingDecommissioned:
    return AwsThingDecommissioned(
        device_id=device, tenant_id=None, binding_id=uuid4(), thing_name=None, kept=[]
    )


def test_events_of_a_device_are_numbered_without_gaps(session: Session) -> None:
    """Each event of a device gets the next number. An event enqueued twice is one event."""
    device = uuid4()
    event = event_of(device)
    for number in (0, 0, 1, 0, 2, 2):
        enqueue(session, event, number)
    session.commit()
    enqueue(session, event, 1)
    session.commit()
    enqueue(session, event, 3)
    session.commit()
    numbers = session.execute(
        text("SELECT sequence FROM iotaws_outbox WHERE device_id = :device ORDER BY id"), {"device": device}
    ).scalars()
    assert list(numbers) == [1, 2, 3, 4]


@pytest.mark.parametrize("last_byte", range(0x55, 0x5A))
def test_shard_is_computed_from_the_device_id(session: Session, last_byte: int) -> None:
    """The last byte of the device id selects the shard, so that one publisher sends all of its events."""
    device = UUID(bytes=uuid4().bytes[:15] + bytes([last_byte]))
    enqueue(session, event_of(device))
    shard = session.execute(
        text("SELECT shard FROM iotaws_outbox WHERE device_id = :device"), {"device": device}
    ).scalar_one()
    assert shard == last_byte % OUTBOX_SHARDS

"""Events that arrive while the database is unavailable are handled when it is available again."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event
from temporalio.client import WorkflowFailureError

from aws.clients import AwsClients
from db.engine import open_engine
from domain.provisioning_status import ProvisioningStatus
from embedded.stack import Addresses
from settings import Settings
from tests.harness.bridge import Bridge, Device, worker_on


class Outage:
    """An engine that refuses every connection while the outage lasts."""

    def __init__(self, database_url: str) -> None:
        self.lasts = True
        self.engine = open_engine(database_url, pool_size=10)
        event.listen(self.engine, "checkout", self._refuse)

    def _refuse(self, *_: object) -> None:
        if self.lasts:
            raise psycopg.OperationalError("connection refused")


@pytest.fixture
def outage(stack: Addresses) -> Iterator[Outage]:
    started = Outage(stack.database_url)
    yield started
    started.engine.dispose()


async def test_events_during_an_outage_of_the_database_are_handled_after_it(
    bridge: Bridge, settings: Settings, aws: AwsClients, outage: Outage
) -> None:
    """The run survives the failed attempts to apply the event, and waits in Temporal."""
    queue, device = f"outage-{uuid4().hex}", Device("AWAY")
    async with worker_on(queue, settings, bridge, aws, outage.engine):
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_activity(device, "apply_event", attempts=2)
        await bridge.signal(device, device.event("Activated", minute=1), queue=queue)
        outage.lasts = False
        await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.require_binding(device).last_shadow_reported_at is not None


async def test_a_run_cancelled_during_an_outage_of_the_database_loses_no_event(
    bridge: Bridge, settings: Settings, aws: AwsClients, outage: Outage
) -> None:
    """The current event is stored before the run ends, and a retry continues from there."""
    queue, device = f"outage-{uuid4().hex}", Device("AWAY-CANCELLED")
    async with worker_on(queue, settings, bridge, aws, outage.engine):
        handle = await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_activity(device, "apply_event", attempts=2)
        await handle.cancel()
        await bridge.wait_for_reschedule(device, "apply_event")
        outage.lasts = False
        with pytest.raises(WorkflowFailureError):
            await bridge.wait_for_end(device)
        await bridge.signal(device, signal="retry", queue=queue)
        await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE

"""A database that is away for a while: what comes meanwhile is taken up once it is back."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, create_engine

from activities.aws import Aws
from db.engine import open_engine
from domain.provisioning_status import ProvisioningStatus
from embedded.stack import Addresses
from settings import Settings
from tests.bridge import Bridge, Device, worker_on


class Outage:
    """Refuses every connection of an engine while it lasts."""

    def __init__(self, database_url: str) -> None:
        self.lasts = True
        self._behind = open_engine(database_url, pool_size=10)
        self.engine: Engine = create_engine("postgresql+psycopg://", creator=self._connect, pool_size=10)

    def end(self) -> None:
        self.lasts = False

    def dispose(self) -> None:
        self.engine.dispose()
        self._behind.dispose()

    def _connect(self) -> psycopg.Connection:
        if self.lasts:
            raise psycopg.OperationalError("connection refused")
        connection = self._behind.raw_connection()
        connection.detach()
        assert isinstance(connection.driver_connection, psycopg.Connection)
        return connection.driver_connection


@pytest.fixture
def outage(stack: Addresses) -> Iterator[Outage]:
    begun = Outage(stack.database_url)
    yield begun
    begun.dispose()


async def test_events_of_a_database_that_is_away_are_taken_up_once_it_is_back(
    bridge: Bridge, settings: Settings, aws: Aws, outage: Outage
) -> None:
    """The run outlives the failed tries to fold the event, and waits at the server."""
    queue, device = f"outage-{uuid4().hex}", Device("AWAY")
    async with worker_on(queue, settings, bridge, aws, outage.engine):
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.at_work(device, "fold_event", attempts=2)
        await bridge.signal(device, device.event("Activated", minute=1), queue=queue)
        outage.end()
        await bridge.ended(device)
    assert bridge.bound(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.bound(device).last_shadow_reported_at is not None

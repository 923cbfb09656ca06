"""Warnings of expiring claim certificates: one per certificate and day, for a fleet of any size."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.conninfo import make_conninfo
from sqlalchemy import Engine, text, update
from sqlmodel import Session, col, select
from temporalio.client import Client, ScheduleActionStartWorkflow, ScheduleOverlapPolicy
from temporalio.testing import ActivityEnvironment

from activities.claim_certificates import ClaimCertificateActivities
from aws.clients import AwsClients
from db.bindings import Actor, open_binding
from db.device_states import lock_or_create_state
from db.engine import open_engine
from db.enrolment import expiring_query
from db.models import AwsThingBinding, OutboxRow
from domain.claim_check import CheckProgress, CheckTotals, ClaimCursor, ClaimPage
from domain.device_state import DeviceState
from domain.enrolment import whole_days
from domain.lifecycle_event import LifecycleEvent
from domain.names import CLAIM_CERTIFICATE_CHECK_SCHEDULE, thing_name
from domain.provisioning_status import ProvisioningStatus
from embedded.stack import Addresses
from settings import Settings
from tests.harness.bridge import Bridge, until, worker_on
from workflows.claim_certificate_check import ClaimCertificateCheck

NOW = datetime(2030, 5, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def create_expiring(
    engine: Engine, tenant_id: UUID, *expiries: datetime, decommissioned: bool = False
) -> list[UUID]:
    """Create enrolled devices of a tenant whose claim certificates expire at these times."""
    status = ProvisioningStatus.DECOMMISSIONED if decommissioned else ProvisioningStatus.ACTIVE
    with Session(engine) as session, session.begin():
        return [
            open_binding(
                session,
                device_id=uuid4(),
                tenant_id=tenant_id,
                thing_name=thing_name(tenant_id, f"CLAIM-{uuid4()}"),
                actor=Actor("a test"),
                status=status,
                claim_certificate_expires_at=expires_at,
            ).device_id
            for expires_at in expiries
        ]


def warnings_of(engine: Engine, tenant_id: UUID) -> Sequence[OutboxRow]:
    with Session(engine) as session:
        return session.exec(
            select(OutboxRow)
            .where(OutboxRow.tenant_id == tenant_id, OutboxRow.type == "ClaimCertificateExpiringEvent")
            .order_by(col(OutboxRow.id))
        ).all()


async def check(client: Client, queue: str, at: datetime) -> CheckTotals:
    return await client.execute_workflow(
        ClaimCertificateCheck.run, CheckProgress(at=at), id=f"check-{uuid4()}", task_queue=queue
    )


async def test_each_certificate_in_the_window_is_warned_of_once_a_day(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """Each certificate causes one warning a day, also over several pages and with equal or past times."""
    tenant, queue = uuid4(), "claims"
    # Seven at one moment: a page of three ends between them.
    same = create_expiring(engine, tenant, *(7 * [NOW + 3 * DAY + timedelta(hours=5)]))
    past = create_expiring(
        engine, tenant, NOW - 40 * DAY, NOW - timedelta(seconds=1), NOW + timedelta(hours=23)
    )
    edge = create_expiring(engine, tenant, NOW + 30 * DAY)
    create_expiring(engine, tenant, NOW + 30 * DAY + timedelta(seconds=1))
    create_expiring(engine, tenant, NOW + DAY, decommissioned=True)
    small = settings.fleet_provisioning.model_copy(update={"rotation_check_batch_size": 3})
    paged = settings.model_copy(update={"fleet_provisioning": small})
    async with worker_on(queue, paged, bridge, aws, engine):
        totals = await check(bridge.client, queue, NOW)
        assert totals.warned >= 11
        days = {row.device_id: row.data["daysLeft"] for row in warnings_of(engine, tenant)}
        assert days == dict.fromkeys(same, 3) | dict.fromkeys(past, 0) | dict.fromkeys(edge, 30)
        assert len(warnings_of(engine, tenant)) == 11
        assert [row.data["claimCertificateExpiresAt"] for row in warnings_of(engine, tenant)] == sorted(
            row.data["claimCertificateExpiresAt"] for row in warnings_of(engine, tenant)
        )
        # A second check on the same day publishes nothing.
        await check(bridge.client, queue, NOW)
        assert len(warnings_of(engine, tenant)) == 11
        await check(bridge.client, queue, NOW + timedelta(hours=12))
        assert len(warnings_of(engine, tenant)) == 23
    warnings = warnings_of(engine, tenant)
    assert {date.fromisoformat(row.data["day"]) for row in warnings[11:]} == {date(2030, 5, 11)}
    assert all(row.sequence for row in warnings)


async def test_check_with_a_long_history_continues_as_new(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """No device is left out between the end of one run and the start of the next."""
    tenant, queue, at = uuid4(), "claims-long", NOW - 1000 * DAY
    create_expiring(engine, tenant, *(at - number * DAY for number in range(40)))
    small = settings.fleet_provisioning.model_copy(update={"rotation_check_batch_size": 1})
    paged = settings.model_copy(update={"fleet_provisioning": small})
    async with worker_on(queue, paged, bridge, aws, engine):
        totals = await check(bridge.client, queue, at)
    assert totals.warned >= 40
    assert len(warnings_of(engine, tenant)) == 40


async def test_device_changed_after_its_page_was_read_gets_no_warning(
    engine: Engine, stack: Addresses
) -> None:
    """A device that was decommissioned or enrolled with a new certificate after the read gets no warning."""
    tenant, at = uuid4(), NOW - 2000 * DAY
    first, ended, renewed = create_expiring(engine, tenant, at - 3 * DAY, at - 2 * DAY, at - DAY)
    own = open_engine(make_conninfo(stack.database_url, application_name=f"claims-{tenant}"))

    async def send(_: LifecycleEvent) -> None:
        raise AssertionError

    checking = ClaimCertificateActivities(own, send, warning_window=timedelta(), page_size=3)
    page = ClaimPage(at=at, after=ClaimCursor(expires_at=at - 3 * DAY, binding_id=UUID(int=0)))

    async def waits() -> bool:
        with engine.connect() as connection:
            waiting = text(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = :name AND wait_event_type = 'Lock'"
            )
            return bool(connection.execute(waiting, {"name": f"claims-{tenant}"}).scalar())

    with Session(engine) as holding:
        lock_or_create_state(holding, DeviceState(device_id=first, tenant_id=tenant, serial_number=None))
        warned_all = asyncio.create_task(
            asyncio.to_thread(ActivityEnvironment().run, checking.warn_of_expiring_claims, page)
        )
        await until(waits, "the page is read, and its first event waits")
        with engine.begin() as connection:
            changed = update(AwsThingBinding)
            its_id = col(AwsThingBinding.device_id)
            connection.execute(changed.where(its_id == ended).values(deleted_at=NOW))
            connection.execute(changed.where(its_id == renewed).values(claim_certificate_expires_at=NOW))
        holding.rollback()
    assert (await warned_all).count == 3
    own.dispose()
    assert [row.device_id for row in warnings_of(engine, tenant)] == [first]


def test_window_is_read_from_an_index(engine: Engine) -> None:
    """The cost of a page depends on its size, not on the fleet: no other row is read or sorted."""
    create_expiring(engine, uuid4(), NOW)
    with Session(engine) as session:
        # Otherwise PostgreSQL reads a table this small as a whole, or by a bitmap and then sorts.
        for way in ("seqscan", "bitmapscan", "sort"):
            session.execute(text(f"SET LOCAL enable_{way} = off"))
        query = expiring_query(NOW, (NOW - DAY, uuid4()), 1)
        compiled = query.compile(engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(session.execute(text(f"EXPLAIN {compiled}")).scalars())
    assert "Index Scan using ix_iotaws_thing_bindings_claim_certificate_expires_at" in plan
    assert "Sort" not in plan


async def test_check_has_a_daily_schedule(client: Client) -> None:
    """It runs every day, never twice at once."""
    described = await client.get_schedule_handle(CLAIM_CERTIFICATE_CHECK_SCHEDULE).describe()
    action = described.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert action.workflow == "ClaimCertificateCheck"
    assert [each.every for each in described.schedule.spec.intervals] == [DAY]
    assert described.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP


@pytest.mark.parametrize(("left", "days"), [(DAY, 1), (2 * DAY - timedelta(seconds=1), 1), (-DAY, 0)])
def test_days_left_are_rounded_down(left: timedelta, days: int) -> None:
    """A day that has begun does not count, and a past time counts as zero days."""
    assert whole_days(left) == days

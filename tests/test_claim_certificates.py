"""Claim certificates that expire are told of once a day each, however many there are."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select
from temporalio.client import Client, ScheduleActionStartWorkflow, ScheduleOverlapPolicy

from activities.aws import Aws
from db.bindings import Actor, open_binding
from db.enrolment import page_of_expiring
from db.models import OutboxRow
from domain.claim_check import CheckProgress, CheckTotals
from domain.enrolment import whole_days
from domain.names import CLAIM_CERTIFICATE_CHECK_SCHEDULE, thing_name
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.bridge import Bridge, worker_on
from workflows.claim_certificate_check import ClaimCertificateCheck

NOW = datetime(2030, 5, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def expiring(engine: Engine, tenant_id: UUID, *expiries: datetime, gone: bool = False) -> list[UUID]:
    """Enrolled devices of a tenant, whose claim certificates expire then."""
    status = ProvisioningStatus.DECOMMISSIONED if gone else ProvisioningStatus.ACTIVE
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


def told(engine: Engine, tenant_id: UUID) -> Sequence[OutboxRow]:
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


async def test_every_certificate_of_the_window_is_told_of_once_a_day(
    bridge: Bridge, settings: Settings, aws: Aws, engine: Engine
) -> None:
    """Over several pages, equal times and all, with whole days left, also those past; the next day again."""
    tenant, queue = uuid4(), "claims"
    # Seven at one moment: a page ends amid them.
    same = expiring(engine, tenant, *(7 * [NOW + 3 * DAY + timedelta(hours=5)]))
    past = expiring(engine, tenant, NOW - 40 * DAY, NOW - timedelta(seconds=1), NOW + timedelta(hours=23))
    edge = expiring(engine, tenant, NOW + 30 * DAY)
    expiring(engine, tenant, NOW + 30 * DAY + timedelta(seconds=1))
    expiring(engine, tenant, NOW + DAY, gone=True)
    small = settings.fleet_provisioning.model_copy(update={"rotation_check_batch_size": 3})
    paged = settings.model_copy(update={"fleet_provisioning": small})
    async with worker_on(queue, paged, bridge, aws, engine):
        totals = await check(bridge.client, queue, NOW)
        assert totals.told >= 11
        days = {row.device_id: row.data["daysLeft"] for row in told(engine, tenant)}
        assert days == dict.fromkeys(same, 3) | dict.fromkeys(past, 0) | dict.fromkeys(edge, 30)
        assert len(told(engine, tenant)) == 11
        assert [row.data["claimCertificateExpiresAt"] for row in told(engine, tenant)] == sorted(
            row.data["claimCertificateExpiresAt"] for row in told(engine, tenant)
        )
        # The same once more says nothing new.
        await check(bridge.client, queue, NOW)
        assert len(told(engine, tenant)) == 11
        await check(bridge.client, queue, NOW + timedelta(hours=12))
        assert len(told(engine, tenant)) == 23
    assert {date.fromisoformat(row.data["day"]) for row in told(engine, tenant)[11:]} == {date(2030, 5, 11)}
    assert all(row.sequence for row in told(engine, tenant))


async def test_a_check_goes_on_in_a_new_run_where_its_history_is_long(
    bridge: Bridge, settings: Settings, aws: Aws, engine: Engine
) -> None:
    """A fleet of any size is one check: no device is left out where one run ends and the next begins."""
    tenant, queue, at = uuid4(), "claims-long", NOW - 1000 * DAY
    expiring(engine, tenant, *(at - number * DAY for number in range(40)))
    small = settings.fleet_provisioning.model_copy(update={"rotation_check_batch_size": 1})
    paged = settings.model_copy(update={"fleet_provisioning": small})
    async with worker_on(queue, paged, bridge, aws, engine):
        totals = await check(bridge.client, queue, at)
    assert totals.told >= 40
    assert len(told(engine, tenant)) == 40


def test_the_window_is_read_from_an_index(engine: Engine) -> None:
    """A page costs what it holds, not what the fleet is: nothing else is read, and nothing sorted."""
    expiring(engine, uuid4(), NOW)
    with Session(engine) as session:
        # Else a table this small is read whole, or by a bitmap and then sorted, as its statistics have it.
        for way in ("seqscan", "bitmapscan", "sort"):
            session.execute(text(f"SET LOCAL enable_{way} = off"))
        asked = page_of_expiring(NOW, (NOW - DAY, uuid4()), 1)
        compiled = asked.compile(engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(session.execute(text(f"EXPLAIN {compiled}")).scalars())
    assert "Index Scan using ix_iotaws_thing_bindings_claim_certificate_expires_at" in plan
    assert "Sort" not in plan


async def test_the_check_has_its_schedule(client: Client) -> None:
    """Daily, one at a time."""
    described = await client.get_schedule_handle(CLAIM_CERTIFICATE_CHECK_SCHEDULE).describe()
    action = described.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert action.workflow == "ClaimCertificateCheck"
    assert [each.every for each in described.schedule.spec.intervals] == [DAY]
    assert described.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP


@pytest.mark.parametrize(("left", "days"), [(DAY, 1), (2 * DAY - timedelta(seconds=1), 1), (-DAY, 0)])
def test_days_left_are_whole(left: timedelta, days: int) -> None:
    """A day that has begun is not one that is left."""
    assert whole_days(left) == days

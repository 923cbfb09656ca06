"""The schedules: created at the start of a worker, updated from the settings, and paused by operators."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio.client import Client, ScheduleDescription, ScheduleOverlapPolicy
from temporalio.service import RPCError

from domain.names import SHADOW_DELTA_POLL_SCHEDULE
from orchestration.client import connect
from orchestration.schedules import schedules, upsert_schedules
from orchestration.search_attributes import register_search_attributes
from settings import Settings
from tests.harness.bridge import until
from tests.harness.command_line import empty_namespace
from worker import run_worker

QUEUE = "scheduled"


@pytest_asyncio.fixture
async def new_namespace(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Return a client of a new namespace, which has no schedule."""
    monkeypatch.setenv("TEMPORAL_NAMESPACE", await empty_namespace(client))
    return await connect(None)


async def poll_schedule(client: Client) -> ScheduleDescription:
    return await client.get_schedule_handle(SHADOW_DELTA_POLL_SCHEDULE).describe()


def interval(described: ScheduleDescription) -> timedelta:
    (only,) = described.schedule.spec.intervals
    return only.every


async def run_worker_until_scheduled(settings: Settings, client: Client, seconds: int) -> None:
    """Start a worker, wait until the poll's schedule has its interval, and stop it."""
    shadow = settings.shadow.model_copy(update={"poll_interval_seconds": seconds})
    stop = asyncio.Event()
    running = asyncio.create_task(run_worker(settings.model_copy(update={"shadow": shadow}), client, stop))

    async def has_interval() -> bool:
        with suppress(RPCError):
            return running.done() or interval(await poll_schedule(client)) == timedelta(seconds=seconds)
        return False

    await until(has_interval, f"the poll is due every {seconds} s")
    stop.set()
    await running


async def test_missing_schedule_is_created(new_namespace: Client) -> None:
    """The poll is due every interval, never runs twice at once, and missed runs are not made up for."""
    await upsert_schedules(
        new_namespace, schedules(QUEUE, poll_interval_seconds=30, claim_check_interval_hours=24)
    )
    described = await poll_schedule(new_namespace)
    assert interval(described) == timedelta(seconds=30)
    policy, state = described.schedule.policy, described.schedule.state
    assert policy.overlap is ScheduleOverlapPolicy.SKIP
    assert policy.catchup_window == timedelta(seconds=30)
    assert not policy.pause_on_failure
    assert not state.paused
    action = described.raw_description.schedule.action.start_workflow
    assert (action.workflow_type.name, action.task_queue.name) == ("ShadowDeltaPoll", QUEUE)


async def test_catch_up_window_is_at_least_ten_seconds(new_namespace: Client) -> None:
    """Temporal allows none below 10 s, and the shortest interval is 5 s."""
    await upsert_schedules(
        new_namespace, schedules(QUEUE, poll_interval_seconds=5, claim_check_interval_hours=24)
    )
    described = await poll_schedule(new_namespace)
    assert interval(described) == timedelta(seconds=5)
    assert described.schedule.policy.catchup_window == timedelta(seconds=10)


@pytest.mark.usefixtures("engine")
async def test_paused_schedule_stays_paused_when_the_worker_restarts(
    new_namespace: Client, settings: Settings
) -> None:
    """Pause and note are kept, also if the restarted worker sets another interval."""
    await register_search_attributes(new_namespace)
    await run_worker_until_scheduled(settings, new_namespace, 600)
    handle = new_namespace.get_schedule_handle(SHADOW_DELTA_POLL_SCHEDULE)
    await handle.pause(note="the quota is being raised")
    for seconds in (600, 500):
        await run_worker_until_scheduled(settings, new_namespace, seconds)
        state = (await handle.describe()).schedule.state
        assert (state.paused, state.note) == (True, "the quota is being raised")


async def test_unchanged_schedule_is_not_updated(new_namespace: Client) -> None:
    """Only another interval or task queue updates it."""
    await upsert_schedules(
        new_namespace, schedules(QUEUE, poll_interval_seconds=30, claim_check_interval_hours=24)
    )
    await upsert_schedules(
        new_namespace, schedules(QUEUE, poll_interval_seconds=30, claim_check_interval_hours=24)
    )
    assert (await poll_schedule(new_namespace)).info.last_updated_at is None
    await upsert_schedules(
        new_namespace, schedules("another", poll_interval_seconds=30, claim_check_interval_hours=24)
    )
    assert (await poll_schedule(new_namespace)).info.last_updated_at is not None


async def test_workers_that_start_together_create_each_schedule_once(new_namespace: Client) -> None:
    """Each later worker finds the schedule of the first."""
    wanted = schedules(QUEUE, poll_interval_seconds=30, claim_check_interval_hours=24)
    await asyncio.gather(*(upsert_schedules(new_namespace, wanted) for _ in range(4)))

    async def listed() -> bool:
        found = [schedule.id async for schedule in await new_namespace.list_schedules()]
        return sorted(found) == sorted(wanted)

    await until(listed, "each schedule is listed, once")

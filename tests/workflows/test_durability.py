"""What is at work outlives the process that is at it."""

import asyncio
import signal
from collections.abc import Sequence
from uuid import UUID

from temporalio.client import WorkflowHandle

from domain.delta_poll import PageProgress, PollTotals
from embedded.stack import Addresses
from tests.harness.active_fleet import Member, fleet_of_its_own
from tests.harness.bridge import Bridge, until
from tests.harness.command_line import running

PAGES, PAGE_SIZE = 5, 100


async def test_a_worker_killed_in_the_middle_of_a_poll_changes_nothing_of_what_it_finds(
    stack: Addresses, bridge: Bridge
) -> None:
    """With 500 bindings and 5 deltas there are 5 events and 5 jobs, and pages go on where they were."""
    with fleet_of_its_own(bridge, stack.database_url, "killed-in-a-poll") as fleet:
        members = fleet.bind(PAGES * PAGE_SIZE)
        # Before the half, after it, just before the crash and behind it: wherever a count could be lost.
        wanting = [members[number] for number in (0, 149, 279, 399, 499)]
        for member in wanting:
            bridge.iot.create_thing(thingName=member.thing_name)
            fleet.desire(member, {"interval": 10})
        bridge.emulator.forget_calls()
        # From here on a page takes its time, far more than it needs until it is killed.
        for number, member in enumerate(members):
            if number % PAGE_SIZE >= 80:
                bridge.emulator.add_fault(
                    "iot-data:GetThingShadow", resource=member.thing_name, delay_seconds=2
                )
        environment = {
            "DATABASE_URL": fleet.database_url,
            "IOT_AWS_WORKER__TASK_QUEUE": fleet.queue,
            "IOT_AWS_SHADOW__POLL_BATCH_SIZE": str(PAGE_SIZE),
        }
        poll = await fleet.start_poll()
        async with running("worker", **environment) as process:
            half = [members[page * PAGE_SIZE + PAGE_SIZE // 2 - 1] for page in range(PAGES)]
            await until(lambda: all_behind(poll, half), "every page is half read, as Temporal knows")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        bridge.emulator.clear_faults()
        async with running("worker", **environment):
            assert await asyncio.wait_for(poll.result(), 60) == PollTotals(
                visited=len(members), changed=5, commanded=5
            )
            # Half of each page may have been read twice, were it the last that Temporal had heard.
            assert fleet.shadow_reads() <= len(members) * 1.5
            assert await fleet.poll() == PollTotals(visited=len(members))
            jobs = [told["jobId"] for member in wanting for told in fleet.published(member)]
            assert len(jobs) == 5
            await until(lambda: all_made(bridge, jobs), "each delta has its job")
        assert {row.device_id for row in fleet.deltas()} == {member.device_id for member in wanting}


async def all_behind(poll: WorkflowHandle[PollTotals, PollTotals], members: Sequence[Member]) -> bool:
    """Whether Temporal knows of every page that it has been read to its member, or further."""
    described = await poll.describe()
    reached = sorted(
        after
        for pending in described.raw_description.pending_activities
        for payload in pending.heartbeat_details.payloads
        if (after := PageProgress.model_validate_json(payload.data).after)
    )
    ends = [member.binding_id for member in members]
    return len(reached) == len(ends) and all(map(UUID.__ge__, reached, ends))


async def all_made(bridge: Bridge, job_ids: Sequence[str]) -> bool:
    """Whether AWS holds these jobs."""
    held = {job["jobId"] for job in bridge.iot.list_jobs(maxResults=250)["jobs"]}
    return held >= set(job_ids)

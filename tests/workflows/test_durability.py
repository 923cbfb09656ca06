"""Work in progress survives the end of its worker process."""

import asyncio
import signal
from collections.abc import Sequence
from uuid import UUID

from temporalio.client import WorkflowHandle

from domain.delta_poll import PageProgress, PollTotals
from embedded.stack import Addresses
from tests.harness.active_fleet import Member, fleet_in_new_database
from tests.harness.bridge import Bridge, until
from tests.harness.command_line import running

PAGES, PAGE_SIZE = 5, 100


async def test_a_poll_continues_after_its_worker_is_killed(stack: Addresses, bridge: Bridge) -> None:
    """500 bindings with 5 deltas lead to 5 events and 5 jobs, and each page continues where it ended."""
    with fleet_in_new_database(bridge, stack.database_url, "killed-in-a-poll") as fleet:
        members = fleet.bind(PAGES * PAGE_SIZE)
        # A count can be lost before and after the middle of a page, and just before and after the crash.
        changed = [members[number] for number in (0, 149, 279, 399, 499)]
        for member in changed:
            bridge.iot.create_thing(thingName=member.thing_name)
            fleet.desire(member, {"interval": 10})
        bridge.emulator.forget_calls()
        # The last part of each page is slow, so that the worker is killed before the page ends.
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
            await until(lambda: all_reached(poll, half), "the heartbeats of every page are past its middle")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        bridge.emulator.clear_faults()
        async with running("worker", **environment):
            assert await asyncio.wait_for(poll.result(), 60) == PollTotals(
                visited=len(members), changed=5, commanded=5
            )
            # Half of each page can be read twice, because the last heartbeat can be from its middle.
            assert fleet.shadow_reads() <= len(members) * 1.5
            assert await fleet.poll() == PollTotals(visited=len(members))
            jobs = [event["jobId"] for member in changed for event in fleet.published(member)]
            assert len(jobs) == 5
            await until(lambda: all_created(bridge, jobs), "each delta has its job")
        assert {row.device_id for row in fleet.deltas()} == {member.device_id for member in changed}


async def all_reached(poll: WorkflowHandle[PollTotals, PollTotals], members: Sequence[Member]) -> bool:
    """Return True if the heartbeats show that each page is read to its member, or further."""
    described = await poll.describe()
    reached = sorted(
        after
        for pending in described.raw_description.pending_activities
        for payload in pending.heartbeat_details.payloads
        if (after := PageProgress.model_validate_json(payload.data).after)
    )
    ends = [member.binding_id for member in members]
    return len(reached) == len(ends) and all(map(UUID.__ge__, reached, ends))


async def all_created(bridge: Bridge, job_ids: Sequence[str]) -> bool:
    """Return True if all these jobs exist in AWS."""
    existing = {job["jobId"] for job in bridge.iot.list_jobs(maxResults=250)["jobs"]}
    return existing >= set(job_ids)

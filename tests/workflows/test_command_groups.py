"""Commands to static thing groups and to queries, and the sweep of unused dynamic groups."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from domain.command import dynamic_group_name
from tests.harness.commands import PREFIX, QUEUE, SHORT_DEADLINE, Commands, command_for, command_for_query

# --- Commands to a group


async def test_a_groups_command_ends_with_the_counts_of_its_job(commands: Commands) -> None:
    """A command to a group completes when each device has succeeded, with the counts of the job."""
    first, second = commands.device("GRP-1"), commands.device("GRP-2")
    commands.emulator.forget_calls()
    handle = await commands.send(command_for(commands.group("both", first, second)))
    await commands.wait_for_job(handle)
    for device in (first, second):
        commands.execute_job(device)
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["outcome"], ended["counts"]["SUCCEEDED"]) == ("COMPLETED", "succeeded", 2)
    event_type, data = commands.event(handle.id)
    assert (event_type, data["deviceId"], data["thingName"]) == ("DeviceCommandCompletedEvent", None, None)
    assert data["target"] == {"kind": "group", "value": "both"}
    assert data["counts"] == ended["counts"]
    assert "iot:DescribeJobExecution" not in commands.emulator.calls()


async def test_one_failed_execution_fails_a_groups_command(commands: Commands) -> None:
    """A job is COMPLETED in AWS also with failed executions; the command completes only without them."""
    first, second = commands.device("GRP-3"), commands.device("GRP-4")
    handle = await commands.send(command_for(commands.group("one-fails", first, second)))
    await commands.wait_for_job(handle)
    commands.execute_job(first)
    commands.execute_job(second, "FAILED")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["reason"]) == ("FAILED", "of 2 executions, 1 FAILED")
    job = commands.job(handle)
    assert job is not None
    assert job["status"] == "COMPLETED"
    assert commands.event(handle.id)[0] == "DeviceCommandFailedEvent"


async def test_the_group_of_a_new_query_is_active_before_the_job_is_created(commands: Commands) -> None:
    """AWS accepts no job for a group that it is still building; the next command uses the same group."""
    device = commands.device("DYN-1")
    query = f"thingName:{device.thing_name}"
    commands.emulator.forget_calls()
    for command in (command_for_query(query), command_for_query(query)):
        handle = await commands.send(command)
        await commands.wait_for_job(handle)
        job = commands.job(handle)
        assert job is not None
        assert job["targetSelection"] == "CONTINUOUS"
        assert job["targets"][0].endswith(f":thinggroup/{dynamic_group_name(PREFIX, query)}")
        await handle.signal("cancel")
        assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.emulator.calls()["iot:CreateDynamicThingGroup"] == 1


async def test_the_deadline_cancels_jobs_and_closes_continuous_ones(commands: Commands) -> None:
    """At the deadline a device's command times out, and a query's command completes."""
    done, busy, offline, late = [commands.device(f"END-{number}") for number in range(4)]
    query = " OR ".join(f"thingName:{device.thing_name}" for device in (done, busy, offline))
    window = await commands.send(command_for_query(query), SHORT_DEADLINE)
    await commands.wait_for_job(window)
    commands.execute_job(done)
    commands.start_execution(busy)
    timed_out = await commands.send(command_for(offline), SHORT_DEADLINE)
    in_time = await commands.send(command_for(late), SHORT_DEADLINE)
    await commands.wait_until_described(in_time, 1)
    commands.execute_job(late)
    await commands.wait_until_described(timed_out, 1)

    ended = await commands.wait_for_end(window)
    assert (ended["status"], ended["outcome"]) == ("COMPLETED", "windowClosed")
    assert {each: count for each, count in ended["counts"].items() if count} == {
        "SUCCEEDED": 1,
        "IN_PROGRESS": 1,
        "QUEUED": 1,
    }
    event_type, data = commands.event(window.id)
    assert (event_type, data["outcome"], data["counts"]) == (
        "DeviceCommandCompletedEvent",
        "windowClosed",
        ended["counts"],
    )
    # A device that has started the job may finish it; the other executions are cancelled.
    assert [commands.execution(window, each) for each in (busy, offline)] == ["IN_PROGRESS", "CANCELED"]

    assert (await commands.wait_for_end(in_time))["status"] == "SUCCEEDED"

    ended = await commands.wait_for_end(timed_out)
    assert (ended["status"], ended["outcome"]) == ("TIMED_OUT", None)
    event_type, data = commands.event(timed_out.id)
    assert (event_type, data["status"]) == ("DeviceCommandFailedEvent", "TIMED_OUT")
    assert commands.execution(timed_out, offline) == "CANCELED"
    job = commands.job(timed_out)
    assert job is not None
    assert job["status"] == "CANCELED"


# --- The sweep of unused groups


async def test_the_sweep_deletes_only_unused_groups_of_the_bridge(commands: Commands) -> None:
    """A group that cannot be deleted delays no other; a group with another query is left alone."""
    old = datetime.now(UTC) - timedelta(hours=73)
    ages = {"thingName:old": old, "thingName:undeletable": old, "thingName:new": datetime.now(UTC)}
    names = {query: commands.create_recorded_group(query, used) for query, used in ages.items()}
    foreign = commands.create_recorded_group("thingName:taken", old, query_in_aws="thingName:foreign")
    gone = commands.create_recorded_group("thingName:gone", old, query_in_aws=None)
    commands.emulator.add_fault(
        "iot:DeleteDynamicThingGroup",
        resource=names["thingName:undeletable"],
        code="AccessDeniedException",
        status=403,
    )
    deleted = await commands.bridge.client.execute_workflow(
        "CommandGroupSweep", id=f"sweep-{uuid4()}", task_queue=QUEUE
    )
    assert deleted == 3
    assert commands.groups_in_aws() & {*names.values(), foreign, gone} == {
        names["thingName:undeletable"],
        names["thingName:new"],
        foreign,
    }
    assert commands.recorded_groups() & {*names.values(), foreign, gone} == {
        names["thingName:undeletable"],
        names["thingName:new"],
    }


async def test_the_sweep_keeps_an_old_group_that_a_command_uses(commands: Commands) -> None:
    """A command records the use of its group when it begins and when it ends."""
    query = "thingName:used-again"
    name = commands.create_recorded_group(query, datetime.now(UTC) - timedelta(days=400))
    handle = await commands.send(command_for_query(query))
    await commands.wait_for_job(handle)
    began = commands.last_used(name)
    assert datetime.now(UTC) - began < timedelta(hours=1)
    await commands.bridge.client.execute_workflow(
        "CommandGroupSweep", id=f"sweep-{uuid4()}", task_queue=QUEUE
    )
    assert name in commands.groups_in_aws()
    await handle.signal("cancel")
    await commands.wait_for_end(handle)
    assert commands.last_used(name) > began

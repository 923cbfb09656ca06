"""Commands to groups: static ones, and those made for a query and deleted when unused."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from domain.command import dynamic_group_name
from tests.harness.commands import PREFIX, QUEUE, SHORT, Commands, to, to_all

# --- To a group


async def test_a_group_is_looked_up_as_a_job_and_not_as_a_thing(commands: Commands) -> None:
    """A static group's command completes when each of its devices has succeeded, with the counts."""
    first, second = commands.device("GRP-1"), commands.device("GRP-2")
    commands.emulator.forget_calls()
    handle = await commands.send(to(commands.group("both", first, second)))
    await commands.has_job(handle)
    for device in (first, second):
        commands.carries_out(device)
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["outcome"], ended["counts"]["SUCCEEDED"]) == ("COMPLETED", "succeeded", 2)
    kind, data = commands.event(handle.id)
    assert (kind, data["deviceId"], data["thingName"]) == ("DeviceCommandCompletedEvent", None, None)
    assert data["target"] == {"kind": "group", "value": "both"}
    assert data["counts"] == ended["counts"]
    assert "iot:DescribeJobExecution" not in commands.emulator.calls()


async def test_one_failed_execution_fails_a_groups_command(commands: Commands) -> None:
    """A job is COMPLETED in AWS whatever its executions came to; the command is so only if all succeeded."""
    first, second = commands.device("GRP-3"), commands.device("GRP-4")
    handle = await commands.send(to(commands.group("one-fails", first, second)))
    await commands.has_job(handle)
    commands.carries_out(first)
    commands.carries_out(second, "FAILED")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["reason"]) == ("FAILED", "of 2 executions, 1 FAILED")
    job = commands.job(handle)
    assert job is not None
    assert job["status"] == "COMPLETED"
    assert commands.event(handle.id)[0] == "DeviceCommandFailedEvent"


async def test_a_new_query_has_its_group_made_active_before_its_job(commands: Commands) -> None:
    """AWS takes no job for a group it is still building; the next command to the query uses that group."""
    device = commands.device("DYN-1")
    query = f"thingName:{device.thing_name}"
    commands.emulator.forget_calls()
    for command in (to_all(query), to_all(query)):
        handle = await commands.send(command)
        await commands.has_job(handle)
        job = commands.job(handle)
        assert job is not None
        assert job["targetSelection"] == "CONTINUOUS"
        assert job["targets"][0].endswith(f":thinggroup/{dynamic_group_name(PREFIX, query)}")
        await handle.signal("cancel")
        assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.emulator.calls()["iot:CreateDynamicThingGroup"] == 1


async def test_at_the_deadline_jobs_are_cancelled_and_windows_close(commands: Commands) -> None:
    """Each job is looked at once more; then a device's is timed out, a query's, with no end, completes."""
    done, busy, off, late = [commands.device(f"END-{number}") for number in range(4)]
    query = " OR ".join(f"thingName:{device.thing_name}" for device in (done, busy, off))
    window = await commands.send(to_all(query), SHORT)
    await commands.has_job(window)
    commands.carries_out(done)
    commands.starts(busy)
    timed_out = await commands.send(to(off), SHORT)
    in_time = await commands.send(to(late), SHORT)
    await commands.looked_at(in_time, 1)
    commands.carries_out(late)
    await commands.looked_at(timed_out, 1)

    ended = await commands.wait_for_end(window)
    assert (ended["status"], ended["outcome"]) == ("COMPLETED", "windowClosed")
    assert {each: count for each, count in ended["counts"].items() if count} == {
        "SUCCEEDED": 1,
        "IN_PROGRESS": 1,
        "QUEUED": 1,
    }
    kind, data = commands.event(window.id)
    assert (kind, data["outcome"], data["counts"]) == (
        "DeviceCommandCompletedEvent",
        "windowClosed",
        ended["counts"],
    )
    # Who is at work may finish; who has not begun need not.
    assert [commands.execution(window, each) for each in (busy, off)] == ["IN_PROGRESS", "CANCELED"]

    assert (await commands.wait_for_end(in_time))["status"] == "SUCCEEDED"

    ended = await commands.wait_for_end(timed_out)
    assert (ended["status"], ended["outcome"]) == ("TIMED_OUT", None)
    kind, data = commands.event(timed_out.id)
    assert (kind, data["status"]) == ("DeviceCommandFailedEvent", "TIMED_OUT")
    assert commands.execution(timed_out, off) == "CANCELED"
    job = commands.job(timed_out)
    assert job is not None
    assert job["status"] == "CANCELED"


# --- Groups that no command uses


async def test_the_sweep_deletes_unused_groups_and_spares_the_others(commands: Commands) -> None:
    """What no command used for the time limit goes; one failing group holds up none; a stranger's stays."""
    old = datetime.now(UTC) - timedelta(hours=73)
    ages = {"thingName:old": old, "thingName:stuck": old, "thingName:new": datetime.now(UTC)}
    names = {query: commands.known_group(query, used) for query, used in ages.items()}
    foreign = commands.known_group("thingName:taken", old, query_in_aws="thingName:foreign")
    gone = commands.known_group("thingName:gone", old, query_in_aws=None)
    commands.emulator.add_fault(
        "iot:DeleteDynamicThingGroup",
        resource=names["thingName:stuck"],
        code="AccessDeniedException",
        status=403,
    )
    deleted = await commands.bridge.client.execute_workflow(
        "CommandGroupSweep", id=f"sweep-{uuid4()}", task_queue=QUEUE
    )
    assert deleted == 3
    assert commands.groups_in_aws() & {*names.values(), foreign, gone} == {
        names["thingName:stuck"],
        names["thingName:new"],
        foreign,
    }
    assert commands.known_groups() & {*names.values(), foreign, gone} == {
        names["thingName:stuck"],
        names["thingName:new"],
    }


async def test_a_group_in_use_is_spared_however_old_it_is(commands: Commands) -> None:
    """A command marks its group when it begins, and when it ends."""
    query = "thingName:used-again"
    name = commands.known_group(query, datetime.now(UTC) - timedelta(days=400))
    handle = await commands.send(to_all(query))
    await commands.has_job(handle)
    began = commands.last_used(name)
    assert datetime.now(UTC) - began < timedelta(hours=1)
    await commands.bridge.client.execute_workflow(
        "CommandGroupSweep", id=f"sweep-{uuid4()}", task_queue=QUEUE
    )
    assert name in commands.groups_in_aws()
    await handle.signal("cancel")
    await commands.wait_for_end(handle)
    assert commands.last_used(name) > began

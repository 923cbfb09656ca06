"""`thingbridge command` and `thingbridge cancel`."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.harness.bridge import until
from tests.harness.command_line import Result, call, call_in_thread
from tests.harness.commands import PREFIX, QUEUE, Commands

QUEUES = {"IOT_AWS_WORKER__TASK_QUEUE": QUEUE, "IOT_AWS_JOBS__JOB_ID_PREFIX": PREFIX}
UNREACHABLE = {"TEMPORAL_ADDRESS": "127.0.0.1:1"}


@pytest.mark.parametrize(("outcome", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1)])
async def test_wait_prints_the_end_of_the_command(
    commands: Commands, tmp_path: Path, outcome: str, exit_code: int
) -> None:
    """The outcome and its details are printed, and the exit code is 0 only if the device succeeded."""
    device, correlation_id = commands.device(f"CLI-{outcome}"), uuid4()
    parameters = {"mode": "é[bold]", "levels": [1, {"a": 1}]}
    given = tmp_path / "parameters.json"
    given.write_text(json.dumps(parameters))
    arguments = [
        *("command", "reboot", "--device", str(device.device_id), "--correlation-id", str(correlation_id)),
        *("--parameters", f"@{given}", "--wait"),
    ]
    waiting = asyncio.create_task(call_in_thread(*arguments, **QUEUES))
    documents = []

    async def job_ended() -> bool:
        document = commands.execute_job(device, outcome, note="[red] as [bold] can be")
        documents.extend([document] if document else [])
        return bool(documents)

    await until(job_ended, "the device has ended its job")
    result = await waiting
    assert documents[0]["parameters"] == parameters
    assert result.exit_code == exit_code
    job_id = f"{PREFIX}-{correlation_id}"
    assert result.stdout.splitlines()[0] == f"job {job_id}"
    assert f"--workflow-id {job_id}" in result.stdout
    assert outcome in result.stdout
    assert "  note: [red] as [bold] can be" in result.stdout.splitlines()
    again = await call_in_thread(*arguments, **QUEUES)
    assert (again.exit_code, again.stdout) == (result.exit_code, result.stdout)
    assert commands.execute_job(device) is None


async def test_cancel_accepts_the_job_id_that_command_prints(commands: Commands) -> None:
    """The first `cancel` cancels the command, the second reports that it has ended."""
    device = commands.device("CLI-CANCEL")
    result = await call_in_thread("command", "reboot", "--device", str(device.device_id), **QUEUES)
    assert result.exit_code == 0
    job_id = result.stdout.splitlines()[0].removeprefix("job ")
    handle = commands.bridge.client.get_workflow_handle(job_id)
    await commands.wait_for_job(handle)
    assert await call_in_thread("cancel", job_id) == Result(
        0, f"{job_id} is being cancelled, in AWS too\n", ""
    )
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert await call_in_thread("cancel", job_id) == Result(0, f"{job_id} has ended before\n", "")


async def test_used_correlation_id_is_refused_for_another_command(commands: Commands) -> None:
    """The other command would never run, and the printed outcome would not be its own."""
    device, correlation_id = commands.device("CLI-TAKEN"), str(uuid4())
    target = ("--device", str(device.device_id), "--correlation-id", correlation_id)
    assert (await call_in_thread("command", "reboot", *target, **QUEUES)).exit_code == 0
    job_id = f"{PREFIX}-{correlation_id}"
    handle = commands.bridge.client.get_workflow_handle(job_id)
    await commands.wait_for_job(handle)
    commands.execute_job(device)
    await commands.wait_for_end(handle)
    result = await call_in_thread("command", "wipe", *target, "--wait", **QUEUES)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {job_id} is another command" in result.stderr


async def test_cancel_refuses_an_id_that_is_not_a_command(commands: Commands) -> None:
    """An unknown id, and the id of another workflow, are errors."""
    device = commands.device("CLI-OTHER")
    await commands.bridge.send_and_wait(device, device.event("Activated"))
    for workflow_id in (f"{PREFIX}-{uuid4()}", device.workflow_id):
        result = await call_in_thread("cancel", workflow_id)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: there is no command {workflow_id} in this namespace")


async def test_refused_command_prints_the_reason(commands: Commands) -> None:
    """A reason that only AWS or the database can give is printed at the end of the command."""
    result = await call_in_thread("command", "reboot", "--group", "no-such-group", "--wait", **QUEUES)
    assert result.exit_code == 1
    assert "NoSuchTarget" in result.stdout
    assert "there is no thing group no-such-group" in result.stdout
    assert commands.job_named(result.stdout.splitlines()[0].removeprefix("job ")) is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["reboot"], "name one target"),
        (["reboot", "--group", "a", "--query", "b"], "name one target"),
        (["reboot", "--device", "no-uuid"], "--device"),
        (["reboot", "--device", "no-uuid", "--correlation-id", "7"], "Invalid value"),
        (["reboot", "--group", "a b"], "target: must be a thing group's name"),
        (["reboot", "--query", " "], "target: must be a fleet-indexing query"),
        ([" ", "--group", "a"], "operation: must be printable text"),
        (["reboot", "--group", "a", "--parameters", "{"], "is not JSON"),
        (["reboot", "--group", "a", "--parameters", "[1]"], "must be a JSON object"),
        (["reboot", "--group", "a", "--parameters", '{"a": NaN}'], "is not JSON"),
        (["reboot", "--group", "a", "--parameters", "@/no/such/file"], "cannot read /no/such/file"),
        (["reboot", "--group", "a", "--parameters", json.dumps({"a": "x" * 33_000})], "AWS allows 32768"),
    ],
)
def test_wrong_argument_is_refused_before_anything_is_sent(arguments: list[str], complaint: str) -> None:
    """The error is printed without a call to Temporal, and the exit code is 2."""
    result = call("command", *arguments, **UNREACHABLE)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in " ".join(result.stderr.split())

"""`thingbridge command` and `thingbridge cancel` as an operator meets them."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.harness.bridge import until
from tests.harness.command_line import Said, call, call_beside
from tests.harness.commands import PREFIX, QUEUE, Commands

QUEUES = {"IOT_AWS_WORKER__TASK_QUEUE": QUEUE, "IOT_AWS_JOBS__JOB_ID_PREFIX": PREFIX}
NOWHERE = {"TEMPORAL_ADDRESS": "127.0.0.1:1"}


@pytest.mark.parametrize(("outcome", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1)])
async def test_a_command_waited_for_ends_with_the_devices_word(
    commands: Commands, tmp_path: Path, outcome: str, exit_code: int
) -> None:
    """The end and its details are printed, and the exit code is 0 only where the device succeeded."""
    device, correlation_id = commands.device(f"CLI-{outcome}"), uuid4()
    parameters = {"mode": "é[bold]", "levels": [1, {"a": None}]}
    given = tmp_path / "parameters.json"
    given.write_text(json.dumps(parameters))
    arguments = [
        *("command", "reboot", "--device", str(device.device_id), "--correlation-id", str(correlation_id)),
        *("--parameters", f"@{given}", "--wait"),
    ]
    waiting = asyncio.create_task(call_beside(*arguments, **QUEUES))
    documents = []

    async def taken() -> bool:
        document = commands.carries_out(device, outcome, note="[red] as [bold] can be")
        documents.extend([document] if document else [])
        return bool(documents)

    await until(taken, "the device has its job")
    said = await waiting
    assert documents[0]["parameters"] == parameters
    assert said.exit_code == exit_code
    job_id = f"{PREFIX}-{correlation_id}"
    assert said.stdout.splitlines()[0] == f"job {job_id}"
    assert f"--workflow-id {job_id}" in said.stdout
    assert outcome in said.stdout
    assert "  note: [red] as [bold] can be" in said.stdout.splitlines()
    again = await call_beside(*arguments, **QUEUES)
    assert (again.exit_code, again.stdout) == (said.exit_code, said.stdout)
    assert commands.carries_out(device) is None


async def test_a_command_is_cancelled_by_its_jobs_id(commands: Commands) -> None:
    """The id that `command` prints is what `cancel` takes; a second time there is nothing left to cancel."""
    device = commands.device("CLI-CANCEL")
    said = await call_beside("command", "reboot", "--device", str(device.device_id), **QUEUES)
    assert said.exit_code == 0
    job_id = said.stdout.splitlines()[0].removeprefix("job ")
    handle = commands.bridge.client.get_workflow_handle(job_id)
    await commands.has_job(handle)
    assert await call_beside("cancel", job_id) == Said(0, f"{job_id} is being cancelled, in AWS too\n", "")
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert await call_beside("cancel", job_id) == Said(0, f"{job_id} has ended before\n", "")


async def test_another_command_under_a_used_correlation_id_is_refused(commands: Commands) -> None:
    """It would never be carried out, and what ended well is not its end."""
    device, correlation_id = commands.device("CLI-TAKEN"), str(uuid4())
    target = ("--device", str(device.device_id), "--correlation-id", correlation_id)
    assert (await call_beside("command", "reboot", *target, **QUEUES)).exit_code == 0
    job_id = f"{PREFIX}-{correlation_id}"
    handle = commands.bridge.client.get_workflow_handle(job_id)
    await commands.has_job(handle)
    commands.carries_out(device)
    await commands.wait_for_end(handle)
    said = await call_beside("command", "wipe", *target, "--wait", **QUEUES)
    assert (said.exit_code, said.stdout) == (2, "")
    assert f"error: {job_id} is another command" in said.stderr


async def test_what_is_no_command_is_not_cancelled(commands: Commands) -> None:
    """An id nobody knows, and one of another workflow, are errors."""
    device = commands.device("CLI-OTHER")
    await commands.bridge.send_and_wait(device, device.event("Activated"))
    for workflow_id in (f"{PREFIX}-{uuid4()}", device.workflow_id):
        said = await call_beside("cancel", workflow_id)
        assert (said.exit_code, said.stdout) == (2, "")
        assert said.stderr.startswith(f"error: there is no command {workflow_id} in this namespace")


async def test_a_command_that_is_refused_says_why(commands: Commands) -> None:
    """What only AWS or the database can know comes with the end of the command."""
    said = await call_beside("command", "reboot", "--group", "no-such-group", "--wait", **QUEUES)
    assert said.exit_code == 1
    assert "NoSuchTarget" in said.stdout
    assert "there is no thing group no-such-group" in said.stdout
    assert commands.job_named(said.stdout.splitlines()[0].removeprefix("job ")) is None


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
def test_what_was_mistyped_is_said_before_anything_is_sent(arguments: list[str], complaint: str) -> None:
    """Temporal is not even asked, and the exit code is 2."""
    said = call("command", *arguments, **NOWHERE)
    assert (said.exit_code, said.stdout) == (2, "")
    assert complaint in " ".join(said.stderr.replace("│", " ").split())

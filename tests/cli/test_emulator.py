"""`thingbridge emulator`: the AWS emulator alone."""

import re
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from embedded.aws_client import aws_client
from embedded.processes import choose_ports
from tests.harness.command_line import (
    call,
    interrupt,
    processes_of,
    read_until,
    running,
    without_configuration,
)


@asynccontextmanager
async def running_emulator(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """Run the emulator on free ports, and yield its process and the endpoint URL that it prints."""
    port, mqtt_port = choose_ports(0, 0)
    ports = ("--port", str(port), "--mqtt-port", str(mqtt_port))
    async with running("emulator", *ports, *arguments, **without_configuration()) as process:
        printed = await read_until(process.stdout, '"on": true')
        assert f"mosquitto_pub -h localhost -p {mqtt_port} --cafile" in printed
        (endpoint_url,) = re.findall(r"^export AWS_ENDPOINT_URL=(\S+)$", printed, re.MULTILINE)
        assert endpoint_url == f"http://127.0.0.1:{port}"
        yield process, endpoint_url


def thing_names(endpoint_url: str) -> list[str]:
    return [thing["thingName"] for thing in aws_client("iot", endpoint_url).list_things()["things"]]


async def test_emulator_answers_and_keeps_its_account(tmp_path: Path) -> None:
    """It answers at the printed URL, and with a state file the account is there again at the next start."""
    state = tmp_path / "new" / "aws.state"
    async with running_emulator("--state", str(state)) as (process, endpoint_url):
        aws_client("iot", endpoint_url).create_thing(thingName="kept")
        result = await interrupt(process)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert processes_of(tmp_path) == []
    async with running_emulator("--state", str(state)) as (process, endpoint_url):
        assert thing_names(endpoint_url) == ["kept"]
        assert (await interrupt(process)).exit_code == 0


async def test_emulator_without_state_file_starts_empty() -> None:
    """It keeps nothing, and a second interrupt changes nothing."""
    for _ in range(2):
        async with running_emulator() as (process, endpoint_url):
            assert thing_names(endpoint_url) == []
            aws_client("iot", endpoint_url).create_thing(thingName="forgotten")
            result = await interrupt(process, 2)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


async def test_quotas_throttle_as_aws_does() -> None:
    """Of 100 jobs in a row some are refused: AWS creates 10 in a second."""
    async with running_emulator("--quotas") as (process, endpoint_url):
        iot = aws_client("iot", endpoint_url, attempts=1)
        arn = iot.create_thing(thingName="one")["thingArn"]

        def create_jobs() -> None:
            for number in range(100):
                iot.create_job(jobId=f"job-{number}", targets=[arn], document="{}")

        with pytest.raises(ClientError, match="ThrottlingException"):
            create_jobs()
        assert (await interrupt(process)).exit_code == 0


@pytest.mark.parametrize("option", ["--port", "--mqtt-port"])
def test_port_in_use_is_one_sentence(option: str) -> None:
    """A port that another server listens on is refused, with what to do."""
    free = [str(port) for port in choose_ports(0, 0)]
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        result = call("emulator", "--port", free[0], "--mqtt-port", free[1], option, str(port))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: cannot listen on 127.0.0.1, port {port}: it is in use; choose another {option}\n"
    )


@pytest.mark.parametrize("state", ["/proc/thingbridge/aws.state", "FOLDER", "FOLDER/file/aws.state"])
def test_unusable_state_file_is_one_sentence(tmp_path: Path, state: str) -> None:
    """A file that cannot be written, or a folder in its place, is refused with its path."""
    (tmp_path / "file").touch()
    path = state.replace("FOLDER", str(tmp_path))
    port, mqtt_port = choose_ports(0, 0)
    result = call("emulator", "--port", str(port), "--mqtt-port", str(mqtt_port), "--state", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: cannot write {re.escape(path)}: [^;\n]+; give --state \S+ file\n", result.stderr
    )

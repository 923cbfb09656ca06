"""The dev stack: it keeps its data, refuses a second owner, and ends with the process that started it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import psycopg
import pytest
from botocore.config import Config
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from embedded.processes import ServerError
from embedded.stack import Addresses, Stack, isolate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SESSION = boto3.Session("embedded", "embedded", region_name="eu-west-1")
"""Shared by all clients, because each session loads the service models again."""

KEY = "iot/devices/sensor-1/key"

# Starts a stack and prints its addresses. After a Ctrl-C it checks that the database still answers.
STARTER = """
import dataclasses, json, pathlib, signal, sys, time
import psycopg
from embedded.stack import Stack
# A shell that starts the tests in the background ignores SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with Stack(pathlib.Path(sys.argv[1]), temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0) as addresses:
    try:
        print(json.dumps(dataclasses.asdict(addresses)), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        psycopg.connect(addresses.database_url).close()
        print("still answers", flush=True)
"""


def stack_on(data_dir: Path) -> Stack:
    """Return a stack on free ports."""
    return Stack(data_dir, temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0)


@contextmanager
def aws_clients(endpoint_url: str) -> Iterator[tuple[Any, Any, Any]]:
    """Yield clients for IoT, its data plane and Secrets Manager."""
    config = Config(proxies={})
    names: list[Any] = ["iot", "iot-data", "secretsmanager"]
    iot, data, secrets = (SESSION.client(name, endpoint_url=endpoint_url, config=config) for name in names)
    yield iot, data, secrets
    for client in (iot, data, secrets):
        client.close()


@contextmanager
def starter(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], Addresses]]:
    """Run a stack in another process with its own process group, as in a terminal."""
    command = [sys.executable, "-c", STARTER, str(data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, Addresses(**json.loads(process.stdout.readline()))
        finally:
            process.kill()
            process.wait()


def processes_of(data_dir: Path) -> list[str]:
    """Return the command lines of processes that contain the data directory."""
    listed = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(data_dir) in line and STARTER not in line]


def provision(addresses: Addresses) -> str:
    """Create one of each resource in the database and in AWS, and return the certificate ARN."""
    with psycopg.connect(addresses.database_url) as database:
        database.execute("CREATE TABLE device (name text)")
        database.execute("INSERT INTO device VALUES ('sensor-1')")
    with aws_clients(addresses.aws_endpoint_url) as (iot, data, secrets):
        iot.create_thing(thingName="sensor-1", attributePayload={"attributes": {"deviceId": "1"}})
        arn = str(iot.create_keys_and_certificate(setAsActive=True)["certificateArn"])
        iot.attach_thing_principal(thingName="sensor-1", principal=arn)
        secrets.create_secret(Name=KEY, SecretString="1", ClientRequestToken=uuid4().hex)
        data.update_thing_shadow(thingName="sensor-1", payload='{"state":{"reported":{"on":true}}}')
    return arn


def check_provisioned(addresses: Addresses, arn: str) -> None:
    """Check that everything created by `provision` exists."""
    with psycopg.connect(addresses.database_url) as database:
        assert database.execute("SELECT name FROM device").fetchall() == [("sensor-1",)]
    with aws_clients(addresses.aws_endpoint_url) as (iot, data, secrets):
        assert iot.describe_thing(thingName="sensor-1")["attributes"] == {"deviceId": "1"}
        assert iot.list_thing_principals(thingName="sensor-1")["principals"] == [arn]
        certificate_id = arn.rpartition("/")[2]
        described = iot.describe_certificate(certificateId=certificate_id)["certificateDescription"]
        assert described["status"] == "ACTIVE"
        assert secrets.get_secret_value(SecretId=KEY)["SecretString"] == "1"
        shadow = json.load(data.get_thing_shadow(thingName="sensor-1")["payload"])
        assert shadow["state"] == {"reported": {"on": True}}


@dataclass(frozen=True)
class InterruptedStack:
    """A stack that another process started and used, and that Ctrl-C stopped."""

    data_dir: Path
    certificate_arn: str
    workflow_run_id: str | None
    output_after_interrupt: str
    exit_code: int
    processes_left: list[str]


@pytest.fixture(scope="module")
async def interrupted(tmp_path_factory: pytest.TempPathFactory) -> InterruptedStack:
    """Run a stack in another process and interrupt it."""
    data_dir = tmp_path_factory.mktemp("stack")
    with starter(data_dir) as (process, addresses):
        arn = provision(addresses)
        client = await Client.connect(addresses.temporal_address)
        handle = await client.start_workflow("Anything", id="workflow-1", task_queue="nobody-polls")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        output = process.stdout.read()
        exit_code = process.wait(60)
    return InterruptedStack(
        data_dir, arn, handle.first_execution_run_id, output, exit_code, processes_of(data_dir)
    )


@dataclass(frozen=True)
class RestartedStack:
    """The stack after its restart. One of its preferred ports was free and the others were in use."""

    addresses: Addresses
    free_port: int
    taken_port: int
    progress: list[str]


@pytest.fixture(scope="module")
def restarted(interrupted: InterruptedStack) -> Iterator[RestartedStack]:
    """Start the interrupted stack again."""
    progress: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        taken_port, free_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        stack = Stack(
            interrupted.data_dir,
            temporal_port=taken_port,
            ui_port=free_port,
            aws_port=taken_port,
            on_progress=progress.append,
        )
        with stack as addresses:
            yield RestartedStack(addresses, free_port, taken_port, progress)


def test_an_interrupt_stops_the_servers_after_the_starter(interrupted: InterruptedStack) -> None:
    """After a Ctrl-C the starter can still use its servers, and then stops them."""
    assert interrupted.output_after_interrupt == "still answers\n"
    assert interrupted.exit_code == 0
    assert interrupted.processes_left == []


async def test_data_survives_a_restart(interrupted: InterruptedStack, restarted: RestartedStack) -> None:
    """A stack that is started again on its directory has the data of all three servers."""
    check_provisioned(restarted.addresses, interrupted.certificate_arn)
    client = await Client.connect(restarted.addresses.temporal_address)
    description = await client.get_workflow_handle("workflow-1").describe()
    assert description.run_id == interrupted.workflow_run_id


def test_a_port_in_use_is_replaced(restarted: RestartedStack) -> None:
    """A free preferred port is used, one in use is not, and all ports are different."""
    urls = (f"//{restarted.addresses.temporal_address}", restarted.addresses.temporal_ui_url)
    ports = [urlsplit(url).port for url in (*urls, restarted.addresses.aws_endpoint_url)]
    assert restarted.taken_port not in ports
    assert ports[1] == restarted.free_port
    assert len(set(ports)) == 3


def test_progress_names_each_server(restarted: RestartedStack) -> None:
    """Each progress line has the name of a server and the time until it answered."""
    for server in ("PostgreSQL", "Temporal", "the AWS emulator"):
        assert any(re.fullmatch(rf"{server} answers after \d+\.\d s", line) for line in restarted.progress)


@pytest.mark.usefixtures("restarted")
def test_a_second_stack_on_the_directory_is_refused(interrupted: InterruptedStack) -> None:
    """The error names the directory and the process that uses it."""
    refusal = rf"already runs on {interrupted.data_dir} \(process {os.getpid()}\)"
    with pytest.raises(ServerError, match=refusal), stack_on(interrupted.data_dir):
        pass


def test_the_stack_stops_when_its_starter_is_killed(tmp_path: Path) -> None:
    """When its starter is killed, the stack stops in order, and it starts again with its data.

    The path of the directory is longer than the limit for a unix socket.
    """
    data_dir = tmp_path / ("long" * 30)
    with starter(data_dir) as (process, addresses):
        arn = provision(addresses)
        assert len(processes_of(data_dir)) >= 3
        process.kill()
        process.wait()
    # No wait here: the new stack itself waits until the old one has stopped.
    with stack_on(data_dir) as addresses:
        check_provisioned(addresses, arn)
    assert processes_of(data_dir) == []


def test_a_server_that_cannot_start_is_reported(tmp_path: Path) -> None:
    """The error has the server, its exit code and the end of its log, and the other servers are stopped.

    Here the emulator cannot read its state file, and does not overwrite it.
    """
    state = tmp_path / "aws.state"
    state.write_bytes(b"something else")
    message = r"(?s)AWS emulator ended with exit code 1.*cannot read the AWS state"
    with pytest.raises(ServerError, match=message), stack_on(tmp_path):
        pass
    assert processes_of(tmp_path) == []
    assert state.read_bytes() == b"something else"


def test_isolate_removes_every_other_aws_and_temporal(tmp_path: Path) -> None:
    """The developer's profile, keys, files and proxy have no effect. Other variables are kept."""
    config = tmp_path / "temporal.toml"
    config.write_text('[profile.default]\naddress = "production:7233"\napi_key = "secret"\n')
    environ = {
        "PATH": "/bin",
        "AWS_PROFILE": "production",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL_IOT": "https://iot.example.com",
        "AWS_CONFIG_FILE": "/home/me/.aws/config",
        "TEMPORAL_API_KEY": "secret",
        "TEMPORAL_CONFIG_FILE": str(config),
        "NO_PROXY": "example.com",
    }
    addresses = Addresses(
        "127.0.0.1:1", "http://127.0.0.1:2", "postgresql://", "http://127.0.0.1:3", 4, "ca.pem"
    )
    isolate(environ, addresses)
    expected = addresses.environment()
    assert expected.items() <= environ.items()
    left = {name for name in environ if name.startswith(("AWS_", "TEMPORAL_"))} - expected.keys()
    assert left == {
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_EC2_METADATA_DISABLED",
        "TEMPORAL_CONFIG_FILE",
    }
    assert environ["AWS_CONFIG_FILE"] == environ["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert (environ["PATH"], environ["NO_PROXY"]) == ("/bin", "example.com,127.0.0.1")
    profile = ClientConfig.load_client_connect_config(override_env_vars=environ)
    assert profile == {"target_host": "127.0.0.1:1", "namespace": "default"}

"""The dev stack: what it keeps, what it refuses, and that nothing of it outlives whoever started it."""

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
"""One for all clients: each session reads AWS's models anew."""

KEY = "iot/devices/sensor-1/key"

# Starts a stack, prints its addresses, and on a Ctrl-C whether its database still answers.
STARTER = """
import dataclasses, json, pathlib, signal, sys, time
import psycopg
from embedded.stack import Stack
# A shell that starts the tests in the background has it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with Stack(pathlib.Path(sys.argv[1]), temporal_port=0, ui_port=0, aws_port=0) as addresses:
    try:
        print(json.dumps(dataclasses.asdict(addresses)), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        psycopg.connect(addresses.database_url).close()
        print("still answers", flush=True)
"""


def stack_on(data_dir: Path) -> Stack:
    """A stack on any free ports."""
    return Stack(data_dir, temporal_port=0, ui_port=0, aws_port=0)


@contextmanager
def aws_clients(endpoint_url: str) -> Iterator[tuple[Any, Any, Any]]:
    """Clients for IoT, its data plane and secrets."""
    config = Config(proxies={})
    names: list[Any] = ["iot", "iot-data", "secretsmanager"]
    iot, data, secrets = (SESSION.client(name, endpoint_url=endpoint_url, config=config) for name in names)
    yield iot, data, secrets
    for client in (iot, data, secrets):
        client.close()


@contextmanager
def starter(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], Addresses]]:
    """Another process that runs a stack, in a process group of its own as a terminal gives it."""
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
    """The command lines that name the data directory."""
    listed = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(data_dir) in line and STARTER not in line]


def provision(addresses: Addresses) -> str:
    """Leave one of everything in the database and in AWS, and answer with the certificate's ARN."""
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
    """Find again what `provision` left."""
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
class Past:
    """What a stack leaves that another process started, used, and ended by a Ctrl-C."""

    data_dir: Path
    certificate_arn: str
    workflow_run_id: str | None
    said_after_the_interrupt: str
    exit_code: int
    processes_left: list[str]


@pytest.fixture(scope="module")
async def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """A stack that has been."""
    data_dir = tmp_path_factory.mktemp("stack")
    with starter(data_dir) as (process, addresses):
        arn = provision(addresses)
        client = await Client.connect(addresses.temporal_address)
        handle = await client.start_workflow("Anything", id="workflow-1", task_queue="nobody-polls")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        said = process.stdout.read()
        exit_code = process.wait(60)
    return Past(data_dir, arn, handle.first_execution_run_id, said, exit_code, processes_of(data_dir))


@dataclass(frozen=True)
class Present:
    """A stack that runs, on ports of which one was free and the others were not."""

    addresses: Addresses
    free_port: int
    taken_port: int
    progress: list[str]


@pytest.fixture(scope="module")
def present(past: Past) -> Iterator[Present]:
    """The stack of `past`, started again."""
    progress: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        taken_port, free_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        stack = Stack(
            past.data_dir,
            temporal_port=taken_port,
            ui_port=free_port,
            aws_port=taken_port,
            on_progress=progress.append,
        )
        with stack as addresses:
            yield Present(addresses, free_port, taken_port, progress)


def test_an_interrupt_reaches_the_servers_last(past: Past) -> None:
    """After a Ctrl-C the starter still has its servers to end its own work with, and then stops them."""
    assert past.said_after_the_interrupt == "still answers\n"
    assert past.exit_code == 0
    assert past.processes_left == []


async def test_data_survives_a_restart(past: Past, present: Present) -> None:
    """Stopped and started again on its directory, the stack has all that the three servers held."""
    check_provisioned(present.addresses, past.certificate_arn)
    client = await Client.connect(present.addresses.temporal_address)
    description = await client.get_workflow_handle("workflow-1").describe()
    assert description.run_id == past.workflow_run_id


def test_a_taken_port_is_replaced(present: Present) -> None:
    """A free port is taken as given, one in use is not, and no two servers get the same."""
    urls = (f"//{present.addresses.temporal_address}", present.addresses.temporal_ui_url)
    ports = [urlsplit(url).port for url in (*urls, present.addresses.aws_endpoint_url)]
    assert present.taken_port not in ports
    assert ports[1] == present.free_port
    assert len(set(ports)) == 3


def test_progress_names_each_server(present: Present) -> None:
    """Whoever waits is told which server has come up, and how long it took."""
    for server in ("PostgreSQL", "Temporal", "the AWS emulator"):
        assert any(re.fullmatch(rf"{server} answers after \d+\.\d s", line) for line in present.progress)


@pytest.mark.usefixtures("present")
def test_a_second_stack_on_the_directory_is_refused(past: Past) -> None:
    """The error names the directory and the process that has it."""
    refusal = rf"already runs on {past.data_dir} \(process {os.getpid()}\)"
    with pytest.raises(ServerError, match=refusal), stack_on(past.data_dir):
        pass


def test_nothing_outlives_a_killed_starter(tmp_path: Path) -> None:
    """When its starter is killed the stack stops in order, and starts again with nothing lost.

    The directory's path is longer than a unix socket's address may be.
    """
    data_dir = tmp_path / ("long" * 30)
    with starter(data_dir) as (process, addresses):
        arn = provision(addresses)
        assert len(processes_of(data_dir)) >= 3
        process.kill()
        process.wait()
    # Not waited for first: the new stack itself waits until the old one is gone.
    with stack_on(data_dir) as addresses:
        check_provisioned(addresses, arn)
    assert processes_of(data_dir) == []


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    """The error has the server, its exit code and the end of its log; the others are stopped.

    Here it is the emulator, which does not write over a state file that it cannot read.
    """
    state = tmp_path / "aws.state"
    state.write_bytes(b"something else")
    named = r"(?s)AWS emulator ended with exit code 1.*cannot read the AWS state"
    with pytest.raises(ServerError, match=named), stack_on(tmp_path):
        pass
    assert processes_of(tmp_path) == []
    assert state.read_bytes() == b"something else"


def test_isolation_leaves_no_way_to_another_cloud(tmp_path: Path) -> None:
    """A developer's own profile, keys, files and proxy decide nothing any more; the rest stays."""
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
    addresses = Addresses("127.0.0.1:1", "http://127.0.0.1:2", "postgresql://", "http://127.0.0.1:3")
    isolate(environ, addresses)
    ours = addresses.environment()
    assert ours.items() <= environ.items()
    left = {name for name in environ if name.startswith(("AWS_", "TEMPORAL_"))} - ours.keys()
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

"""The example device: it executes its jobs, reports its shadow, and survives the loss of its connection."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from embedded import REGION
from embedded.emulator_control import EmulatorControl, ca_file
from embedded.policy import create_device_policy
from embedded.processes import choose_ports, is_ok
from embedded.stack import emulator_command, server_environment
from examples.device.device import Backoff, Device, Endpoint, Event, EventKind, Execute, Identity, Outcome
from examples.device.factory import FactoryError, fetch_identity
from tests import ROOT
from tests.harness.bridge import POLICY
from tests.harness.command_line import process_environment, without_configuration

THING = "pump-1"
SECONDS = 30.0
DESIRED = {"telemetry": {"intervalSeconds": 60}}
APPLY = "shadow.applyDesiredState"


class Emulator:
    """An emulator process that can be restarted on its state file and ports, and its clients."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "aws.state"
        self._port, self.mqtt_port = choose_ports(0, 0)
        self.url = f"http://127.0.0.1:{self._port}"
        self.ca = ca_file(self._state)
        self.control = EmulatorControl(self.url)
        session = boto3.Session("embedded", "embedded", region_name=REGION)
        config = Config(retries={"total_max_attempts": 1}, proxies={})
        self.iot = session.client("iot", endpoint_url=self.url, config=config)
        self.data = session.client("iot-data", endpoint_url=self.url, config=config)
        self.secrets = session.client("secretsmanager", endpoint_url=self.url, config=config)
        self.start()

    def start(self) -> None:
        command = emulator_command(self._port, self.mqtt_port, self._state)
        self._process = subprocess.Popen(command, env=server_environment())
        ends = time.monotonic() + SECONDS
        while not is_ok(self._port, "/_emulator/calls"):
            assert time.monotonic() < ends, "the emulator does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)

    def wait_until_saved(self, job_id: str) -> None:
        """Wait until the state file contains a job: the emulator saves about a second after a change."""
        ends = time.monotonic() + SECONDS
        while not self._state.exists() or job_id not in self._state.read_text():
            assert time.monotonic() < ends, f"{job_id} is not saved"
            time.sleep(0.05)

    def close(self) -> None:
        self.stop()
        for client in (self.iot, self.data, self.secrets):
            client.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("localhost", self.mqtt_port, self.ca.read_bytes())

    def provision(self, thing_name: str) -> None:
        """Create a Thing, its active certificate and its secret, as thingbridge does."""
        self.iot.create_thing(thingName=thing_name)
        made = self.iot.create_keys_and_certificate(setAsActive=True)
        self.iot.attach_policy(policyName=POLICY, target=made["certificateArn"])
        self.iot.attach_thing_principal(thingName=thing_name, principal=made["certificateArn"])
        with suppress(self.secrets.exceptions.ResourceExistsException):
            self.secrets.create_secret(
                Name=f"iot/devices/{thing_name}/key", SecretString=made["keyPair"]["PrivateKey"]
            )

    def identity(self, thing_name: str = THING) -> Identity:
        return fetch_identity(thing_name, self.iot, self.secrets)

    def send(self, job_id: str, document: object, thing_name: str = THING) -> None:
        arn = self.iot.describe_thing(thingName=thing_name)["thingArn"]
        self.iot.create_job(jobId=job_id, targets=[arn], document=json.dumps(document))

    def execution(self, job_id: str, thing_name: str = THING) -> tuple[str, dict[str, str]]:
        """Return the status and the details of a job's execution."""
        found = self.iot.describe_job_execution(jobId=job_id, thingName=thing_name)["execution"]
        return found["status"], dict(found.get("statusDetails", {}).get("detailsMap", {}))

    def desire(self, state: Mapping[str, Any], thing_name: str = THING) -> None:
        self.data.update_thing_shadow(
            thingName=thing_name, payload=json.dumps({"state": {"desired": state}}).encode()
        )

    def shadow(self, thing_name: str = THING) -> dict[str, Any]:
        """Return the state of the classic shadow."""
        state: dict[str, Any] = json.load(self.data.get_thing_shadow(thingName=thing_name)["payload"])[
            "state"
        ]
        return state


class Recorder:
    """Records the events of a device, and waits for them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def wait_for(self, kind: EventKind, times: int = 1) -> Event:
        """Return the event that is the given one of its kind, once it has happened."""
        with self._changed:
            happened = self._changed.wait_for(lambda: len(self.of(kind)) >= times, SECONDS)
            assert happened, f"no event {times} of {kind}: {self.events}"
            return self.of(kind)[times - 1]


@dataclass(frozen=True)
class Running:
    """A device that is running, and its events."""

    device: Device
    events: Recorder


def succeed(_operation: str, _parameters: Mapping[str, Any]) -> Outcome:
    return Outcome("SUCCEEDED", {"done": "yes"})


@contextmanager
def device(
    emulator: Emulator, execute: Execute = succeed, thing_name: str = THING, **options: Any
) -> Iterator[Running]:
    """Run a device with its certificate, and stop it at the end."""
    events = Recorder()
    identity = emulator.identity(thing_name)
    backoff = Backoff(0.05, 0.5)
    made = Device(
        thing_name, identity, emulator.endpoint, execute, backoff=backoff, on_event=events, **options
    )
    made.start()
    try:
        yield Running(made, events)
    finally:
        made.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Run one emulator for all tests of this file."""
    emulator = Emulator(tmp_path_factory.mktemp("aws"))
    yield emulator
    emulator.close()


@pytest.fixture
def emulator(shared: Emulator) -> Emulator:
    """Return the emulator with nothing but one provisioned Thing."""
    shared.control.reset()
    create_device_policy(shared.url, POLICY)
    shared.provision(THING)
    return shared


def document(operation: str, parameters: object | None = None) -> dict[str, object]:
    """Return a job document of thingbridge."""
    return {"operation": operation, "correlationId": "c", "parameters": parameters or {}}


# Jobs


def test_device_executes_the_jobs_of_its_time_offline_in_order(emulator: Emulator) -> None:
    """Jobs created before it connects are executed in their order, and then those it is notified of."""
    executed: list[tuple[str, Any]] = []

    def execute(operation: str, parameters: Mapping[str, Any]) -> Outcome:
        executed.append((operation, parameters))
        return Outcome("SUCCEEDED", {"number": str(len(executed))})

    for number in (1, 2, 3):
        emulator.send(f"job-{number}", document(f"step-{number}", {"number": number}))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_ENDED, 3)
        emulator.send("job-4", document("step-4"))
        running.events.wait_for(EventKind.JOB_ENDED, 4)
    assert executed == [
        ("step-1", {"number": 1}),
        ("step-2", {"number": 2}),
        ("step-3", {"number": 3}),
        ("step-4", {}),
    ]
    assert [emulator.execution(f"job-{number}") for number in (1, 2, 3, 4)] == [
        ("SUCCEEDED", {"number": str(number)}) for number in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("status", ["FAILED", "REJECTED"])
def test_outcome_of_the_handler_ends_the_job(emulator: Emulator, status: Any) -> None:
    """Its status and details are stored with the execution, and a desired state is not reported."""
    emulator.desire(DESIRED)
    emulator.send("job-1", document(APPLY, DESIRED))
    with device(emulator, lambda *_: Outcome(status, {"reason": "too hot", "empty": ""})) as running:
        ended = running.events.wait_for(EventKind.JOB_ENDED)
    assert (ended.operation, ended.outcome and ended.outcome.status) == (APPLY, status)
    assert emulator.execution("job-1") == (status, {"reason": "too hot"})
    assert "reported" not in emulator.shadow()


def test_handler_that_raises_fails_the_job_and_not_the_device(emulator: Emulator) -> None:
    """The error is the reason, cut to the length that AWS stores, and the next job is executed."""

    def execute(operation: str, _parameters: Mapping[str, Any]) -> Outcome:
        if operation == "break":
            raise RuntimeError("x" * 5000)
        return Outcome("SUCCEEDED")

    emulator.send("job-1", document("break"))
    emulator.send("job-2", document("go-on"))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_ENDED, 2)
    status, details = emulator.execution("job-1")
    assert (status, details["reason"]) == ("FAILED", ("RuntimeError: " + "x" * 5000)[:1024])
    assert emulator.execution("job-2") == ("SUCCEEDED", {})


@pytest.mark.parametrize(
    ("returned", "reason"),
    [(None, "breaks returned None instead of an outcome"), (SystemExit(3), "SystemExit: 3")],
)
def test_handler_without_an_outcome_fails_the_job(emulator: Emulator, returned: object, reason: str) -> None:
    """A handler that returns something else, or exits, does not stop the device either."""

    def execute(operation: str, _parameters: Mapping[str, Any]) -> Any:
        if operation == "breaks" and isinstance(returned, SystemExit):
            raise returned
        return Outcome("SUCCEEDED") if operation == "go-on" else returned

    emulator.send("job-1", document("breaks"))
    emulator.send("job-2", document("go-on"))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_ENDED, 2)
    assert emulator.execution("job-1") == ("FAILED", {"reason": reason})
    assert emulator.execution("job-2") == ("SUCCEEDED", {})


def test_details_are_sent_as_aws_stores_them() -> None:
    """AWS would refuse other names, empty values and control characters, and the job would never end."""
    wild: dict[str, Any] = {
        "my reason": "line 1\nline 2",
        "count": 5,
        "empty": "",
        "blank": "\n",
        "ü" * 200: "x",
    }
    assert Outcome("FAILED", wild).stored_details() == {
        "my_reason": "line 1 line 2",
        "count": "5",
        "_" * 128: "x",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1], "the job document must be a JSON object, and is [1]"),
        ("text", 'the job document must be a JSON object, and is "text"'),
        (None, "the job document must be a JSON object, and is null"),
        ({"operation": 5}, "the job document has no operation"),
        (
            {"operation": "reboot", "parameters": [1]},
            "the parameters of the job document must be a JSON object",
        ),
    ],
)
def test_wrong_job_document_is_rejected_with_the_reason(
    emulator: Emulator, content: object, reason: str
) -> None:
    """The handler does not see it, and the next job is executed."""
    executed: list[str] = []

    def execute(operation: str, _parameters: Mapping[str, Any]) -> Outcome:
        executed.append(operation)
        return Outcome("SUCCEEDED")

    emulator.send("job-1", content)
    emulator.send("job-2", document("reboot"))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_ENDED, 2)
    assert emulator.execution("job-1") == ("REJECTED", {"reason": reason})
    assert executed == ["reboot"]


def test_job_is_executed_once_though_its_device_is_cut_off_meanwhile(emulator: Emulator) -> None:
    """The new connection returns the job in progress: its outcome is sent, without a second execution."""
    executed: list[str] = []
    go_on = threading.Event()

    def execute(operation: str, _parameters: Mapping[str, Any]) -> Outcome:
        executed.append(operation)
        assert go_on.wait(SECONDS)
        return Outcome("SUCCEEDED", {"done": "once"})

    emulator.send("job-1", document("reboot"))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_STARTED)
        emulator.data.delete_connection(clientId=THING)
        running.events.wait_for(EventKind.CONNECTED, 2)
        go_on.set()
        running.events.wait_for(EventKind.JOB_ENDED)
        emulator.send("job-2", document("next"))
        running.events.wait_for(EventKind.JOB_ENDED, 2)
    assert executed == ["reboot", "next"]
    assert emulator.execution("job-1") == ("SUCCEEDED", {"done": "once"})


def test_cancelled_job_does_not_hinder_the_next(emulator: Emulator) -> None:
    """A job cancelled while it is executed stays cancelled, and the device takes the next one."""
    go_on = threading.Event()

    def execute(_operation: str, _parameters: Mapping[str, Any]) -> Outcome:
        assert go_on.wait(SECONDS)
        return Outcome("SUCCEEDED")

    emulator.send("job-1", document("reboot"))
    with device(emulator, execute) as running:
        running.events.wait_for(EventKind.JOB_STARTED)
        emulator.iot.cancel_job(jobId="job-1", force=True)
        emulator.send("job-2", document("reboot"))
        go_on.set()
        running.events.wait_for(EventKind.JOB_ENDED)
    assert emulator.execution("job-1")[0] == "CANCELED"
    assert emulator.execution("job-2")[0] == "SUCCEEDED"


# The shadow


def test_job_of_a_desired_state_is_reported(emulator: Emulator) -> None:
    """The parameters are merged into the reported state before the job ends, and no delta is left."""
    emulator.desire(DESIRED)
    with device(emulator, properties={"firmwareVersion": "1.0.0"}) as running:
        running.events.wait_for(EventKind.DESIRED)
        assert emulator.shadow()["delta"] == DESIRED
        emulator.send("job-1", document(APPLY, DESIRED))
        running.events.wait_for(EventKind.JOB_ENDED)
    assert emulator.shadow() == {
        "desired": DESIRED,
        "reported": {"firmwareVersion": "1.0.0"} | DESIRED,
    }
    assert emulator.execution("job-1") == ("SUCCEEDED", {"done": "yes"})


def test_device_that_applies_deltas_reports_each(emulator: Emulator) -> None:
    """It applies what was desired while it was offline, and what is desired while it is connected."""
    emulator.desire({"interval": 1})
    with device(emulator, applies_delta=True) as running:
        running.events.wait_for(EventKind.REPORTED)
        assert emulator.shadow() == {"desired": {"interval": 1}, "reported": {"interval": 1}}
        emulator.desire({"interval": 2})
        running.events.wait_for(EventKind.REPORTED, 2)
    assert emulator.shadow() == {"desired": {"interval": 2}, "reported": {"interval": 2}}


def test_properties_that_the_shadow_has_are_not_reported_again(emulator: Emulator) -> None:
    """A new connection of an unchanged device costs no update of its shadow."""
    with device(emulator, properties={"firmwareVersion": "1.0.0"}) as running:
        running.events.wait_for(EventKind.REPORTED)
    with device(emulator, properties={"firmwareVersion": "1.0.0"}) as running:
        emulator.send("job-1", document("reboot"))
        running.events.wait_for(EventKind.JOB_ENDED)
    assert running.events.of(EventKind.REPORTED) == []


# The connection


def test_device_connects_again_after_aws_cut_its_connection(emulator: Emulator) -> None:
    """It says who ended the connection, and takes a job and a delta of the next one."""
    with device(emulator, applies_delta=True) as running:
        running.events.wait_for(EventKind.CONNECTED)
        emulator.data.delete_connection(clientId=THING)
        ended = running.events.wait_for(EventKind.DISCONNECTED)
        emulator.desire(DESIRED)
        emulator.send("job-1", document("reboot"))
        running.events.wait_for(EventKind.JOB_ENDED)
        running.events.wait_for(EventKind.REPORTED)
    assert ended.detail == "AWS ended the connection: ADMINISTRATIVE_ACTION"
    assert emulator.shadow()["reported"] == DESIRED


def test_device_connects_again_after_the_endpoint_was_restarted(emulator: Emulator) -> None:
    """While the endpoint is away it goes on trying, and then executes the job that was created before."""
    release = threading.Event()

    def execute(operation: str, _parameters: Mapping[str, Any]) -> Outcome:
        if operation == "before":
            assert release.wait(SECONDS)
        return Outcome("SUCCEEDED")

    with device(emulator, execute) as running:
        emulator.send("job-1", document("before"))
        running.events.wait_for(EventKind.JOB_STARTED)
        emulator.send("job-2", document("after"))
        emulator.wait_until_saved("job-2")
        emulator.stop()
        running.events.wait_for(EventKind.UNREACHABLE, 2)
        release.set()
        emulator.start()
        running.events.wait_for(EventKind.JOB_ENDED, 2)
    assert (emulator.execution("job-1")[0], emulator.execution("job-2")[0]) == ("SUCCEEDED", "SUCCEEDED")


def test_deactivated_certificate_is_refused_until_it_is_active_again(emulator: Emulator) -> None:
    """The device says that it is refused, goes on trying, and connects once the certificate is active."""
    certificate_id = emulator.iot.list_thing_principals(thingName=THING)["principals"][0].rpartition("/")[2]
    with device(emulator) as running:
        running.events.wait_for(EventKind.CONNECTED)
        emulator.iot.update_certificate(certificateId=certificate_id, newStatus="INACTIVE")
        emulator.data.delete_connection(clientId=THING)
        refused = running.events.wait_for(EventKind.REFUSED, 2)
        assert (running.device.is_connected, running.device.refusal) == (False, refused.detail)
        emulator.iot.update_certificate(certificateId=certificate_id, newStatus="ACTIVE")
        running.events.wait_for(EventKind.CONNECTED, 2)
        assert (running.device.is_connected, running.device.refusal) == (True, None)
    assert not running.device.is_connected
    assert "the certificate is not active" in refused.detail


def test_policy_that_denies_the_connection_refuses_the_device(emulator: Emulator) -> None:
    """The device says what AWS answered."""
    (arn,) = emulator.iot.list_thing_principals(thingName=THING)["principals"]
    emulator.iot.detach_policy(policyName=POLICY, target=arn)
    with device(emulator) as running:
        refused = running.events.wait_for(EventKind.REFUSED)
    assert refused.detail.startswith("AWS answered NOT_AUTHORIZED")


def test_policy_that_denies_the_subscription_is_reported(emulator: Emulator) -> None:
    """The device is connected, and says which of its subscriptions the policy does not allow."""
    (arn,) = emulator.iot.list_thing_principals(thingName=THING)["principals"]
    emulator.iot.detach_policy(policyName=POLICY, target=arn)
    statement = {"Effect": "Allow", "Action": "iot:Connect", "Resource": "*"}
    connect_only = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    emulator.iot.create_policy(policyName="connect-only", policyDocument=connect_only)
    emulator.iot.attach_policy(policyName="connect-only", target=arn)
    with device(emulator) as running:
        running.events.wait_for(EventKind.FAILED, 2)
    assert {
        event.detail.partition(": does the policy")[0] for event in running.events.of(EventKind.FAILED)
    } == {
        "cannot subscribe to the delta of its shadow",
        "cannot subscribe to its next job",
    }


def test_key_of_another_certificate_is_refused_at_once(emulator: Emulator) -> None:
    """A wrong file is an error before the first connection."""
    emulator.provision("pump-2")
    mixed = Identity(emulator.identity().certificate, emulator.identity("pump-2").private_key)
    with pytest.raises(ValueError, match="the private key is not the key of the certificate"):
        Device(THING, mixed, emulator.endpoint, succeed)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"certificate": b""}, "the certificate is not an X.509 certificate as PEM"),
        ({"private_key": b"junk"}, "the private key is not an unencrypted private key as PEM"),
    ],
)
def test_wrong_identity_is_refused_at_once(
    emulator: Emulator, replaced: dict[str, bytes], message: str
) -> None:
    """The error names the file at fault."""
    with pytest.raises(ValueError, match=message):
        Device(THING, replace(emulator.identity(), **replaced), emulator.endpoint, succeed)


def test_empty_ca_is_refused_at_once(emulator: Emulator) -> None:
    """It does not stand for the authorities of the system."""
    endpoint = replace(emulator.endpoint, ca=b"")
    with pytest.raises(ValueError, match="the CA file contains no"):
        Device(THING, emulator.identity(), endpoint, succeed)


def test_second_signal_ends_a_device_with_an_endless_job(emulator: Emulator, tmp_path: Path) -> None:
    """The first one waits for the job; a user need not."""
    emulator.identity().write_files(tmp_path, THING)
    emulator.send("job-1", document("endless"))
    code = (
        "import sys, time; from examples.device import __main__ as program; "
        "program.execute = lambda *_: time.sleep(3600); sys.exit(program.main())"
    )
    options = ("--thing", THING, "--port", str(emulator.mqtt_port), "--ca", str(emulator.ca))
    files = ("--cert", str(tmp_path / f"{THING}.pem"), "--key", str(tmp_path / f"{THING}.key"))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options, *files],
        cwd=ROOT,
        env=process_environment(**without_configuration()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while not process.stdout.readline().startswith("job started"):
        assert process.poll() is None
    process.terminate()
    ends = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.1)
        process.terminate()
    assert process.wait(1) == -signal.SIGTERM
    process.communicate()


# The factory


def test_factory_returns_the_certificate_of_the_key(emulator: Emulator) -> None:
    """A second certificate of the Thing, whose key is not in the secret, is not returned."""
    (first,) = emulator.iot.list_thing_principals(thingName=THING)["principals"]
    emulator.provision(THING)
    described = emulator.iot.describe_certificate(certificateId=first.rpartition("/")[2])
    assert emulator.identity().certificate.decode() == described["certificateDescription"]["certificatePem"]
    assert "PRIVATE KEY" not in repr(emulator.identity())


def test_factory_writes_files_for_their_owner_only(emulator: Emulator, tmp_path: Path) -> None:
    """Also where a file of that name was readable by others."""
    (tmp_path / f"{THING}.key").touch(mode=0o644)
    paths = emulator.identity().write_files(tmp_path, THING)
    assert Identity.from_files(*paths) == emulator.identity()
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]


def test_factory_says_what_is_missing(emulator: Emulator) -> None:
    """An unknown Thing, an inactive certificate and a secret that is no key are three different errors."""
    (arn,) = emulator.iot.list_thing_principals(thingName=THING)["principals"]
    with pytest.raises(FactoryError, match="cannot fetch the certificate and key of pump-9"):
        emulator.identity("pump-9")
    emulator.iot.update_certificate(certificateId=arn.rpartition("/")[2], newStatus="INACTIVE")
    with pytest.raises(FactoryError, match="no active certificate"):
        emulator.identity()
    emulator.secrets.put_secret_value(SecretId=f"iot/devices/{THING}/key", SecretString="not a key")
    with pytest.raises(FactoryError, match="contains no private key"):
        emulator.identity()


# The command


def command(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start the device as a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.device", *arguments],
        cwd=ROOT,
        env=process_environment(**{**without_configuration(), **environment}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code and the output of a process."""
    stdout, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stdout, stderr


def test_command_prints_one_line_per_event(emulator: Emulator, tmp_path: Path) -> None:
    """With the factory's files it connects, executes a job and stops; nothing else is printed."""
    emulator.send("job-1", document("reboot"))
    process = command(
        *("--thing", THING, "--port", str(emulator.mqtt_port), "--ca", emulator.ca),
        *("--from-factory", "--save-to", tmp_path),
        AWS_ENDPOINT_URL=emulator.url,
        AWS_REGION=REGION,
        AWS_DEFAULT_REGION=REGION,
        AWS_ACCESS_KEY_ID="embedded",
        AWS_SECRET_ACCESS_KEY="embedded",
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(6)]
    process.terminate()
    code, rest, stderr = ended(process)
    printed = "".join([*lines, rest])
    assert (code, stderr) == (0, "")
    kinds = [re.split(": | /", line)[0] for line in printed.splitlines()]
    assert (kinds[:3], kinds[-1]) == (["wrote", "wrote", "connected"], "disconnected")
    assert sorted(kinds[3:-1]) == ["job ended", "job started", "reported"]
    assert Identity.from_files(tmp_path / f"{THING}.pem", tmp_path / f"{THING}.key") == emulator.identity()


def test_help_names_every_option() -> None:
    """It has an example for the dev stack and one for AWS."""
    code, stdout, _ = ended(command("--help"))
    assert code == 0
    for expected in (
        "--thing",
        "--cert",
        "--key",
        "--from-factory",
        "--ca",
        "thingbridge dev",
        "amazonaws.com",
    ):
        assert expected in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cert", "absent.pem", "--key", "absent.key"), "error: cannot use absent.pem: No such file"),
        (
            ("--cert", "README.md", "--key", "README.md"),
            "error: the certificate is not an X.509 certificate as PEM",
        ),
        (("--cert", "README.md"), "--cert and --key belong together"),
        (("--cert", "a", "--key", "b", "--save-to", "c"), "--save-to belongs to --from-factory"),
        ((), "give either --cert and --key, or --from-factory"),
        (("--from-factory",), "error: cannot call AWS: You must specify a region."),
    ],
)
def test_wrong_option_is_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    """The message names the file or the option, without a traceback."""
    code, stdout, stderr = ended(command("--thing", THING, *arguments, AWS_CONFIG_FILE="/dev/null"))
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert "Traceback" not in stderr

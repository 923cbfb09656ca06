"""Child processes of the dev stack. They end when the process that started them ends."""

from __future__ import annotations

import fcntl
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HOST = "127.0.0.1"
"""The address on which the servers of the dev stack listen, except PostgreSQL."""

STOP_GRACE_SECONDS = 20.0
"""Seconds that a server has to end after its stop signal, before it is killed."""

_FREE_PORTS = range(20_000, 30_000)
"""Below the ephemeral ports of the operating system: a free ephemeral port may be used for a connection, or
by an internal listener of Temporal, before its server binds it."""

_ANSWER_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_LOG_LINES_SHOWN = 15
_SUPERVISOR = Path(__file__).with_name("supervise.py")


class ServerError(RuntimeError):
    """A server of the dev stack cannot start, or ended unexpectedly."""


class ServerProcess:
    """One server, run under `supervise.py` in its own session.

    Because of the session, a Ctrl-C in the terminal does not reach the server. The starter stops it in order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        *,
        environment: Mapping[str, str],
        keep_open: int,
        stop_signal: signal.Signals = signal.SIGTERM,
        user: str | None = None,
        remove: Path | None = None,
    ) -> None:
        self.name = name
        self._log_file = log_file
        supervisor = [sys.executable, "-I", "-S", str(_SUPERVISOR)]
        supervisor += ["--stop-signal", stop_signal.name, "--grace-seconds", str(STOP_GRACE_SECONDS)]
        supervisor += ["--user", user] if user else []
        supervisor += ["--remove", str(remove)] if remove else []
        supervisor_input, self._stop_pipe = os.pipe()
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*supervisor, "--", *command],
                stdin=supervisor_input,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[keep_open],
                start_new_session=True,
            )
        os.close(supervisor_input)

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Return when `answers` returns true.

        Raises:
            ServerError: the process ended first, or did not answer in time.
        """
        deadline = time.monotonic() + _ANSWER_TIMEOUT_SECONDS
        while not answers():
            if self._process.poll() is not None:
                raise ServerError(
                    f"{self.name} ended with exit code {self._process.returncode}. "
                    + end_of_log(self._log_file)
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} did not answer within {_ANSWER_TIMEOUT_SECONDS:.0f} s. "
                    + end_of_log(self._log_file)
                )
            time.sleep(_POLL_SECONDS)

    def request_stop(self) -> None:
        """Make the supervisor stop the server, without waiting for it."""
        # Closing the pipe is not enough: a forked copy of this process may hold it open too.
        with suppress(BrokenPipeError):
            os.write(self._stop_pipe, b"\n")
        os.close(self._stop_pipe)

    def wait_stopped(self) -> None:
        """Return when the server has ended. Its supervisor kills it after the grace period."""
        self._process.wait()


def end_of_log(log_file: Path) -> str:
    """Return the last lines of a server's log, for an error message."""
    lines = log_file.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "\n".join([f"The end of its log, {log_file}:", *lines])


def is_ok(port: int, path: str) -> bool:
    """Return whether a local server answers a GET with 200, without any proxy of the environment."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C: while servers are stopping, an exception would leave the rest of them running."""
    if threading.current_thread() is not threading.main_thread():  # which alone may change that
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1."""
    with ExitStack() as held:
        return _can_hold(held, port)


def listen(port: int) -> socket.socket:
    """Return a listener on this port of 127.0.0.1.

    Raises:
        ServerError: the port cannot be used.
    """
    # With the protocol, asyncio disables Nagle's algorithm, which would delay each response by 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        message = f"the AWS emulator cannot listen on {HOST}:{port} ({reason}): choose another port"
        raise ServerError(message) from error
    return listener


def choose_ports(*preferred: int) -> list[int]:
    """Return each preferred port of 127.0.0.1 that is free, and another free port for each one in use."""
    with ExitStack() as held:  # all stay bound until all are chosen, so that no two are equal
        return [_hold_port(held, port) for port in preferred]


def _hold_port(held: ExitStack, preferred: int) -> int:
    random_ports = (secrets.choice(_FREE_PORTS) for _ in range(100))
    for port in chain([preferred] if preferred else [], random_ports):
        if _can_hold(held, port):
            return port
    raise ServerError(f"found no free port on {HOST} from {_FREE_PORTS.start} to {_FREE_PORTS.stop - 1}")


def _can_hold(held: ExitStack, port: int) -> bool:
    listener = held.enter_context(socket.socket())
    # Without it a port is refused for a minute after the last run's connections closed.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # with that option, another process could bind a port that is only bound
    except OSError:
        return False
    return True


def hold(path: Path) -> IO[str]:
    """Open a file that only one process may hold, until the result is closed or this process ends.

    Raises:
        ServerError: another process holds the file.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ServerError(f"another process uses {path}: stop it, or choose another file") from None
    return file


def child_environment() -> dict[str, str]:
    """Return the environment of this process without the variables of AWS, Temporal and PostgreSQL."""
    foreign = ("AWS_", "TEMPORAL_", "MINISTACK_", "IOT_MTLS_", "PG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    empty_files = (
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "TEMPORAL_CONFIG_FILE",
        "TEMPORAL_ENV_FILE",
    )
    return environment | dict.fromkeys(empty_files, os.devnull)

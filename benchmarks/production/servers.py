"""The servers of the production run, each an OS process that can be started, killed and frozen."""

import os
import pwd
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from embedded.postgres import postgres_binaries
from embedded.processes import HOST, ServerError, child_environment, choose_ports, end_of_log, is_ok
from embedded.stack import emulator_command, server_environment, temporal_command

THINGBRIDGE: Final = Path(sys.executable).with_name("thingbridge")

_ANSWER_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 45.0
_POLL_SECONDS: Final = 0.1
_DEBIAN_POSTGRES: Final = "/usr/lib/postgresql"


class Server:
    """One process, configured only by its command and environment. Its output is appended to one log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log_file: Path,
        answers: Callable[[str], bool],
    ) -> None:
        """Configure the process without starting it.

        Args:
            name: the name in printed messages.
            command: the command line.
            environment: the complete environment.
            log_file: the file for standard output and error.
            answers: returns whether the process is ready, given its output since the start.
        """
        self.name = name
        self._log_file = log_file
        self._command = command
        self._environment = environment
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and return when it is ready.

        Raises:
            ServerError: the process ended, or was not ready in time.
        """
        with self._log_file.open("ab") as log:
            offset = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C reaches only this run, which stops the servers
            )
        ends = time.monotonic() + _ANSWER_SECONDS
        while not self._answers(self._output_since(offset)):
            if self._process.poll() is not None:
                raise ServerError(
                    f"{self.name} ended with exit code {self._process.returncode}. {self._log_end()}"
                )
            if time.monotonic() > ends:
                raise ServerError(
                    f"{self.name} was not ready within {_ANSWER_SECONDS:.0f} s. {self._log_end()}"
                )
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill the process, as in a power failure."""
        process = self._running()
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Suspend the process. Its connections stay open."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the suspended process."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process gracefully, if it runs."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def command_line(self) -> str:
        """The command line as in a shell."""
        program, *arguments = self._command
        return " ".join([Path(program).name, *map(str, arguments)])

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended or was never started."""
        return self._process is None or self._process.poll() is not None

    def _output_since(self, offset: int) -> str:
        return self._log_file.read_bytes()[offset:].decode(errors="replace")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"{self.name} is not running. {self._log_end()}")
        return self._process

    def _log_end(self) -> str:
        return end_of_log(self._log_file)


class PostgresCluster:
    """A PostgreSQL cluster, with the binaries of Debian or else of the dev stack."""

    def __init__(self, folder: Path, log_file: Path) -> None:
        """Create the cluster, owned by an unprivileged user, without starting it."""
        self._binaries, self.origin = _postgres_binaries()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._data = folder / "data"
        self._log_file = log_file
        (self._port,) = choose_ports(0)
        self._superuser_password = secrets.token_urlsafe(18)
        self.password = secrets.token_urlsafe(18)
        folder.mkdir()
        log_file.touch()
        password_file = folder / "password"
        password_file.write_text(self._superuser_password)
        for path in (folder, log_file, password_file):
            self._give_to_user(path)
        command = ["initdb", "--pgdata", str(self._data), "--username=postgres", "--encoding=UTF8"]
        command += ["--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        self._run(*command)
        password_file.unlink()

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        settings = (
            f"-p {self._port} -c listen_addresses={HOST} -c unix_socket_directories= -c max_connections=300"
        )
        self._control("start", "--options", settings)

    def restart(self) -> None:
        """Disconnect all clients, stop the server and start it again."""
        self._control("restart", "--mode=fast")

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if (self._data / "postmaster.pid").exists():
            self._control("stop", "--mode=fast")

    def create_database(self) -> None:
        """Create the role of the bridge and a database that it owns."""
        with psycopg.connect(self._url("postgres", self._superuser_password), autocommit=True) as connection:
            role, password = sql.Identifier("thingbridge"), sql.Literal(self.password)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
            connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(role))

    @property
    def url(self) -> str:
        """The URL of the bridge's database for the bridge's role."""
        return self._url("thingbridge", self.password)

    def dump(self) -> bytes:
        """Return the complete content of the bridge's database."""
        return self._run("pg_dump", "--inserts", self.url)

    def version(self) -> str:
        """Return the version line of the server."""
        return self._run("postgres", "--version").decode().strip()

    def _url(self, user: str, password: str) -> str:
        return f"postgresql://{user}:{quote(password)}@{HOST}:{self._port}/{user}"

    def _control(self, verb: str, *arguments: str) -> None:
        command = ["pg_ctl", verb, "--pgdata", str(self._data), "--wait", "--timeout=60", "--silent"]
        self._run(*command, "--log", str(self._log_file), *arguments)

    def _run(self, program: str, *arguments: str) -> bytes:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            env=child_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise ServerError(
                f"{program} ended with exit code {done.returncode}: {done.stderr.decode(errors='replace')}"
            )
        return done.stdout

    def _give_to_user(self, path: Path) -> None:
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def temporal_server(folder: Path, port: int, ui_port: int) -> Server:
    """Return Temporal's dev server on a database file, which survives a kill of the process."""
    return Server(
        "Temporal",
        temporal_command(port, ui_port, folder / "temporal.db"),
        child_environment(),
        folder / "temporal.log",
        lambda _: is_ok(ui_port, "/api/v1/namespaces/default"),
    )


def aws_emulator(folder: Path, port: int, mqtt_port: int) -> Server:
    """Return the AWS emulator."""
    return Server(
        "AWS emulator",
        emulator_command(port, mqtt_port, folder / "aws.state"),
        server_environment(),
        folder / "aws.log",
        lambda _: is_ok(port, "/_emulator/calls"),
    )


def _postgres_binaries() -> tuple[Path, str]:
    """Return the folder and the origin of PostgreSQL: the newest of Debian, or else of the dev stack."""
    debian = sorted(
        (path for path in Path(_DEBIAN_POSTGRES).glob("*/bin/initdb") if path.parts[-3].isdecimal()),
        key=lambda path: int(path.parts[-3]),
    )
    if debian:
        return debian[-1].parent, "from Debian"
    return postgres_binaries(), "from the dev stack"


def _unprivileged_user() -> str:
    """Return the user that runs the server if this process is root: PostgreSQL refuses to run as root."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)

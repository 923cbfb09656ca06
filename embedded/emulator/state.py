"""Keeps the emulated account in a file, so that it is there again after a restart."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from embedded.emulator.account import Account

_PAUSE_SECONDS = 1.0
_SHARE_OF_TIME = 0.05
"""How much of the time may go into saving: a large account is saved less often."""


class StateFile:
    """Writes the account to its file a moment after it has changed."""

    def __init__(self, path: Path, account: Account) -> None:
        self._path = path
        self._account = account
        self._changed = threading.Event()
        self._saving = threading.RLock()

    def load(self) -> None:
        """Fill the account with what the file holds, if there is one."""
        if not self._path.exists():
            return
        try:
            self._account.load(self._path.read_bytes())
        except Exception as error:
            raise SystemExit(
                f"cannot read the AWS state in {self._path}: {error}. Remove it to start anew."
            ) from error

    def save_changes(self) -> None:
        """Save whenever something has changed, for ever; for a thread of its own."""
        while True:
            self._changed.wait()
            time.sleep(_PAUSE_SECONDS)
            began = time.monotonic()
            self.save()
            took = time.monotonic() - began
            time.sleep(max(0.0, took / _SHARE_OF_TIME - _PAUSE_SECONDS))

    def note_change(self) -> None:
        """Have the account saved before long."""
        self._changed.set()

    def save(self) -> None:
        """Write the account beside the file and put it in its place, so that there is always a whole one."""
        with self._saving:
            self._changed.clear()
            dumped = self._account.dump()
            incomplete = self._path.with_name(self._path.name + ".incomplete")
            # For the owner's eyes: it holds the values of secrets.
            with os.fdopen(os.open(incomplete, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(dumped)
                file.flush()
                os.fsync(file.fileno())
            incomplete.rename(self._path)

    def save_for_good(self) -> None:
        """Save a last time, and let nothing be answered any more that would not be in the file."""
        with self._saving:  # before the account's lock, the order in which `save` takes them
            self._account.lock.acquire()
            self.save()

"""Activity that erases the records of devices whose retention has ended."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine
from temporalio import activity

from activities.bindings import actor, transaction
from db.erasure import erase_some
from domain.erasure import Erased, SerialHashing
from observability.metrics import SWEEPS_DONE, SWEEPS_FOUND

_PAGE_SIZE: Final = 100


class ErasureActivities:
    """Erasure of decommissioned devices.

    Args:
        engine: the bridge's database.
        hashing: computes the hashes that replace erased serial numbers; None to erase nothing.
        retention: how long the records of a decommissioned device are kept; None to keep them forever.
    """

    def __init__(self, engine: Engine, hashing: SerialHashing | None, retention: timedelta | None) -> None:
        self._engine = engine
        self._hashing = hashing
        self._retention = retention

    @activity.defn(name="erase_expired", no_thread_cancel_exception=True)
    def erase_expired(self) -> Erased:
        """Erase the next page of devices whose retention has ended, and return their number."""
        if self._hashing is None or self._retention is None:
            return Erased()
        before = datetime.now(UTC) - self._retention
        with transaction(self._engine) as session:
            count = erase_some(session, self._hashing, actor(), limit=_PAGE_SIZE, before=before)
        SWEEPS_FOUND.add(None, "erasure", count)
        SWEEPS_DONE.add(None, "erasure", count)
        return Erased(count=count)

"""Erasing devices that have been decommissioned for long enough."""

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
    """The sweep of what is over.

    Args:
        engine: the bridge's database.
        hashing: what stands for erased serial numbers; None where nothing is erased.
        retention: how long a decommissioned device is known; None for ever.
    """

    def __init__(self, engine: Engine, hashing: SerialHashing | None, retention: timedelta | None) -> None:
        self._engine = engine
        self._hashing = hashing
        self._retention = retention

    @activity.defn(name="erase_expired", no_thread_cancel_exception=True)
    def erase_expired(self) -> Erased:
        """Erase the next devices whose time is over; none when all are erased."""
        if self._hashing is None or self._retention is None:
            return Erased()
        before = datetime.now(UTC) - self._retention
        with transaction(self._engine) as session:
            count = erase_some(session, self._hashing, actor(), limit=_PAGE_SIZE, before=before)
        SWEEPS_FOUND.add(None, "erasure", count)
        SWEEPS_DONE.add(None, "erasure", count)
        return Erased(count=count)

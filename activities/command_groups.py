"""The activity that deletes the dynamic thing groups that commands no longer use."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity

from activities.bindings import transaction
from aws.groups import ThingGroups
from db.command_groups import lock_unused_group, unused_groups
from domain.failure import StepError
from observability.metrics import SWEEPS_DONE, SWEEPS_FAILED, SWEEPS_FOUND

logger = logging.getLogger("thingbridge.thing_groups")

_SWEEP: Final = "command_groups"


class CommandGroupActivities:
    """The sweep of the dynamic thing groups.

    Args:
        engine: the bridge's database.
        groups: the thing groups in AWS.
        unused_after: how long an unused dynamic group is kept.
    """

    def __init__(self, engine: Engine, groups: ThingGroups, *, unused_after: timedelta) -> None:
        self._engine = engine
        self._groups = groups
        self._unused_after = unused_after

    @activity.defn(name="sweep_command_groups", no_thread_cancel_exception=True)
    def sweep_command_groups(self) -> int:
        """Delete the dynamic groups that no command has used recently, since AWS allows few.

        Returns:
            The number of deleted groups. A group that cannot be deleted is left to the next sweep.
        """
        since = datetime.now(UTC) - self._unused_after
        with transaction(self._engine) as session:
            names = unused_groups(session, since)
        SWEEPS_FOUND.add(None, _SWEEP, len(names))
        deleted = 0
        for name in names:
            try:
                deleted += self._delete_unused(name, since)
            except (StepError, SQLAlchemyError):
                SWEEPS_FAILED.add(None, _SWEEP)
                logger.exception("thing group not deleted", extra={"thing_group": name})
        SWEEPS_DONE.add(None, _SWEEP, deleted)
        return deleted

    def _delete_unused(self, name: str, since: datetime) -> bool:
        """Delete a group while its row is locked; return False where a command has used it meanwhile."""
        with transaction(self._engine) as session:
            row = lock_unused_group(session, name, since)
            if row is None:
                return False
            self._groups.delete_dynamic(name, row.query)
            session.delete(row)
            return True

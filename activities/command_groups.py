"""Thing groups: found by name, or made for a query and deleted when no command uses them any more."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity

from activities.bindings import transaction
from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, AwsError, ConflictError, InvalidRequestError, NotFoundError
from db.command_groups import lock_unused_group, unused_groups, use_group
from domain.command import dynamic_group_name
from domain.failure import FailureCode, PermanentError, RetryLaterError
from observability.metrics import SWEEPS_DONE, SWEEPS_FAILED, SWEEPS_FOUND

logger = logging.getLogger("thingbridge.thing_groups")

# The one index that dynamic groups can be made over.
_INDEX: Final = "AWS_Things"
_ACTIVE: Final = "ACTIVE"
_SWEEP: Final = "command_groups"


class CommandGroupActivities:
    """The groups that commands are for.

    Args:
        aws: the way to AWS.
        engine: the bridge's database.
        name_prefix: how the names of dynamic groups begin.
        unused_after: how long a dynamic group is kept without being used.
        settles_seconds: how long to wait before looking again at a group that AWS is still building.
    """

    def __init__(
        self,
        aws: AwsClients,
        engine: Engine,
        *,
        name_prefix: str,
        unused_after: timedelta,
        settles_seconds: float,
    ) -> None:
        self._aws = aws
        self._engine = engine
        self._name_prefix = name_prefix
        self._unused_after = unused_after
        self._settles_seconds = settles_seconds

    def find(self, name: str) -> str:
        """The ARN of a thing group there is.

        Raises:
            ApplicationError: there is none of that name.
        """
        try:
            return self._ready(self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name))
        except NotFoundError:
            raise PermanentError(
                FailureCode.NO_SUCH_TARGET, f"there is no thing group {name} in this account and region"
            ) from None

    def for_query(self, query: str) -> str:
        """The ARN of the dynamic group of what a query finds, made where there is none yet.

        Raises:
            ApplicationError: AWS refuses the query or holds as many groups as it allows, or a group with
                another query bears the name; retryable, until AWS has built the group.
        """
        name = dynamic_group_name(self._name_prefix, query)
        with transaction(self._engine) as session:
            use_group(session, name, query)
        try:
            group = self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name)
        except NotFoundError:
            self._create(name, query)
            raise RetryLaterError(
                "ThingGroupNotActive", f"{name} was just made", self._settles_seconds
            ) from None
        if group.get("queryString") != query:
            raise PermanentError(
                FailureCode.INVALID_COMMAND,
                f"{group['thingGroupArn']} bears the name of this query's group but is not it: delete it",
            )
        return self._ready(group)

    @activity.defn(name="sweep_command_groups", no_thread_cancel_exception=True)
    def sweep_command_groups(self) -> int:
        """Delete the dynamic groups no command has used for long, and return how many; AWS allows few."""
        since = datetime.now(UTC) - self._unused_after
        with transaction(self._engine) as session:
            names = unused_groups(session, since)
        SWEEPS_FOUND.add(None, _SWEEP, len(names))
        deleted = 0
        for name in names:
            try:
                deleted += self._delete_unused(name, since)
            except (AwsError, SQLAlchemyError):
                SWEEPS_FAILED.add(None, _SWEEP)
                logger.exception("a thing group stays, until the next sweep", extra={"thing_group": name})
        SWEEPS_DONE.add(None, _SWEEP, deleted)
        return deleted

    def _create(self, name: str, query: str) -> None:
        try:
            self._aws.call(
                self._aws.iot.create_dynamic_thing_group,
                thingGroupName=name,
                indexName=_INDEX,
                queryString=query,
            )
        except InvalidRequestError as error:
            raise PermanentError(
                FailureCode.INVALID_COMMAND, f"AWS refuses the query: {error.what}"
            ) from None
        except NotFoundError as error:
            raise PermanentError(
                FailureCode.REFUSED_BY_AWS, f"fleet indexing is off in this account and region: {error.what}"
            ) from None
        except AlreadyExistsError as error:
            raise ConflictError(
                "ThingGroupNameTaken", f"made by another in between, to be looked at: {error.what}"
            ) from None

    def _ready(self, group: Mapping[str, Any]) -> str:
        arn: str = group["thingGroupArn"]
        status = group.get("status", _ACTIVE)  # static groups have none
        if status != _ACTIVE:
            raise RetryLaterError("ThingGroupNotActive", f"{arn} is {status}", self._settles_seconds)
        return arn

    def _delete_unused(self, name: str, since: datetime) -> bool:
        """Delete a group, its row held meanwhile; whether no command has come to use it in between."""
        with transaction(self._engine) as session:
            row = lock_unused_group(session, name, since)
            if row is None:
                return False
            with suppress(NotFoundError):
                group = self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name)
                # The query says that it is the bridge's own, the version that it was not changed meanwhile.
                if group.get("queryString") == row.query:
                    self._aws.call(
                        self._aws.iot.delete_dynamic_thing_group,
                        thingGroupName=name,
                        expectedVersion=group["version"],
                    )
            session.delete(row)
            return True

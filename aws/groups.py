"""Thing groups: find them by name, create dynamic ones for a fleet-indexing query, delete them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from domain.failure import FailureCode, PermanentError, RetryLaterError

# Dynamic groups exist for this index only.
_INDEX: Final = "AWS_Things"
_ACTIVE: Final = "ACTIVE"
# AWS builds a dynamic group within seconds, or within minutes for a large fleet.
_BUILD_CHECK_SECONDS: Final = 1.0


class ThingGroups:
    """The thing groups of the bridge's account.

    Args:
        aws: the AWS clients.
    """

    def __init__(self, aws: AwsClients) -> None:
        self._aws = aws

    def find(self, name: str) -> str:
        """Return the ARN of an existing thing group.

        Raises:
            PermanentError: no thing group has this name.
            RetryLaterError: AWS is still building the group.
        """
        try:
            return _active_arn(self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name))
        except NotFoundError:
            raise PermanentError(
                FailureCode.NO_SUCH_TARGET, f"there is no thing group {name} in this account and region"
            ) from None

    def get_or_create_dynamic(self, name: str, query: str) -> str:
        """Return the ARN of the dynamic group of this name and query; create it where it does not exist.

        Raises:
            PermanentError: AWS refuses the query, or a group with another query has the name.
            RetryLaterError: AWS is still building the group.
            AwsError: AWS refused the request or did not answer, or has as many groups as it allows.
        """
        try:
            group = self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name)
        except NotFoundError:
            self._create_dynamic(name, query)
            raise RetryLaterError(
                "ThingGroupNotActive", f"{name} was just created", _BUILD_CHECK_SECONDS
            ) from None
        if group.get("queryString") != query:
            raise PermanentError(
                FailureCode.INVALID_COMMAND,
                f"{group['thingGroupArn']} has the name of this query's group but another query: delete it",
            )
        return _active_arn(group)

    def delete_dynamic(self, name: str, query: str) -> None:
        """Delete the dynamic group of this name and query; a group with another query is left alone."""
        with suppress(NotFoundError):
            group = self._aws.call(self._aws.iot.describe_thing_group, thingGroupName=name)
            # The query proves that the bridge created the group; the version guards against a later change.
            if group.get("queryString") == query:
                self._aws.call(
                    self._aws.iot.delete_dynamic_thing_group,
                    thingGroupName=name,
                    expectedVersion=group["version"],
                )

    def _create_dynamic(self, name: str, query: str) -> None:
        try:
            self._aws.call(
                self._aws.iot.create_dynamic_thing_group,
                thingGroupName=name,
                indexName=_INDEX,
                queryString=query,
            )
        except InvalidRequestError as error:
            raise PermanentError(
                FailureCode.INVALID_COMMAND, f"AWS refuses the query: {error.message}"
            ) from None
        except NotFoundError as error:
            raise PermanentError(
                FailureCode.REFUSED_BY_AWS,
                f"fleet indexing is off in this account and region: {error.message}",
            ) from None
        except AlreadyExistsError as error:
            raise ConflictError(
                "ThingGroupNameTaken", f"the group was created by another caller meanwhile: {error.message}"
            ) from None


def _active_arn(group: Mapping[str, Any]) -> str:
    arn: str = group["thingGroupArn"]
    status = group.get("status", _ACTIVE)  # static groups have no status
    if status != _ACTIVE:
        raise RetryLaterError("ThingGroupNotActive", f"{arn} is {status}", _BUILD_CHECK_SECONDS)
    return arn

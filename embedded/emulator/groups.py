"""Thing groups: dynamic groups, which moto does not have, and their differences from static groups."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from moto.core.utils import utcnow
from moto.iot.models import FakeThingGroup

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.queries import read_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moto.iot.models import FakeThing, IoTBackend

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_INDEX = "AWS_Things"
_QUERY_VERSION = "2017-09-30"


class DynamicGroup(FakeThingGroup):
    """A group of the Things that a query finds. It is in moto's registry, so moto lists it too."""

    def __init__(self, name: str, query: str, properties: dict[str, Any], iot: IoTBackend) -> None:
        # The parent must be None: moto reads any text as the name of a parent.
        super().__init__(name, None, properties, iot.account_id, iot.region_name, iot.thing_groups)  # type: ignore[arg-type]
        self.query = query
        self.created_at = utcnow()

    def is_building(self, account: Account) -> bool:
        """Return whether AWS would still be adding Things to the group."""
        return (utcnow() - self.created_at).total_seconds() < account.settings.group_build_seconds

    def summary(self) -> dict[str, Any]:
        """Return the members that CreateDynamicThingGroup and DescribeThingGroup both return."""
        return {
            "thingGroupName": self.thing_group_name,
            "thingGroupArn": self.arn,
            "thingGroupId": self.thing_group_id,
            "indexName": _INDEX,
            "queryString": self.query,
            "queryVersion": _QUERY_VERSION,
        }


def things_in(group: FakeThingGroup, account: Account, region: str) -> list[FakeThing]:
    """Return the Things of a group. A dynamic group runs its query each time, and is empty while building."""
    if not isinstance(group, DynamicGroup):
        return list(group.things.values())
    if group.is_building(account):
        return []
    finds = read_query(group.query)
    return [thing for thing in account.iot(region).things.values() if finds(_indexed(thing, account, region))]


def create_dynamic_thing_group(call: Call, account: Account, _forward: Forward) -> Response:
    """Return the existing group for a repeated call, and refuse another query under the same name."""
    wanted, iot = call.parameters, account.iot(call.region)
    name, query = wanted["thingGroupName"], wanted["queryString"]
    properties = wanted.get("thingGroupProperties", {})
    if wanted.get("indexName", _INDEX) != _INDEX:
        raise AwsError(404, "ResourceNotFoundException", f"There is no index {wanted['indexName']}.")
    if wanted.get("queryVersion", _QUERY_VERSION) != _QUERY_VERSION:
        message = f"There is no query version {wanted['queryVersion']}."
        raise AwsError(400, "InvalidRequestException", message)
    read_query(query)
    existing = _group(name, account, call)
    if existing is not None:
        if not isinstance(existing, DynamicGroup):
            raise _exists(existing)
        if (existing.query, existing.thing_group_properties) != (query, properties):
            raise _exists(existing)
        return Response.of(existing.summary())
    at_most = account.settings.dynamic_groups_at_most
    if sum(isinstance(group, DynamicGroup) for group in iot.thing_groups.values()) >= at_most:
        message = f"The account has {at_most} dynamic thing groups, which is the quota."
        raise AwsError(410, "LimitExceededException", message)
    group = DynamicGroup(name, query, properties, iot)
    iot.thing_groups[group.arn] = group
    return Response.of(group.summary())


def delete_dynamic_thing_group(call: Call, account: Account, _forward: Forward) -> Response:
    """Delete a dynamic group. Succeed if the group does not exist, and refuse to delete a static group."""
    group = _group(call.parameters["thingGroupName"], account, call)
    if group is None:
        return Response.of({})
    if not isinstance(group, DynamicGroup):
        message = f"Thing group {group.thing_group_name} is not dynamic."
        raise AwsError(400, "InvalidRequestException", message)
    expected = call.parameters.get("expectedVersion")
    if expected is not None and expected != group.version:
        message = f"The version for thing group {group.thing_group_name} does not match the expected version."
        raise AwsError(409, "VersionConflictException", message)
    del account.iot(call.region).thing_groups[group.arn]
    return Response.of({})


def describe_thing_group(call: Call, account: Account, forward: Forward) -> Response:
    """Describe a group. A dynamic group also has its query and its status."""
    group = _group(call.parameters["thingGroupName"], account, call)
    if not isinstance(group, DynamicGroup):
        return forward()
    return Response.of(
        group.summary()
        | {
            "version": group.version,
            "thingGroupProperties": group.thing_group_properties,
            "thingGroupMetadata": {"creationDate": group.created_at.replace(tzinfo=UTC).timestamp()},
            "status": "BUILDING" if group.is_building(account) else "ACTIVE",
        }
    )


def create_thing_group(call: Call, account: Account, forward: Forward) -> Response:
    """Refuse a group with the name of a dynamic group, or with a dynamic group as its parent."""
    existing = _group(call.parameters["thingGroupName"], account, call)
    if isinstance(existing, DynamicGroup):
        raise _exists(existing)
    parent = call.parameters.get("parentGroupName")
    if parent is not None and isinstance(_group(parent, account, call), DynamicGroup):
        raise AwsError(
            400, "InvalidRequestException", f"Thing group {parent} is dynamic: it cannot have children."
        )
    return forward()


def change_static_group(call: Call, account: Account, forward: Forward) -> Response:
    """Refuse an operation of static groups on a dynamic group."""
    name, arn = call.parameters.get("thingGroupName"), call.parameters.get("thingGroupArn", "")
    group = account.iot(call.region).thing_groups.get(arn) if name is None else _group(name, account, call)
    if isinstance(group, DynamicGroup):
        message = f"Thing group {group.thing_group_name} is dynamic: {call.name} works only on static groups."
        raise AwsError(400, "InvalidRequestException", message)
    return forward()


def list_things_in_thing_group(call: Call, account: Account, forward: Forward) -> Response:
    """List the Things of a group. Those of a dynamic group are the ones that its query finds."""
    group = _group(call.parameters["thingGroupName"], account, call)
    if not isinstance(group, DynamicGroup):
        return forward()
    return Response.of({"things": [thing.thing_name for thing in things_in(group, account, call.region)]})


def _group(name: str, account: Account, call: Call) -> FakeThingGroup | None:
    iot = account.iot(call.region)
    arn = f"arn:{iot.partition}:iot:{call.region}:{iot.account_id}:thinggroup/{name}"
    return iot.thing_groups.get(arn)


def _exists(group: FakeThingGroup) -> AwsError:
    message = f"Thing group {group.thing_group_name} already exists in account with different properties"
    members = {"resourceId": group.thing_group_id, "resourceArn": group.arn}
    return AwsError(409, "ResourceAlreadyExistsException", message, **members)


def _indexed(thing: FakeThing, account: Account, region: str) -> dict[str, Any]:
    """Return the document of a Thing in the fleet index. No Thing is ever connected in the emulator."""
    shadow = account.classic_shadow(region, thing.thing_name)
    state: dict[str, Any] = shadow.document()["state"] if shadow else {}
    return {
        "thingName": thing.thing_name,
        "thingId": thing.thing_id,
        "thingTypeName": thing.thing_type.thing_type_name if thing.thing_type else None,
        "attributes": thing.attributes,
        "shadow": {**state, "hasDelta": "delta" in state},
        "connectivity": {"connected": False},
    }


DIFFERENCES: Mapping[str, Difference] = {
    "iot:CreateDynamicThingGroup": create_dynamic_thing_group,
    "iot:DeleteDynamicThingGroup": delete_dynamic_thing_group,
    "iot:DescribeThingGroup": describe_thing_group,
    "iot:CreateThingGroup": create_thing_group,
    "iot:UpdateThingGroup": change_static_group,
    "iot:DeleteThingGroup": change_static_group,
    "iot:AddThingToThingGroup": change_static_group,
    "iot:RemoveThingFromThingGroup": change_static_group,
    "iot:ListThingsInThingGroup": list_things_in_thing_group,
}

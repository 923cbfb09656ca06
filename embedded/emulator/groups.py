"""The fleet index: searches, and dynamic thing groups, which ministack does not have."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ministack.services import iot

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.queries import read_query
from embedded.emulator.registry import paged
from embedded.emulator.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call, Difference, Forward

_INDEX = "AWS_Things"
_QUERY_VERSION = "2017-09-30"
_SUMMARY = ("thingGroupName", "thingGroupArn", "thingGroupId", "indexName", "queryString", "queryVersion")


async def search_index(call: Call, _forward: Forward) -> Response:
    """Return the Things that a query finds. Ministack knows neither OR, NOT nor `shadow.hasDelta`."""
    _require_index(call.parameters.get("indexName", _INDEX))
    finds = read_query(call.parameters["queryString"])
    documents = [document for thing in iot._things.values() if finds(document := _indexed(thing))]
    page = paged("things", documents, call, key=lambda each: each["thingName"])
    things = [
        {name: value for name, value in document.items() if value is not None}
        | {"shadow": json.dumps(document["shadow"])}
        for document in page.members["things"]
    ]
    return Response.of(page.members | {"things": things})


async def create_dynamic_thing_group(call: Call, _forward: Forward) -> Response:
    """Return the existing group for a repeated call, and refuse another query under the same name."""
    wanted = call.parameters
    name, query = wanted["thingGroupName"], wanted["queryString"]
    description = wanted.get("thingGroupProperties", {}).get("thingGroupDescription")
    _require_index(wanted.get("indexName", _INDEX))
    if wanted.get("queryVersion", _QUERY_VERSION) != _QUERY_VERSION:
        message = f"There is no query version {wanted['queryVersion']}."
        raise AwsError(400, "InvalidRequestException", message)
    read_query(query)
    existing = iot._thing_groups.get(name)
    if existing is not None:
        same = existing["thingGroupProperties"].get("thingGroupDescription") == description
        if existing.get("queryString") != query or not same:
            raise _exists(existing)
        return Response.of({member: existing[member] for member in _SUMMARY})
    if len(dynamic_groups()) >= SETTINGS.dynamic_groups_at_most:
        message = f"The account has {SETTINGS.dynamic_groups_at_most} dynamic thing groups, which is the quota."
        raise AwsError(410, "LimitExceededException", message)
    iot._create_thing_group(name, {"thingGroupProperties": wanted.get("thingGroupProperties", {})})
    group = iot._thing_groups[name]
    group |= {"indexName": _INDEX, "queryString": query, "queryVersion": _QUERY_VERSION, "status": "BUILDING"}
    return Response.of({member: group[member] for member in _SUMMARY})


async def delete_dynamic_thing_group(call: Call, _forward: Forward) -> Response:
    """Delete a dynamic group. Succeed if the group does not exist, and refuse to delete a static group."""
    name, expected = call.parameters["thingGroupName"], call.parameters.get("expectedVersion")
    group = iot._thing_groups.get(name)
    if group is not None and "queryString" not in group:
        raise AwsError(400, "InvalidRequestException", f"Thing group {name} is not dynamic.")
    if group is not None and expected not in {None, group["version"]}:
        message = f"The version for thing group {name} does not match the expected version."
        raise AwsError(409, "VersionConflictException", message)
    iot._delete_thing_group(name)
    return Response.of({})


async def create_thing_group(call: Call, forward: Forward) -> Response:
    """Refuse a group with the name of a dynamic group, or with a dynamic group as its parent."""
    existing = iot._thing_groups.get(call.parameters["thingGroupName"])
    if existing is not None and "queryString" in existing:
        raise _exists(existing)
    parent = call.parameters.get("parentGroupName", "")
    if "queryString" in (iot._thing_groups.get(parent) or {}):
        message = f"Thing group {parent} is dynamic: it cannot have children."
        raise AwsError(400, "InvalidRequestException", message)
    return await forward()


async def change_static_group(call: Call, forward: Forward) -> Response:
    """Refuse an operation of static groups on a dynamic group."""
    name = call.parameters.get("thingGroupName") or call.parameters.get("thingGroupArn", "").rpartition("/")[2]
    if "queryString" in (iot._thing_groups.get(name) or {}):
        message = f"Thing group {name} is dynamic: {call.name} works only on static groups."
        raise AwsError(400, "InvalidRequestException", message)
    return await forward()


def dynamic_groups() -> list[dict[str, Any]]:
    """Return the dynamic groups of the account and region of the call."""
    return [group for group in iot._thing_groups.values() if "queryString" in group]


async def refresh() -> None:
    """Let every dynamic group contain the Things that its query finds, as AWS does with a little delay.

    A group is without Things, and its status is BUILDING, for some time after it was created.
    """
    for group in dynamic_groups():
        if time.time() < group["creationDate"] + SETTINGS.group_build_seconds:
            continue
        group["status"] = "ACTIVE"
        finds = read_query(group["queryString"])
        found = {name for name, thing in iot._things.items() if finds(_indexed(thing))}
        for name in found.symmetric_difference(group["things"]):
            change = iot._add_thing_to_group if name in found else iot._remove_thing_from_group
            await change({"thingGroupName": group["thingGroupName"], "thingName": name})


def is_building(target: str) -> bool:
    """Return whether a target of a job is a dynamic group that AWS is still building."""
    group = iot._thing_groups.get(target.rpartition(":thinggroup/")[2]) or {}
    return group.get("status") == "BUILDING"


def _require_index(name: str) -> None:
    if name != _INDEX or iot._thing_indexing_mode() == "OFF":
        raise AwsError(404, "ResourceNotFoundException", f"There is no index {name}: UpdateIndexingConfiguration.")


def _exists(group: Mapping[str, Any]) -> AwsError:
    message = f"Thing group {group['thingGroupName']} already exists in account with different properties"
    members = {"resourceId": group["thingGroupId"], "resourceArn": group["thingGroupArn"]}
    return AwsError(409, "ResourceAlreadyExistsException", message, **members)


def _indexed(thing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a Thing in the fleet index."""
    status, shadow = iot.get_thing_shadow(thing["thingName"], "")
    state = shadow["state"] if status == 200 else {}
    return {
        "thingName": thing["thingName"],
        "thingId": thing["thingId"],
        "thingTypeName": thing["thingTypeName"],
        "thingGroupNames": thing["thingGroupNames"],
        "attributes": thing["attributes"],
        "shadow": {**state, "hasDelta": "delta" in state},
        "connectivity": iot._thing_connectivity(iot.get_account_id(), iot.get_region(), thing["thingName"]),
    }


DIFFERENCES: Mapping[str, Difference] = {
    "iot:SearchIndex": search_index,
    "iot:CreateDynamicThingGroup": create_dynamic_thing_group,
    "iot:DeleteDynamicThingGroup": delete_dynamic_thing_group,
    "iot:CreateThingGroup": create_thing_group,
    **dict.fromkeys(
        (
            "iot:UpdateThingGroup",
            "iot:DeleteThingGroup",
            "iot:AddThingToThingGroup",
            "iot:RemoveThingFromThingGroup",
        ),
        change_static_group,
    ),
}

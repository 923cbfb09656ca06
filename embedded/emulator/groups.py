"""The fleet index, which is always on: searches, and dynamic thing groups, which ministack does not have."""

import json
import time
from collections.abc import Mapping
from typing import Any

from ministack.services import iot

from embedded.emulator.calls import SETTINGS, AwsError, Call, Forward, Response, difference, paged
from embedded.emulator.queries import read_query

_SUMMARY = ("thingGroupName", "thingGroupArn", "thingGroupId", "indexName", "queryString", "queryVersion")


@difference("iot:SearchIndex")
async def search_index(call: Call, _forward: Forward) -> Response:
    """Return the Things that a query finds. Ministack knows neither OR, NOT nor `shadow.hasDelta`."""
    finds = read_query(call.parameters["queryString"])
    documents = {name: document for name, thing in iot._things.items() if finds(document := _indexed(thing))}
    found = {name: each | {"shadow": json.dumps(each["shadow"])} for name, each in documents.items()}
    return paged("things", found, call)


@difference("iot:CreateDynamicThingGroup")
async def create_dynamic_thing_group(call: Call, _forward: Forward) -> Response:
    """Return the existing group for a repeated call, and refuse another query under the same name."""
    name, query = call.parameters["thingGroupName"], call.parameters["queryString"]
    read_query(query)
    existing = iot._thing_groups.get(name)
    if existing is None:
        if len(dynamic_groups()) >= SETTINGS.dynamic_groups_at_most:
            message = f"{SETTINGS.dynamic_groups_at_most} dynamic thing groups are the quota of the account."
            raise AwsError(410, "LimitExceededException", message)
        iot._create_thing_group(name, call.parameters)
        existing = iot._thing_groups[name]
        existing |= {"indexName": "AWS_Things", "queryVersion": "2017-09-30"}
        existing |= {"queryString": query, "status": "BUILDING"}
    elif existing.get("queryString") != query:
        message = f"Thing group {name} already exists in account with different properties"
        members = {"resourceId": existing["thingGroupId"], "resourceArn": existing["thingGroupArn"]}
        raise AwsError(409, "ResourceAlreadyExistsException", message, **members)
    return Response.of({member: existing[member] for member in _SUMMARY})


@difference("iot:DeleteDynamicThingGroup")
async def delete_dynamic_thing_group(call: Call, _forward: Forward) -> Response:
    """Delete a dynamic group. Succeed if there is no such group, and refuse to delete a static group."""
    name = call.parameters["thingGroupName"]
    if "queryString" not in iot._thing_groups.get(name, {"queryString": ""}):
        raise AwsError(400, "InvalidRequestException", f"Thing group {name} is not dynamic.")
    iot._delete_thing_group(name)
    return Response.of({})


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
    group = iot._thing_groups.get(target.rpartition(":thinggroup/")[2], {})
    return bool(group.get("status") == "BUILDING")


def _indexed(thing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a Thing in the fleet index."""
    _, shadow = iot.get_thing_shadow(thing["thingName"], "")
    state = shadow.get("state", {})
    connectivity = iot._thing_connectivity(iot.get_account_id(), iot.get_region(), thing["thingName"])
    members = ("thingName", "thingId", "thingTypeName", "thingGroupNames", "attributes")
    return {
        **{name: thing[name] for name in members if thing[name] is not None},
        "shadow": {**state, "hasDelta": "delta" in state},
        "connectivity": connectivity,
    }

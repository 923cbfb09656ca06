"""Device shadows, which moto stores in the Thing and deletes with it.

On AWS a shadow belongs to a Thing name. It survives the deletion of the Thing, and can be read, written and
deleted while no such Thing exists. The documents of moto differ too: `null` does not clear a section, and
equal nested objects leave an empty object in the delta. Therefore this module stores the shadows itself.
"""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.shadow_document import SECTIONS, Shadow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_DOCUMENT_LIMIT_BYTES = 8 * 1024
_NAMES_PER_PAGE = 25


def get_thing_shadow(call: Call, account: Account, _forward: Forward) -> Response:
    """Return the document of a shadow, even if its Thing does not exist."""
    shadow = _existing(call, account)
    return Response.of(shadow.document()) if shadow.raw is None else Response(HTTPStatus.OK, shadow.raw)


def update_thing_shadow(call: Call, account: Account, _forward: Forward) -> Response:
    """Create or update a shadow. Its Thing need not exist: a connected device can recreate its shadow."""
    if len(call.parameters["payload"]) > _DOCUMENT_LIMIT_BYTES:
        message = "The payload exceeds the maximum size allowed"
        raise AwsError(413, "RequestEntityTooLargeException", message)
    request = _read(call.parameters["payload"])
    shadows = account.shadows(call.region, call.parameters["thingName"])
    name = call.parameters.get("shadowName", "")
    current = shadows.get(name, Shadow(deleted=True))
    expected = request.get("version")
    if expected is not None and expected != (0 if current.deleted else current.version):
        raise AwsError(409, "ConflictException", "Version conflict")
    shadows[name] = current
    current.update(request["state"])
    sections = [section for section in SECTIONS if (request["state"] or {}).get(section) is not None]
    accepted = {
        "state": request["state"],
        "metadata": {section: current.metadata[section] for section in sections},
        "version": current.version,
        "timestamp": current.timestamp,
    }
    return Response.of(
        accepted | ({"clientToken": request["clientToken"]} if "clientToken" in request else {})
    )


def delete_thing_shadow(call: Call, account: Account, _forward: Forward) -> Response:
    """Delete a shadow. A second deletion returns 404; moto returns success."""
    shadow = _existing(call, account)
    shadow.delete()
    return Response.of({"version": shadow.version, "timestamp": shadow.timestamp})


def list_named_shadows_for_thing(call: Call, account: Account, _forward: Forward) -> Response:
    """List the existing named shadows in pages. Moto returns one page that includes deleted shadows."""
    shadows = account.shadows(call.region, call.parameters["thingName"])
    size = call.parameters.get("pageSize", _NAMES_PER_PAGE)
    after = call.parameters.get("nextToken", "")
    names = [name for name in sorted(shadows) if name > after and not shadows[name].deleted]
    page = names[:size]
    next_token = {"nextToken": page[-1]} if len(names) > size else {}
    return Response.of({"results": page, "timestamp": int(time.time()), **next_token})


def put_raw(account: Account, region: str, thing_name: str, payload: bytes) -> None:
    """Set the bytes that are returned as the classic shadow."""
    with account.lock:
        shadow = account.shadows(region, thing_name).setdefault("", Shadow(version=1))
        shadow.raw, shadow.deleted = payload, False


def forget(account: Account, region: str, thing_name: str) -> None:
    """Delete the classic shadow and its version."""
    with account.lock:
        account.shadows(region, thing_name).pop("", None)


def _existing(call: Call, account: Account) -> Shadow:
    thing_name, name = call.parameters["thingName"], call.parameters.get("shadowName", "")
    shadow = account.shadows(call.region, thing_name).get(name)
    if shadow is None or shadow.deleted:
        full_name = f"{thing_name}~{name}" if name else thing_name
        raise AwsError(404, "ResourceNotFoundException", f"No shadow exists with name: '{full_name}'")
    return shadow


def _read(payload: bytes) -> dict[str, Any]:
    try:
        request = json.loads(payload)
    except ValueError:
        raise AwsError(400, "InvalidRequestException", "Payload contains invalid json") from None
    if not isinstance(request, dict) or "state" not in request:
        raise AwsError(400, "InvalidRequestException", "Missing required node: state")
    state = request["state"]
    if state is not None:
        if not isinstance(state, dict):
            raise AwsError(400, "InvalidRequestException", "State node must be an object")
        for section, content in state.items():
            if section not in SECTIONS:
                raise AwsError(400, "InvalidRequestException", f"State contains an invalid node: '{section}'")
            if not isinstance(content, dict | None):
                raise AwsError(400, "InvalidRequestException", f"{section} node must be an object")
    return request


DIFFERENCES: Mapping[str, Difference] = {
    "iot-data:GetThingShadow": get_thing_shadow,
    "iot-data:UpdateThingShadow": update_thing_shadow,
    "iot-data:DeleteThingShadow": delete_thing_shadow,
    "iot-data:ListNamedShadowsForThing": list_named_shadows_for_thing,
}

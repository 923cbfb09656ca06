"""Things and certificates: the differences of ministack from AWS."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from ministack.services import iot

from embedded.emulator import connections
from embedded.emulator.calls import AwsError, Response
from embedded.emulator.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embedded.emulator.calls import Call, Difference, Forward

_ATTRIBUTES_WITHOUT_TYPE = 3
_PER_PAGE = 25

_detached_at: dict[tuple[str, str], float] = {}
"""When a principal was detached, by region and Thing name or certificate id. A restart takes longer."""


async def create_thing(call: Call, forward: Forward) -> Response:
    """Refuse a fourth attribute of a Thing without a type. Name the existing Thing in a conflict."""
    wanted = call.parameters
    _refuse_too_many(wanted.get("attributePayload", {}).get("attributes", {}), wanted.get("thingTypeName"))
    response = await forward()
    existing = iot._things.get(wanted["thingName"])
    billing_group = wanted.get("billingGroupName")
    if response.is_success and existing.setdefault("billingGroupName", billing_group) == billing_group:
        return response
    if existing is None:
        return response
    message = f"Thing {wanted['thingName']} already exists in account with different attributes"
    members = {"resourceId": existing["thingId"], "resourceArn": existing["thingArn"]}
    raise AwsError(409, "ResourceAlreadyExistsException", message, **members)


async def update_thing(call: Call, forward: Forward) -> Response:
    """Check the expected version and the number of attributes, and remove attributes without a value."""
    thing = iot._things.get(call.parameters["thingName"])
    if thing is not None:
        expected, version = call.parameters.get("expectedVersion"), thing["version"]
        if expected not in {None, version}:
            message = f"The version for thing {thing['thingName']} does not match the expected version."
            raise AwsError(409, "VersionConflictException", message)
        payload = call.parameters.get("attributePayload", {})
        kept = thing["attributes"] if payload.get("merge") else {}
        attributes = {**kept, **payload.get("attributes", {})}
        untyped = call.parameters.get("removeThingType")
        thing_type = call.parameters.get("thingTypeName") or (None if untyped else thing["thingTypeName"])
        _refuse_too_many({name: value for name, value in attributes.items() if value}, thing_type)
    response = await forward()
    if thing is not None:
        thing["attributes"] = {name: value for name, value in thing["attributes"].items() if value}
    return response


async def delete_thing(call: Call, forward: Forward) -> Response:
    """Refuse to delete a Thing while the detach of a principal is pending: it is asynchronous on AWS."""
    name = call.parameters["thingName"]
    if name in iot._things and _is_detach_pending(call.region, name):
        message = f"Cannot delete. Thing {name} is still attached to one or more principals"
        raise AwsError(400, "InvalidRequestException", message)
    return await forward()


async def attach_thing_principal(call: Call, forward: Forward) -> Response:
    """Refuse a second Thing for a principal of which one Thing is the exclusive Thing."""
    certificate = iot._certificates.get(call.parameters["principal"].rpartition("/")[2])
    exclusive = call.parameters.get("thingPrincipalType") == "EXCLUSIVE_THING"
    arn = iot._thing_arn(call.parameters["thingName"])
    if certificate is not None:
        others = [thing for thing in certificate["attachedThings"] if thing != arn]
        if others and (exclusive or certificate.get("exclusiveThing") in others):
            message = f"Principal {call.parameters['principal']} is already attached to another thing"
            raise AwsError(400, "InvalidRequestException", message)
    response = await forward()
    if response.is_success and certificate is not None and exclusive:
        certificate["exclusiveThing"] = arn
    return response


async def detach_thing_principal(call: Call, forward: Forward) -> Response:
    """Detach a principal, and record when."""
    response = await forward()
    if response.is_success:
        certificate_id = call.parameters["principal"].rpartition("/")[2]
        for key in (call.parameters["thingName"], certificate_id):
            _detached_at[call.region, key] = time.monotonic()
        iot._certificates[certificate_id].pop("exclusiveThing", None)
    return response


async def list_things(call: Call, _forward: Forward) -> Response:
    """List Things in pages."""
    wanted = call.parameters
    found = [
        {name: thing[name] for name in ("thingName", "thingArn", "attributes", "version")}
        | ({"thingTypeName": thing["thingTypeName"]} if thing["thingTypeName"] else {})
        for thing in iot._things.values()
        if wanted.get("attributeName") is None
        or thing["attributes"].get(wanted["attributeName"]) == wanted.get("attributeValue")
        if wanted.get("thingTypeName") in {None, thing["thingTypeName"]}
    ]
    return paged("things", found, call, key=lambda thing: thing["thingName"])


async def create_keys_and_certificate(call: Call, _forward: Forward) -> Response:
    """Generate a key in a thread: ministack answers no other call meanwhile."""
    active = str(call.parameters.get("setAsActive", False)).lower()
    return Response(*await asyncio.to_thread(_issued, iot._create_keys_and_certificate, {"setAsActive": active}))


async def create_certificate_from_csr(call: Call, _forward: Forward) -> Response:
    """Sign a certificate in a thread: ministack answers no other call meanwhile."""
    active = str(call.parameters.get("setAsActive", False)).lower()
    return Response(
        *await asyncio.to_thread(
            _issued, iot._create_certificate_from_csr, call.parameters, {"setAsActive": active}
        )
    )


async def list_certificates(call: Call, _forward: Forward) -> Response:
    """List certificates in pages, the newest first."""
    ascending = call.parameters.get("ascendingOrder", False)
    members = ("certificateArn", "certificateId", "status", "creationDate")
    found = [{name: each[name] for name in members} for each in iot._certificates.values()]
    return paged(
        "certificates",
        found,
        call,
        key=lambda each: f"{each['creationDate']:.6f}/{each['certificateId']}",
        reverse=not ascending,
        size="pageSize",
        token="marker",
        next_token="nextMarker",
    )


async def update_certificate(call: Call, forward: Forward) -> Response:
    """Change the status. Connections of a certificate that is no longer active end some time later."""
    response = await forward()
    if response.is_success and call.parameters["newStatus"] != "ACTIVE":
        connections.end_later(call.parameters["certificateId"], SETTINGS.disconnect_seconds)
    return response


async def delete_certificate(call: Call, forward: Forward) -> Response:
    """Refuse to delete a certificate while its detach from a Thing is pending."""
    certificate = iot._certificates.get(call.parameters["certificateId"])
    pending = _is_detach_pending(call.region, call.parameters["certificateId"])
    if certificate is not None and certificate["status"] != "ACTIVE" and pending:
        message = f"Things must be detached before deletion (arn: {certificate['certificateArn']})"
        raise AwsError(409, "DeleteConflictException", message)
    return await forward()


def paged(
    name: str,
    found: Sequence[dict[str, Any]],
    call: Call,
    *,
    key: Callable[[dict[str, Any]], str],
    reverse: bool = False,
    size: str = "maxResults",
    token: str = "nextToken",
    next_token: str = "nextToken",
) -> Response:
    """Return one page of a listing. Its token is a key, so the page after a deleted entry is complete.

    Args:
        name: the member of the response that contains the entries.
        found: all entries, in any order.
        call: the call, with the token and the size of the page.
        key: returns the text that an entry is sorted by.
        reverse: true to list the greatest key first.
        size: the parameter that contains the size.
        token: the parameter that contains the token.
        next_token: the member of the response that contains the next token.
    """
    found = sorted(found, key=key, reverse=reverse)
    if token in call.parameters:
        after = b64decode(call.parameters[token]).decode()
        found = [each for each in found if (key(each) < after if reverse else key(each) > after)]
    page = found[: call.parameters.get(size, _PER_PAGE)]
    more = len(found) > len(page)
    return Response.of(
        {name: page} | ({next_token: b64encode(key(page[-1]).encode()).decode()} if more else {})
    )


def forget_detaches() -> None:
    """Forget the detaches that are pending."""
    _detached_at.clear()


def _issued(issue: Callable[..., tuple[int, dict[str, str], bytes]], *arguments: Any) -> tuple[int, bytes]:
    status, _, body = issue(*arguments)
    return status, body


def _is_detach_pending(region: str, key: str) -> bool:
    detached_at = _detached_at.get((region, key))
    return detached_at is not None and time.monotonic() < detached_at + SETTINGS.detach_seconds


def _refuse_too_many(attributes: Mapping[str, str], thing_type: str | None) -> None:
    if thing_type is None and len(attributes) > _ATTRIBUTES_WITHOUT_TYPE:
        message = f"A Thing without a type has at most {_ATTRIBUTES_WITHOUT_TYPE} attributes."
        raise AwsError(400, "InvalidRequestException", message)


DIFFERENCES: Mapping[str, Difference] = {
    "iot:CreateThing": create_thing,
    "iot:UpdateThing": update_thing,
    "iot:DeleteThing": delete_thing,
    "iot:AttachThingPrincipal": attach_thing_principal,
    "iot:DetachThingPrincipal": detach_thing_principal,
    "iot:ListThings": list_things,
    "iot:CreateKeysAndCertificate": create_keys_and_certificate,
    "iot:CreateCertificateFromCsr": create_certificate_from_csr,
    "iot:ListCertificates": list_certificates,
    "iot:UpdateCertificate": update_certificate,
    "iot:DeleteCertificate": delete_certificate,
}

"""The operations on Things and certificates that moto implements differently."""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import UTC
from typing import TYPE_CHECKING, Any

from moto.iot.models import IoTBackend

from embedded.emulator.calls import AwsError, Response

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from moto.iot.models import FakeThing

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_ATTRIBUTES_WITHOUT_TYPE = 3
_CERTIFICATES_PER_PAGE = 25


def create_thing(call: Call, account: Account, forward: Forward) -> Response:
    """Return the existing Thing for a repeated call, and refuse a repeated call with another configuration.

    Moto creates a new Thing of that name, without the attributes of the old one.
    """
    wanted = call.parameters
    attributes = wanted.get("attributePayload", {}).get("attributes", {})
    thing_type, billing_group = wanted.get("thingTypeName"), wanted.get("billingGroupName")
    _refuse_too_many(attributes, thing_type)
    thing = account.thing(call.region, wanted["thingName"])
    if thing is None:
        return forward()
    if (thing.attributes, _type_of(thing), thing.billing_group_name) != (
        attributes,
        thing_type,
        billing_group,
    ):
        message = f"Thing {thing.thing_name} already exists in account with different attributes"
        raise AwsError(
            409, "ResourceAlreadyExistsException", message, resourceId=thing.thing_id, resourceArn=thing.arn
        )
    return Response.of({"thingName": thing.thing_name, "thingArn": thing.arn, "thingId": thing.thing_id})


def update_thing(call: Call, account: Account, forward: Forward) -> Response:
    """Check the expected version and increase the version with each update. Moto does neither."""
    thing = account.thing(call.region, call.parameters["thingName"])
    if thing is None:
        return forward()
    _refuse_other_version(call, thing)
    payload = call.parameters.get("attributePayload", {})
    kept = thing.attributes if payload.get("merge") else {}
    attributes = {name: value for name, value in {**kept, **payload.get("attributes", {})}.items() if value}
    untyped = call.parameters.get("removeThingType")
    _refuse_too_many(
        attributes, call.parameters.get("thingTypeName") or (None if untyped else _type_of(thing))
    )
    response = forward()
    thing.version += response.is_success
    return response


def delete_thing(call: Call, account: Account, forward: Forward) -> Response:
    """Delete a Thing. Succeed if it does not exist, and refuse with 400 if a principal is attached.

    DetachThingPrincipal is asynchronous: a principal counts as attached for some seconds after it. Moto
    returns 404 and 409, detaches at once, and leaves the deleted Thing in its groups.
    """
    name = call.parameters["thingName"]
    thing = account.thing(call.region, name)
    if thing is None:
        return Response.of({})
    _refuse_other_version(call, thing)
    attached = any(thing_name == name for _, thing_name in account.iot(call.region).principal_things)
    if attached or account.is_detach_pending(call.region, name):
        message = f"Cannot delete. Thing {name} is still attached to one or more principals"
        raise AwsError(400, "InvalidRequestException", message)
    for group in account.iot(call.region).thing_groups.values():
        group.things.pop(thing.arn, None)
    return forward()


def detach_thing_principal(call: Call, account: Account, forward: Forward) -> Response:
    """Detach a principal and record the time, for `delete_thing`."""
    response = forward()
    if response.is_success:
        account.record_detach(call.region, call.parameters["thingName"])
    return response


def create_keys_and_certificate(call: Call, account: Account, _forward: Forward) -> Response:
    """Create a certificate as moto does, but generate its key without the lock, because that is slow."""
    scratch = IoTBackend(call.region, account.iot(call.region).account_id)
    certificate, keys = scratch.create_keys_and_certificate(call.parameters.get("setAsActive", False))
    with account.lock:
        account.iot(call.region).certificates[certificate.certificate_id] = certificate
    return Response.of(
        {
            "certificateArn": certificate.arn,
            "certificateId": certificate.certificate_id,
            "certificatePem": certificate.certificate_pem,
            "keyPair": keys,
        }
    )


def list_certificates(call: Call, account: Account, _forward: Forward) -> Response:
    """List certificates in pages, the newest first. Moto returns one page, and is slow if there are many."""
    size = call.parameters.get("pageSize", _CERTIFICATES_PER_PAGE)
    ascending = call.parameters.get("ascendingOrder", False)
    keyed = {
        f"{certificate.creation_date.isoformat()}/{certificate.certificate_id}": certificate
        for certificate in account.iot(call.region).certificates.values()
    }
    keys = sorted(keyed, reverse=not ascending)
    if "marker" in call.parameters:
        last = b64decode(call.parameters["marker"]).decode()
        keys = [key for key in keys if (key > last if ascending else key < last)]
    page = keys[:size]
    next_marker = {"nextMarker": b64encode(page[-1].encode()).decode()} if len(keys) > size else {}
    certificates = [
        {
            "certificateArn": keyed[key].arn,
            "certificateId": keyed[key].certificate_id,
            "status": keyed[key].status,
            "creationDate": _epoch_seconds(keyed[key].creation_date),
        }
        for key in page
    ]
    return Response.of({"certificates": certificates, **next_marker})


def delete_certificate(call: Call, account: Account, forward: Forward) -> Response:
    """Delete a certificate after moto's checks, but faster: moto scans all certificates per attachment."""
    iot = account.iot(call.region)
    certificate = iot.certificates.get(call.parameters["certificateId"])
    if certificate is None:
        return forward()
    if certificate.status == "ACTIVE":
        message = (
            f"Certificate must be deactivated (not ACTIVE) before deletion. id={certificate.certificate_id}"
        )
        raise AwsError(406, "CertificateStateException", message)
    if any(principal == certificate.arn for principal, _ in iot.principal_things):
        message = f"Things must be detached before deletion (arn: {certificate.arn})"
        raise AwsError(409, "DeleteConflictException", message)
    with_policy = any(principal == certificate.arn for principal, _ in iot.principal_policies)
    if with_policy and not call.parameters.get("forceDelete", False):
        message = f"Certificate policies must be detached before deletion (arn: {certificate.arn})"
        raise AwsError(409, "DeleteConflictException", message)
    for attachment in [key for key in iot.principal_policies if key[0] == certificate.arn]:
        del iot.principal_policies[attachment]
    del iot.certificates[certificate.certificate_id]
    return Response.of({})


def delete_connection(call: Call, _account: Account, _forward: Forward) -> Response:
    """Return 404, because no device is ever connected in the emulator. Moto lacks this operation."""
    message = f"No connection of client {call.parameters['clientId']}"
    raise AwsError(404, "ResourceNotFoundException", message)


def _type_of(thing: FakeThing) -> str | None:
    return thing.thing_type.thing_type_name if thing.thing_type else None


def _refuse_too_many(attributes: Mapping[str, Any], thing_type: str | None) -> None:
    if len(attributes) > _ATTRIBUTES_WITHOUT_TYPE and thing_type is None:
        message = f"A Thing without a thing type can have {_ATTRIBUTES_WITHOUT_TYPE} attributes at most"
        raise AwsError(400, "InvalidRequestException", message)


def _refuse_other_version(call: Call, thing: FakeThing) -> None:
    expected = call.parameters.get("expectedVersion")
    if expected is not None and expected != thing.version:
        message = f"The version for thing {thing.thing_name} does not match the expected version."
        raise AwsError(409, "VersionConflictException", message)


def _epoch_seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()


DIFFERENCES: Mapping[str, Difference] = {
    "iot:CreateThing": create_thing,
    "iot:UpdateThing": update_thing,
    "iot:DeleteThing": delete_thing,
    "iot:DetachThingPrincipal": detach_thing_principal,
    "iot:ListCertificates": list_certificates,
    "iot:DeleteCertificate": delete_certificate,
    "iot-data:DeleteConnection": delete_connection,
}

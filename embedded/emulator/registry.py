"""Things and certificates: the differences of ministack from AWS."""

import asyncio
import time
from math import inf
from typing import Any

from cryptography.x509 import load_pem_x509_certificate
from ministack.core import x509_utils
from ministack.services import iot

from embedded.emulator import connections
from embedded.emulator.calls import SETTINGS, AwsError, Call, Forward, Response, difference, paged

detached_at: dict[tuple[str, str], float] = {}
"""When it was detached, by region and Thing name or certificate id. Not saved: a restart takes longer."""


@difference("iot:UpdateThing")
async def update_thing(call: Call, forward: Forward) -> Response:
    """Check the expected version, and remove attributes without a value."""
    thing = iot._things.get(call.parameters["thingName"])
    if thing and call.parameters.get("expectedVersion") not in {None, thing["version"]}:
        message = f"The version for thing {thing['thingName']} does not match the expected version."
        raise AwsError(409, "VersionConflictException", message)
    response = await forward()
    thing["attributes"] = {name: value for name, value in thing["attributes"].items() if value}
    return response


@difference("iot:DeleteThing")
async def delete_thing(call: Call, forward: Forward) -> Response:
    """Refuse to delete a Thing while the detach of a principal is pending: it is asynchronous on AWS."""
    name = call.parameters["thingName"]
    if name in iot._things and _is_detach_pending(call.region, name):
        message = f"Cannot delete. Thing {name} is still attached to one or more principals"
        raise AwsError(400, "InvalidRequestException", message)
    return await forward()


@difference("iot:ListThings")
async def list_things(call: Call, _forward: Forward) -> Response:
    """List Things in pages."""
    found = {
        name: {key: thing[key] for key in ("thingName", "thingArn", "attributes", "version", "thingTypeName")}
        for name, thing in iot._things.items()
        if call.parameters.get("thingTypeName") in {None, thing["thingTypeName"]}
        if thing["attributes"].get(call.parameters.get("attributeName"))
        == call.parameters.get("attributeValue")
    }
    return paged("things", found, call)


@difference("iot:AttachThingPrincipal")
async def attach_thing_principal(call: Call, forward: Forward) -> Response:
    """Refuse a second Thing for a principal that is attached to one exclusively."""
    principal = call.parameters["principal"]
    certificate = iot._certificates.get(principal.rpartition("/")[2], {})
    exclusive = call.parameters.get("thingPrincipalType") == "EXCLUSIVE_THING"
    arn = iot._thing_arn(call.parameters["thingName"])
    others = {thing for thing in certificate.get("attachedThings", []) if thing != arn}
    if others and (exclusive or certificate.get("exclusiveThing") in others):
        message = f"Principal {principal} is already attached to another thing"
        raise AwsError(400, "InvalidRequestException", message)
    response = await forward()
    if exclusive:
        certificate["exclusiveThing"] = arn
    return response


@difference("iot:DetachThingPrincipal")
async def detach_thing_principal(call: Call, forward: Forward) -> Response:
    """Detach a principal, and record when. A repeated call records nothing."""
    name, certificate_id = call.parameters["thingName"], call.parameters["principal"].rpartition("/")[2]
    certificate = iot._certificates.get(certificate_id, {})
    attached = iot._thing_arn(name) in certificate.get("attachedThings", [])
    response = await forward()
    if attached:
        detached_at[call.region, name] = detached_at[call.region, certificate_id] = time.monotonic()
    return response


@difference("iot:CreateKeysAndCertificate")
async def create_keys_and_certificate(call: Call, _forward: Forward) -> Response:
    """Generate a key in a thread: ministack would answer no other call meanwhile."""
    ca, key = iot._ensure_ca()
    signed = await asyncio.to_thread(x509_utils.sign_leaf_certificate, ca, key, "AWS IoT Certificate")
    pem, private_key, public_key = signed
    created = _register(call, pem)
    return Response.of(created | {"keyPair": {"PrivateKey": private_key, "PublicKey": public_key}})


@difference("iot:CreateCertificateFromCsr")
async def create_certificate_from_csr(call: Call, _forward: Forward) -> Response:
    """Sign a certificate in a thread: ministack would answer no other call meanwhile."""
    ca, key = iot._ensure_ca()
    csr = call.parameters["certificateSigningRequest"]
    try:
        pem = await asyncio.to_thread(x509_utils.sign_certificate_request, ca, key, csr)
    except ValueError:
        raise AwsError(400, "InvalidRequestException", "CSR violates constraints") from None
    return Response.of(_register(call, pem))


@difference("iot:ListCertificates")
async def list_certificates(call: Call, _forward: Forward) -> Response:
    """List certificates in pages, the newest first."""
    found = {
        f"{each['creationDate']:.6f}/{each['certificateId']}": {
            name: each[name] for name in ("certificateArn", "certificateId", "status", "creationDate")
        }
        for each in iot._certificates.values()
    }
    return paged("certificates", found, call, reverse=not call.parameters.get("ascendingOrder", False))


@difference("iot:DescribeCertificate")
async def describe_certificate(_call: Call, forward: Forward) -> Response:
    """Also return the validity of a certificate."""
    described = (await forward()).members["certificateDescription"]
    certificate = load_pem_x509_certificate(described["certificatePem"].encode())
    times = {"notBefore": certificate.not_valid_before_utc, "notAfter": certificate.not_valid_after_utc}
    validity = {name: time.timestamp() for name, time in times.items()}
    return Response.of({"certificateDescription": described | {"validity": validity}})


@difference("iot:UpdateCertificate")
async def update_certificate(call: Call, forward: Forward) -> Response:
    """Change the status. Connections of a certificate that is no longer active end some time later."""
    response = await forward()
    if call.parameters["newStatus"] != "ACTIVE":
        connections.end_later(call.parameters["certificateId"], SETTINGS.disconnect_seconds)
    return response


@difference("iot:DeleteCertificate")
async def delete_certificate(call: Call, forward: Forward) -> Response:
    """Refuse to delete a certificate while its detach from a Thing is pending."""
    certificate = iot._certificates.get(call.parameters["certificateId"], {})
    pending = _is_detach_pending(call.region, call.parameters["certificateId"])
    if pending and certificate.get("status") == "INACTIVE":
        message = f"Things must be detached before deletion (arn: {certificate['certificateArn']})"
        raise AwsError(409, "DeleteConflictException", message)
    return await forward()


def _register(call: Call, pem: str) -> dict[str, Any]:
    """Add a certificate. Not in a thread: this process may be copying the certificates to save them."""
    certificate_id = x509_utils.get_certificate_id(pem)
    status = "ACTIVE" if call.parameters.get("setAsActive") else "INACTIVE"
    record = iot._certificates[certificate_id] = iot._certificate_record(certificate_id, pem, status)
    return {name: record[name] for name in ("certificateArn", "certificateId", "certificatePem")}


def _is_detach_pending(region: str, key: str) -> bool:
    return time.monotonic() < detached_at.get((region, key), -inf) + SETTINGS.detach_seconds

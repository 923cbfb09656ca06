"""Enrol a device by fleet provisioning: `python -m examples.device.enrolment --help`.

The device has a claim certificate, which its manufacturer installs on many devices. With it the device
requests a certificate of its own over MQTT, and registers its Thing from a provisioning template.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

from awscrt import mqtt5, mqtt_request_response
from awsiot import V2ServiceException, iotidentity, mqtt5_client_builder

from examples.device.device import Endpoint, Identity

_CONNECT_SECONDS: Final = 10.0
_REQUEST_TIMEOUT_SECONDS: Final = 20
"""Longer than AWS waits for a pre-provisioning hook."""
_RESPONSES: Final = 4
"""The response topics of both requests, accepted and rejected."""

_DESCRIPTION = """\
Enrol a device with a claim certificate: request a certificate of its own, and register its Thing from a
provisioning template. Writes the certificate and the private key to a folder, and prints the Thing name.
"""

_Response = TypeVar("_Response")


class EnrolmentError(Exception):
    """The device could not enrol, and may try again."""


class EnrolmentRefusedError(EnrolmentError):
    """AWS refused a request of the device.

    Attributes:
        code: the error code of AWS. `AccessDenied` means that the device may not enrol.
        reason: the message of AWS.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Claim:
    """What the manufacturer installs on each device: a claim certificate, and where to enrol with it."""

    identity: Identity
    template_name: str
    client_id_prefix: str
    """The prefix of the client ids that the policy of the claim certificate allows."""
    endpoint: Endpoint


@dataclass(frozen=True)
class Enrolled:
    """An enrolled device: its Thing, whose name is its client id, and its certificate and key."""

    thing_name: str
    certificate_id: str
    identity: Identity


def enrol(claim: Claim, parameters: Mapping[str, str]) -> Enrolled:
    """Request a certificate and register the Thing.

    Args:
        claim: the claim certificate, and where to enrol with it.
        parameters: the parameters of the template that the device sends, such as its serial number.

    Raises:
        EnrolmentRefusedError: AWS refused a request, for example because the serial number may not enrol.
        EnrolmentError: the device could not connect, or got no response.
        ValueError: the claim certificate, its key or the authority is not valid.
    """
    with _connected(claim) as client:
        options = mqtt_request_response.ClientOptions(_RESPONSES, 0, _REQUEST_TIMEOUT_SECONDS)
        identity = iotidentity.IotIdentityClientV2(client, options)
        created: iotidentity.CreateKeysAndCertificateResponse = _result(
            identity.create_keys_and_certificate(iotidentity.CreateKeysAndCertificateRequest())
        )
        # The registration activates the certificate. AWS deletes a certificate that is not registered.
        registered: iotidentity.RegisterThingResponse = _result(
            identity.register_thing(
                iotidentity.RegisterThingRequest(
                    template_name=claim.template_name,
                    certificate_ownership_token=created.certificate_ownership_token,
                    parameters=dict(parameters),
                )
            )
        )
    return Enrolled(
        thing_name=registered.thing_name,
        certificate_id=created.certificate_id,
        identity=Identity(created.certificate_pem.encode(), created.private_key.encode()),
    )


@contextmanager
def _connected(claim: Claim) -> Iterator[mqtt5.Client]:
    """Connect with the claim certificate. Only the first attempt counts: the caller decides about others."""
    address = f"{claim.endpoint.host}:{claim.endpoint.port}"
    connected: Future[None] = Future()
    stopped: Future[None] = Future()

    def on_failure(failure: mqtt5.LifecycleConnectFailureData) -> None:
        if not connected.done():
            connack = failure.connack_packet
            reason = f"AWS answered {connack.reason_code.name}" if connack else failure.exception
            connected.set_exception(
                EnrolmentError(f"cannot connect to {address} with the claim certificate: {reason}")
            )

    def on_success(_: mqtt5.LifecycleConnectSuccessData) -> None:
        if not connected.done():
            connected.set_result(None)

    claim.identity.check()
    claim.endpoint.check()
    try:
        client = mqtt5_client_builder.mtls_from_bytes(
            claim.identity.certificate,
            claim.identity.private_key,
            endpoint=claim.endpoint.host,
            port=claim.endpoint.port,
            ca_bytes=claim.endpoint.ca,
            client_id=f"{claim.client_id_prefix}{uuid4()}",
            on_lifecycle_connection_success=on_success,
            on_lifecycle_connection_failure=on_failure,
            on_lifecycle_stopped=lambda _: stopped.set_result(None),
        )
    except Exception as error:  # the SDK raises no narrower class
        raise ValueError(f"cannot prepare a connection to {address}: {error}") from error
    client.start()
    try:
        try:
            connected.result(_CONNECT_SECONDS)
        except TimeoutError:
            raise EnrolmentError(f"no connection to {address} within {_CONNECT_SECONDS:g} s") from None
        yield client
    finally:
        client.stop()
        with suppress(TimeoutError):
            stopped.result(_CONNECT_SECONDS)


def _result(future: Future[_Response]) -> _Response:
    """Wait for the response. The SDK fails the future when the request takes too long."""
    try:
        return future.result()
    except V2ServiceException as error:
        refusal = error.modeled_error
        if refusal is None:
            raise EnrolmentError(f"{error.message}: {error.inner_error}") from error
        raise EnrolmentRefusedError(str(refusal.error_code), str(refusal.error_message)) from None


def main(arguments: list[str] | None = None) -> int:
    """Enrol a device, and return the exit code: 1 if AWS refused it, 2 after another error."""
    options = _options(arguments)
    parameters = {
        "SerialNumber": options.serial_number,
        "Model": options.model,
        "FirmwareVersion": options.firmware_version,
    }
    try:
        claim = Claim(
            Identity.from_files(options.claim_cert, options.claim_key),
            options.template,
            options.client_id_prefix,
            Endpoint(options.host, options.port, options.ca and options.ca.read_bytes()),
        )
        enrolled = enrol(claim, parameters)
        enrolled.identity.write_files(options.save_to, enrolled.thing_name)
    except EnrolmentRefusedError as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error: cannot use {error.filename}: {error.strerror}\n")
        return 2
    except (EnrolmentError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{enrolled.thing_name}\n")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.device.enrolment", description=_DESCRIPTION)
    add = parser.add_argument
    add("--host", default="localhost", help="the endpoint for devices (default: localhost)")
    add("--port", type=int, default=8883, help="its port (default: 8883)")
    add(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the certificate of the endpoint's authority, as PEM (default: the authorities of this system)",
    )
    add("--claim-cert", type=Path, metavar="FILE", required=True, help="the claim certificate, as PEM")
    add("--claim-key", type=Path, metavar="FILE", required=True, help="its private key, as PEM")
    add("--template", metavar="NAME", required=True, help="the provisioning template")
    add("--client-id-prefix", metavar="PREFIX", default="", help="of the client ids that the claim may use")
    add("--serial-number", metavar="NUMBER", required=True, help="the serial number of the device")
    add("--model", default="example", help="its model (default: example)")
    add("--firmware-version", metavar="VERSION", default="1.0.0", help="of the device (default: 1.0.0)")
    add("--save-to", type=Path, metavar="FOLDER", required=True, help="for THING.pem and THING.key")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

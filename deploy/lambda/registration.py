"""The registration: it registers a Thing created by fleet provisioning with the bridge."""

import functools
import logging
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import boto3
from botocore.config import Config

from thingbridge_api import Api, NoResponseError, ThingName, null_if_zero, tenant_from_environment

if TYPE_CHECKING:
    from types_boto3_iot import IoTClient

# Thing attributes. The bridge sets the first on the Things that it creates; the template sets the others.
_DEVICE_ID: Final = "deviceId"
_CERTIFICATE_ID: Final = "certificateId"
_CLAIM_CERTIFICATE_ID: Final = "claimCertificateId"
_COPIED: Final = ("model", "firmwareVersion", "label")

_OPERATIONS: Final = ("CREATED", "UPDATED")
_REGISTERED: Final = 200
_REFUSED: Final = 400
_POLL_SECONDS: Final = 0.5
_CALL_SECONDS: Final = 6.0
_RESERVE_SECONDS: Final = 0.5

logger = logging.getLogger("thingbridge-lambda")
logger.setLevel(logging.INFO)


class NotRegisteredError(RuntimeError):
    """The Thing cannot be registered yet. Raised so that Lambda retries the invocation."""


class Registrar:
    """Registers Things with the bridge.

    Args:
        api: the API of the bridge.
        iot: a client of the registry.
        tenant_id: register only Things of this tenant; the zero UUID for no tenant; None for every Thing.
    """

    def __init__(self, api: Api, iot: "IoTClient", tenant_id: UUID | None) -> None:
        self._api = api
        self._iot = iot
        self._tenant_id = tenant_id

    @classmethod
    def from_environment(cls) -> "Registrar":
        """Return the registrar configured by the environment variables.

        Raises:
            ConfigurationError: a variable is missing or wrong.
        """
        config = Config(
            connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 4}
        )
        return cls(Api.from_environment(), boto3.client("iot", config=config), tenant_from_environment())

    def __call__(self, event: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Register the Thing of a registry event.

        Raises:
            NotRegisteredError: the certificate is not attached yet, or the bridge is busy or unavailable.
        """
        ends = time.monotonic() + seconds
        name = ThingName.read(event.get("thingName"))
        if event.get("operation") not in _OPERATIONS:
            return _ignored("the event is not the creation or update of a Thing")
        if name is None or (self._tenant_id and null_if_zero(self._tenant_id) != name.tenant_id):
            return _ignored("the Thing name does not belong to this tenant")
        while True:
            thing = self._thing(str(name))
            attributes = thing.get("attributes", {})
            if _DEVICE_ID in attributes:
                return _ignored("the bridge created the Thing itself")
            if thing and _CERTIFICATE_ID not in attributes:
                return _ignored(f"the Thing has no attribute {_CERTIFICATE_ID}, which the template sets")
            certificate_arn = self._attached(str(name), attributes.get(_CERTIFICATE_ID))
            if certificate_arn is not None:
                break
            if time.monotonic() + _POLL_SECONDS > ends - _CALL_SECONDS:
                raise NotRegisteredError(f"the certificate of Thing {name} is not attached yet")
            time.sleep(_POLL_SECONDS)
        body = {
            **name.body,
            "thingName": str(name),
            "thingArn": thing["thingArn"],
            "certificateArn": certificate_arn,
            **{key: attributes[key] for key in _COPIED if key in attributes},
            **self._claim(attributes.get(_CLAIM_CERTIFICATE_ID)),
        }
        return self._register(body, ends - time.monotonic())

    def _register(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            response = self._api.post("/api/iot/fleet-provisioning/registered", body, seconds)
        except NoResponseError as error:
            raise NotRegisteredError(f"the bridge did not answer: {error}") from None
        if response.status == _REGISTERED and "deviceId" in response.body:
            logger.info("registered Thing %s as device %s", body["thingName"], response.body["deviceId"])
            return dict(response.body)
        if response.is_temporary or response.status < _REFUSED:
            raise NotRegisteredError(f"the bridge returned {response.problem}")
        logger.error("the bridge refuses Thing %s: %s", body["thingName"], response.problem)
        return {"refused": response.problem}

    def _thing(self, name: str) -> dict[str, Any]:
        """Return the Thing, or an empty dict if it is deleted or not visible yet."""
        try:
            return dict(self._iot.describe_thing(thingName=name))
        except self._iot.exceptions.ResourceNotFoundException:
            return {}

    def _attached(self, name: str, certificate_id: str | None) -> str | None:
        """Return the certificate ARN once it is attached: fleet provisioning creates the Thing first."""
        pages = self._iot.get_paginator("list_thing_principals").paginate(thingName=name)
        try:
            return next(
                (
                    arn
                    for page in pages
                    for arn in page.get("principals", [])
                    if arn.endswith(f":cert/{certificate_id}")
                ),
                None,
            )
        except self._iot.exceptions.ResourceNotFoundException:
            return None

    def _claim(self, certificate_id: str | None) -> dict[str, str]:
        """Return the expiry of the device's claim certificate, so that the bridge can warn before it."""
        if not certificate_id:
            return {}
        try:
            found = self._iot.describe_certificate(certificateId=certificate_id)
        except self._iot.exceptions.ResourceNotFoundException:
            return {}
        validity = found["certificateDescription"].get("validity", {})
        return (
            {"claimCertificateExpiresAt": validity["notAfter"].isoformat()} if "notAfter" in validity else {}
        )


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Handle an invocation by Lambda."""
    return _registrar()(event, context.get_remaining_time_in_millis() / 1000 - _RESERVE_SECONDS)


def _ignored(reason: str) -> dict[str, Any]:
    logger.info("ignored: %s", reason)
    return {"ignored": reason}


_registrar = functools.cache(Registrar.from_environment)

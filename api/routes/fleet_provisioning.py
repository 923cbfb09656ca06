"""The endpoints that AWS fleet provisioning calls: before a device enrols, and after it has enrolled."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from api.auth import Caller
from api.aws_status import AwsCredentials
from api.database import Database
from api.endpoints import ApiModel, ApiRequest, ApiResponse, Endpoint, ResponseSpec
from api.errors import ApiError, unavailable
from api.fields import HyphenatedTenantId, Text
from api.serial_policy import SerialCheck
from api.temporal import Temporal
from db.aws_location import load_location
from db.bindings import Actor, StaleBindingError
from db.enrolment import (
    Enrolled,
    EnrolmentConflictError,
    EnrolmentDeniedError,
    activation_of,
    enrol,
    find_denial,
)
from db.models import AwsThingBinding
from domain.enrolment import Denial, Registration
from domain.erasure import SerialHashing
from domain.fields import SerialNumber, Timestamp
from domain.names import SERIAL_NUMBER_PATTERN, thing_name
from observability.context import set_context
from observability.metrics import REGISTER_COMPLETED, REGISTER_IDEMPOTENT, VERIFY_ALLOWED, VERIFY_DENIED
from orchestration.requests import send_event

logger = logging.getLogger("thingbridge.api")

_ATTEMPTS: Final = 5
_REGION_AND_ACCOUNT: Final = "[a-z0-9-]+:[0-9]{12}"
_TENANT: Final = "Supplied by a tenant's key if it is missing."
_ThingName = Annotated[str, Field(pattern=f"^t[0-9a-f]{{32}}-{SERIAL_NUMBER_PATTERN}$", max_length=128)]
_ThingArn = Annotated[
    str, Field(pattern=f"^arn:[a-z-]+:iot:{_REGION_AND_ACCOUNT}:thing/[A-Za-z0-9:_-]{{1,128}}$")
]
_CertificateArn = Annotated[
    str, Field(pattern=f"^arn:[a-z-]+:iot:{_REGION_AND_ACCOUNT}:cert/[0-9a-f]{{64}}$")
]
_SecretArn = Annotated[
    str,
    Field(
        pattern=f"^arn:[a-z-]+:secretsmanager:{_REGION_AND_ACCOUNT}:secret:[A-Za-z0-9/_+=.@-]{{1,512}}-[A-Za-z0-9]{{6}}$"
    ),
]


class Verification(ApiModel):
    """A device that is about to enrol."""

    serial_number: SerialNumber
    tenant_id: HyphenatedTenantId | None = Field(None, description=_TENANT)


class Verdict(ApiModel):
    """The decision on whether the device may enrol."""

    allow_provisioning: bool
    reason: str | None = Field(description="The reason for a denial.")


class Enrolment(ApiModel):
    """A device that fleet provisioning has admitted, with the AWS resources that were created for it."""

    serial_number: SerialNumber
    tenant_id: HyphenatedTenantId | None = Field(None, description=_TENANT)
    thing_name: _ThingName
    thing_arn: _ThingArn
    certificate_arn: _CertificateArn
    certificate_secret_arn: _SecretArn | None = Field(
        None, description="Null if only the device itself has its key."
    )
    model: Text
    firmware_version: Text
    label: Text | None = None
    claim_certificate_expires_at: Timestamp | None = None


class Registered(ApiModel):
    """The registered device."""

    device_id: UUID
    already_provisioned: bool = Field(
        description="Whether this device was registered for the serial number before this request."
    )


class FleetProvisioning:
    """The handlers that verify devices before enrolment and register them afterwards.

    Args:
        database: stores devices and bindings.
        temporal: runs the devices' workflows.
        credentials: the workers' AWS credentials. Without any, an enrolled device could not be managed.
        serial_check: the check against the serial policy.
        task_queue: the task queue of the devices' workflows.
        secret_name_template: the template of the name of a device's secret.
        allow_reprovision: whether a serial number that has a live device may enrol again.
        signal_seconds: how long a response may be delayed by the signal to the device's workflow.
        hashing: hashes serial numbers to recognise those of erased devices; None if none was ever erased.
    """

    def __init__(
        self,
        database: Database,
        temporal: Temporal,
        credentials: AwsCredentials,
        serial_check: SerialCheck,
        *,
        task_queue: str,
        secret_name_template: str,
        allow_reprovision: bool,
        signal_seconds: float,
        hashing: SerialHashing | None,
    ) -> None:
        self._database = database
        self._temporal = temporal
        self._credentials = credentials
        self._serial_check = serial_check
        self._task_queue = task_queue
        self._secret_name_template = secret_name_template
        self._allow_reprovision = allow_reprovision
        self._signal_seconds = signal_seconds
        self._hashing = hashing

    async def verify(self, request: ApiRequest[Verification]) -> ApiResponse:
        """Decide by the serial policy and the newest binding of the serial number. Temporal is not needed."""
        tenant_id = request.caller.tenant_for(request.input.tenant_id)
        await self._credentials.require()
        name = thing_name(tenant_id, request.input.serial_number)
        denial: Denial | None = Denial.POLICY
        if await self._serial_check.admits(tenant_id, request.input.serial_number):
            denial = await self._database.read(
                lambda connection: find_denial(
                    connection, name, allow_reprovision=self._allow_reprovision, hashing=self._hashing
                )
            )
        (VERIFY_DENIED if denial else VERIFY_ALLOWED).add(tenant_id, "verify")
        if denial is None:
            return ApiResponse(Verdict(allow_provisioning=True, reason=None))
        return ApiResponse(Verdict(allow_provisioning=False, reason=str(denial)), HTTPStatus.FORBIDDEN)

    async def register(self, request: ApiRequest[Enrolment]) -> ApiResponse:
        """Store device and binding in one transaction, then signal the device's workflow."""
        tenant_id = request.caller.tenant_for(request.input.tenant_id)
        await self._credentials.require()
        registration = Registration(**{**request.input.model_dump(by_alias=False), "tenant_id": tenant_id})
        set_context(tenant_id=tenant_id, thing_name=registration.thing_name)
        if not await self._serial_check.admits(tenant_id, registration.serial_number):
            raise ApiError(HTTPStatus.FORBIDDEN, Denial.POLICY)
        enrolled = await self._enrol(registration, request.caller)
        set_context(device_id=enrolled.binding.device_id)
        counter = REGISTER_IDEMPOTENT if enrolled.already_provisioned else REGISTER_COMPLETED
        counter.add(tenant_id, "registered")
        if enrolled.follow_up_due:
            await self._signal(enrolled.binding)
        return ApiResponse(
            Registered(device_id=enrolled.binding.device_id, already_provisioned=enrolled.already_provisioned)
        )

    async def _enrol(self, registration: Registration, caller: Caller) -> Enrolled:
        """Store the enrolment, and retry after a conflict with a concurrent change."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._database(self._transaction(registration, caller))
            except (IntegrityError, StaleBindingError) as error:
                logger.info(
                    "enrolment conflicts with a concurrent change, retrying: %s", type(error).__name__
                )
        raise unavailable("the device is being changed by other requests")

    def _transaction(self, registration: Registration, caller: Caller) -> Callable[[Session], Enrolled]:
        def work(session: Session) -> Enrolled:
            location = load_location(session)
            if location is None:
                raise unavailable(
                    "the bridge's AWS account and region are unknown until a worker has started"
                )
            faults = list(registration.faults(location, self._secret_name_template))
            if faults:
                raise ApiError(
                    HTTPStatus.FORBIDDEN,
                    "the request names resources that are not confirmed as this device's own: see errors",
                    faults,
                )
            try:
                return enrol(
                    session,
                    registration,
                    registration.thing_name,
                    Actor(f"key {caller.key_id}"),
                    allow_reprovision=self._allow_reprovision,
                    hashing=self._hashing,
                )
            except EnrolmentDeniedError as error:
                raise ApiError(HTTPStatus.FORBIDDEN, str(error)) from None
            except EnrolmentConflictError as error:
                raise ApiError(HTTPStatus.CONFLICT, str(error)) from None

        return work

    async def _signal(self, binding: AwsThingBinding) -> None:
        """Start the follow-up in the device's workflow. The claim certificate check retries it later."""
        try:
            async with asyncio.timeout(self._signal_seconds):
                await send_event(await self._temporal(), activation_of(binding), self._task_queue)
        except Exception as error:  # noqa: BLE001  # the device is registered, whatever the exception is
            logger.warning(
                "device %s is registered, its follow-up is left to the next claim certificate check: %s",
                binding.device_id,
                str(error) or type(error).__name__,
            )


def fleet_provisioning_endpoints(provisioning: FleetProvisioning) -> Sequence[Endpoint[Any]]:
    """Return the endpoints `POST /api/iot/fleet-provisioning/verify` and `…/registered`."""
    return [
        Endpoint(
            method="POST",
            path="/api/iot/fleet-provisioning/verify",
            summary="Decide whether a device may enrol",
            tag="fleet provisioning",
            request_model=Verification,
            responses={
                200: ResponseSpec("The device may enrol.", Verdict),
                403: ResponseSpec("The device may not enrol.", Verdict),
            },
            problems={403: "The key belongs to another tenant."},
            handle=provisioning.verify,
        ),
        Endpoint(
            method="POST",
            path="/api/iot/fleet-provisioning/registered",
            summary="Register a device that has enrolled",
            tag="fleet provisioning",
            request_model=Enrolment,
            responses={200: ResponseSpec("The device is registered, now or already before.", Registered)},
            problems={
                403: "The serial number may not enrol, a resource is not confirmed as the device's own, or "
                "the key belongs to another tenant.",
                409: "The certificate or the secret is in use, or may not replace the bound one.",
            },
            handle=provisioning.register,
        ),
    ]

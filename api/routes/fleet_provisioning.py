"""The doors of fleet provisioning: whether a device may enrol, and that it has."""

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
from api.endpoints import Answer, Call, Door, Promise, Wire
from api.errors import Refused, unavailable
from api.fields import SerialNumber, TenantId, Text
from api.serial_policy import SerialGate
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
from domain.fault import Fault
from domain.lifecycle_event import Timestamp
from domain.names import SERIAL_NUMBER_PATTERN, thing_name
from observability.context import set_context
from observability.metrics import REGISTER_COMPLETED, REGISTER_IDEMPOTENT, VERIFY_ALLOWED, VERIFY_DENIED
from orchestration.requests import send_event

logger = logging.getLogger("thingbridge.api")

_TRIES: Final = 5
_PLACE: Final = "[a-z0-9-]+:[0-9]{12}"
_ThingName = Annotated[str, Field(pattern=f"^t[0-9a-f]{{32}}-{SERIAL_NUMBER_PATTERN}$", max_length=128)]
_ThingArn = Annotated[str, Field(pattern=f"^arn:[a-z-]+:iot:{_PLACE}:thing/[A-Za-z0-9:_-]{{1,128}}$")]
_CertificateArn = Annotated[str, Field(pattern=f"^arn:[a-z-]+:iot:{_PLACE}:cert/[0-9a-f]{{64}}$")]
_SecretArn = Annotated[
    str,
    Field(
        pattern=f"^arn:[a-z-]+:secretsmanager:{_PLACE}:secret:[A-Za-z0-9/_+=.@-]{{1,512}}-[A-Za-z0-9]{{6}}$"
    ),
]


class Verification(Wire):
    """A device that asks to enrol."""

    serial_number: SerialNumber
    tenant_id: TenantId | None = Field(None, description="A tenant's key has it be the tenant.")


class Verdict(Wire):
    """Whether the device may."""

    allow_provisioning: bool
    reason: str | None = Field(description="Why not.")


class Enrolment(Wire):
    """A device that fleet provisioning has let in, and what it made for it."""

    serial_number: SerialNumber
    tenant_id: TenantId | None = Field(None, description="A tenant's key has it be the tenant.")
    thing_name: _ThingName
    thing_arn: _ThingArn
    certificate_arn: _CertificateArn
    certificate_secret_arn: _SecretArn | None = Field(
        None, description="None where the device alone holds its key."
    )
    model: Text
    firmware_version: Text
    label: Text | None = None
    claim_certificate_expires_at: Timestamp | None = None


class Registered(Wire):
    """The device as the platform knows it."""

    device_id: UUID
    already_provisioned: bool = Field(description="Whether the serial number had this device already.")


class FleetProvisioning:
    """Lets devices in, and writes down those that came.

    Args:
        database: where they are written.
        temporal: where their workflows are.
        credentials: the workers' keys for AWS: without any, what is let in could not be looked after.
        gate: the serial policy.
        task_queue: that of the devices' workflows.
        secret_name_template: what a device's secret is called.
        allow_reprovision: whether a serial number with a live device may enrol again.
        signal_seconds: how long an answer may wait for Temporal to take the signal.
        hashing: by which the serial numbers of erased devices are denied; None where none was ever erased.
    """

    def __init__(
        self,
        database: Database,
        temporal: Temporal,
        credentials: AwsCredentials,
        gate: SerialGate,
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
        self._gate = gate
        self._task_queue = task_queue
        self._secret_name_template = secret_name_template
        self._allow_reprovision = allow_reprovision
        self._signal_seconds = signal_seconds
        self._hashing = hashing

    async def verify(self, call: Call[Verification]) -> Answer:
        """Answer by the newest binding of the serial number and the serial policy. Temporal is not needed."""
        tenant_id = call.caller.tenant_for(call.input.tenant_id)
        await self._credentials.require()
        name = thing_name(tenant_id, call.input.serial_number)
        denial: Denial | None = Denial.POLICY
        if await self._gate.admits(tenant_id, call.input.serial_number):
            denial = await self._database.read(
                lambda connection: find_denial(
                    connection, name, allow_reprovision=self._allow_reprovision, hashing=self._hashing
                )
            )
        (VERIFY_DENIED if denial else VERIFY_ALLOWED).add(tenant_id, "verify")
        if denial is None:
            return Answer(Verdict(allow_provisioning=True, reason=None))
        return Answer(Verdict(allow_provisioning=False, reason=str(denial)), HTTPStatus.FORBIDDEN)

    async def register(self, call: Call[Enrolment]) -> Answer:
        """Write device and binding, then have the device's workflow do what follows."""
        tenant_id = call.caller.tenant_for(call.input.tenant_id)
        await self._credentials.require()
        registration = Registration(**{**call.input.model_dump(by_alias=False), "tenant_id": tenant_id})
        set_context(tenant_id=tenant_id, thing_name=registration.thing_name)
        if not await self._gate.admits(tenant_id, registration.serial_number):
            raise Refused(HTTPStatus.FORBIDDEN, Denial.POLICY)
        enrolled = await self._enrolled(registration, call.caller)
        set_context(device_id=enrolled.binding.device_id)
        counter = REGISTER_IDEMPOTENT if enrolled.already_provisioned else REGISTER_COMPLETED
        counter.add(tenant_id, "registered")
        if enrolled.follow_up_due:
            await self._signal(enrolled.binding)
        return Answer(
            Registered(device_id=enrolled.binding.device_id, already_provisioned=enrolled.already_provisioned)
        )

    async def _enrolled(self, registration: Registration, caller: Caller) -> Enrolled:
        for _ in range(_TRIES):
            try:
                return await self._database(self._work(registration, caller))
            except (IntegrityError, StaleBindingError) as error:
                logger.info("an enrolment met with another change, and looks again: %s", type(error).__name__)
        raise unavailable("the device is being changed by others")

    def _work(self, registration: Registration, caller: Caller) -> Callable[[Session], Enrolled]:
        def work(session: Session) -> Enrolled:
            place = load_location(session)
            if place is None:
                raise unavailable("no worker has found out yet where in AWS the bridge is")
            faults = list(registration.faults(place, self._secret_name_template))
            if faults:
                raise Refused(
                    HTTPStatus.FORBIDDEN,
                    "it names what is not certainly this device's own: see errors",
                    [Fault(field=fault.field, reason=fault.reason) for fault in faults],
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
                raise Refused(HTTPStatus.FORBIDDEN, str(error)) from None
            except EnrolmentConflictError as error:
                raise Refused(HTTPStatus.CONFLICT, str(error)) from None

        return work

    async def _signal(self, binding: AwsThingBinding) -> None:
        """Have the workflow go on. The device is registered without it too: the claim check comes back."""
        try:
            async with asyncio.timeout(self._signal_seconds):
                await send_event(await self._temporal(), activation_of(binding), self._task_queue)
        except Exception as error:  # noqa: BLE001  # whatever it is, the device is registered
            logger.warning(
                "device %s is registered, and its follow-up left to the next check: %s",
                binding.device_id,
                str(error) or type(error).__name__,
            )


def fleet_provisioning_doors(provisioning: FleetProvisioning) -> Sequence[Door[Any]]:
    """`POST /api/iot/fleet-provisioning/verify` and `POST /api/iot/fleet-provisioning/registered`."""
    return [
        Door(
            method="POST",
            path="/api/iot/fleet-provisioning/verify",
            summary="Ask whether a device may enrol",
            tag="fleet provisioning",
            takes=Verification,
            answers={200: Promise("It may.", Verdict), 403: Promise("It may not.", Verdict)},
            refuses={403: "The key is another tenant's."},
            handle=provisioning.verify,
        ),
        Door(
            method="POST",
            path="/api/iot/fleet-provisioning/registered",
            summary="Tell of a device that enrolled",
            tag="fleet provisioning",
            takes=Enrolment,
            answers={200: Promise("The device is registered, now or before.", Registered)},
            refuses={
                403: "The serial number may not enrol, what is named is not certainly the device's own, or "
                "the key is another tenant's.",
                409: "The certificate or the secret is taken, or may not replace the bound one.",
            },
            handle=provisioning.register,
        ),
    ]

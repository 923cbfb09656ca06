"""The doors by which bindings are looked at."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from sqlmodel import Session

from api.auth import Caller
from api.database import Database
from api.endpoints import Answer, Call, Door, Promise, Wire
from api.errors import RULE, not_found
from api.fields import HyphenatedUuid, SerialNumber, TenantId, WholeNumber
from db.bindings import BindingFilter, bindings_query, newest_binding, transitions_of
from db.models import AwsThingBinding, BindingTransition
from domain.names import device_workflow_id
from domain.provisioning_status import ProvisioningStatus

_PAGE: Final = 100
_LARGEST_PAGE: Final = 1000


def _cursor(value: object) -> object:
    """The last id of the page before; opaque, so that the order may change."""
    try:
        return UUID(bytes=urlsafe_b64decode(f"{value}=="))
    except ValueError:
        raise PydanticCustomError(RULE, "must be the nextCursor of an earlier page") from None


_CURSOR: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{21}[AQgw]$"}


class BindingsQuery(Wire):
    """Which bindings to list."""

    status: ProvisioningStatus | None = Field(None, description="Only those in this status.")
    serial: SerialNumber | None = Field(None, description="Only those of this serial number.")
    tenant_id: TenantId | None = Field(None, description="Only this tenant's; a tenant's key sees no other.")
    limit: WholeNumber = Field(_PAGE, ge=1, le=_LARGEST_PAGE, description="At most so many.")
    cursor: Annotated[UUID, BeforeValidator(_cursor), WithJsonSchema(_CURSOR)] | None = Field(
        None, description="`nextCursor` of the page before."
    )


class BindingPath(Wire):
    """Which device's binding."""

    device_id: HyphenatedUuid


class Binding(Wire):
    """One device's tie to AWS."""

    id: UUID
    device_id: UUID
    tenant_id: UUID | None
    thing_name: str | None
    thing_arn: str | None
    certificate_arn: str | None
    certificate_secret_arn: str | None
    provisioning_status: ProvisioningStatus
    failure_code: str | None
    failure_reason: str | None
    last_shadow_reported_at: datetime | None
    claim_certificate_expires_at: datetime | None
    provisioned_via_jitp: bool
    created_at: datetime
    modified_at: datetime | None
    deleted_at: datetime | None
    version: int


class Transition(Wire):
    """One change of a binding's status."""

    from_status: ProvisioningStatus | None
    to_status: ProvisioningStatus
    occurred_at: datetime
    actor: str
    workflow_id: str | None
    run_id: str | None
    reason: str | None


class BindingDetail(Binding):
    """A binding, how it came to where it stands, and where to look further."""

    transitions: list[Transition]
    workflow_id: str
    temporal_ui_url: str | None = Field(description="The workflow's runs in Temporal's UI.")


class BindingsPage(Wire):
    """Some bindings, in an order that stays the same."""

    items: list[Binding]
    next_cursor: str | None = Field(description="Where the next page begins; null where this is the last.")


def binding_doors(database: Database, temporal_ui_url: str | None) -> Sequence[Door[Any]]:
    """`GET /api/iot/bindings` and `GET /api/iot/bindings/{deviceId}`."""

    async def listed(call: Call[BindingsQuery]) -> Answer:
        wanted = call.input
        tenant_id = call.caller.tenant_for(wanted.tenant_id)
        query = bindings_query(
            BindingFilter(status=wanted.status, tenant_id=tenant_id, serial_number=wanted.serial),
            after=wanted.cursor,
            # One more tells whether there is a next page.
            limit=wanted.limit + 1,
        )
        found = await database(lambda session: session.exec(query).all())
        page = found[: wanted.limit]
        following = _written(page[-1].id) if len(found) > wanted.limit else None
        items = [Binding.model_validate(row, from_attributes=True, by_name=True) for row in page]
        return Answer(BindingsPage(items=items, next_cursor=following))

    async def one(call: Call[BindingPath]) -> Answer:
        device_id = call.input.device_id
        binding, transitions = await database(lambda session: _look_up(session, device_id, call.caller))
        headers = {"ETag": f'"{binding.id}-{binding.version}"', "Cache-Control": "private, no-cache"}
        if _has(call.headers.get("if-none-match", ""), headers["ETag"]):
            return Answer(None, 304, headers)
        workflow_id = device_workflow_id(device_id)
        detail = BindingDetail(
            **Binding.model_validate(binding, from_attributes=True, by_name=True).model_dump(by_alias=False),
            transitions=[
                Transition.model_validate(row, from_attributes=True, by_name=True) for row in transitions
            ],
            workflow_id=workflow_id,
            temporal_ui_url=f"{temporal_ui_url.rstrip('/')}/workflows/{workflow_id}"
            if temporal_ui_url
            else None,
        )
        return Answer(detail, headers=headers)

    return [
        Door(
            method="GET",
            path="/api/iot/bindings",
            summary="List bindings",
            tag="bindings",
            takes=BindingsQuery,
            answers={200: Promise("A page of them.", BindingsPage)},
            refuses={403: "The key is another tenant's."},
            handle=listed,
        ),
        Door(
            method="GET",
            path="/api/iot/bindings/{deviceId}",
            summary="Look at a device's binding",
            tag="bindings",
            takes=BindingPath,
            answers={
                200: Promise("The binding, with its version as ETag.", BindingDetail),
                304: Promise("It is still the one of If-None-Match."),
            },
            refuses={404: "There is none, or it is another tenant's."},
            headers={"If-None-Match": "The ETag of what is had already."},
            handle=one,
        ),
    ]


def _look_up(
    session: Session, device_id: UUID, caller: Caller
) -> tuple[AwsThingBinding, Sequence[BindingTransition]]:
    binding = newest_binding(session, device_id)
    if binding is None or not caller.sees(binding.tenant_id):
        raise not_found("binding")
    return binding, transitions_of(session, binding.id)


def _written(last: UUID) -> str:
    return urlsafe_b64encode(last.bytes).decode().rstrip("=")


def _has(if_none_match: str, etag: str) -> bool:
    """Whether the header names this entity, weakly compared as RFC 9110 asks for here."""
    named = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return etag in named or "*" in named

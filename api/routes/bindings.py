"""The endpoints that return bindings."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BeforeValidator, Field, WithJsonSchema
from sqlmodel import Session

from api.auth import Caller
from api.database import Database
from api.endpoints import ApiModel, ApiRequest, ApiResponse, Endpoint, ResponseSpec
from api.errors import not_found
from api.fields import HyphenatedTenantId, HyphenatedUuid, WholeNumber
from db.bindings import BindingFilter, bindings_query, newest_binding, transitions_of
from db.models import AwsThingBinding, BindingTransition
from domain.fields import SerialNumber, rule_error
from domain.names import device_workflow_id
from domain.provisioning_status import ProvisioningStatus

_DEFAULT_LIMIT: Final = 100
_LARGEST_LIMIT: Final = 1000


def _decode_cursor(value: object) -> object:
    """Return the last id of the previous page. Cursors are opaque to callers, so the order may change."""
    try:
        return UUID(bytes=urlsafe_b64decode(f"{value}=="))
    except ValueError:
        raise rule_error("must be the nextCursor of an earlier page") from None


def _encode_cursor(last: UUID) -> str:
    return urlsafe_b64encode(last.bytes).decode().rstrip("=")


_CURSOR: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{21}[AQgw]$"}


class BindingsQuery(ApiModel):
    """The filters and the page of a list of bindings."""

    status: ProvisioningStatus | None = Field(None, description="Only bindings in this status.")
    serial: SerialNumber | None = Field(None, description="Only bindings of this serial number.")
    tenant_id: HyphenatedTenantId | None = Field(
        None, description="Only bindings of this tenant. A tenant sees only its own bindings."
    )
    limit: WholeNumber = Field(
        _DEFAULT_LIMIT, ge=1, le=_LARGEST_LIMIT, description="The largest number of bindings to return."
    )
    cursor: Annotated[UUID, BeforeValidator(_decode_cursor), WithJsonSchema(_CURSOR)] | None = Field(
        None, description="`nextCursor` of the previous page."
    )


class BindingPath(ApiModel):
    """The device in the path."""

    device_id: HyphenatedUuid


class Binding(ApiModel):
    """The AWS resources of one device, and its provisioning status."""

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


class Transition(ApiModel):
    """One status change of a binding."""

    from_status: ProvisioningStatus | None
    to_status: ProvisioningStatus
    occurred_at: datetime
    actor: str
    workflow_id: str | None
    run_id: str | None
    reason: str | None


class BindingDetail(Binding):
    """A binding with its status changes and its workflow."""

    transitions: list[Transition]
    workflow_id: str
    temporal_ui_url: str | None = Field(
        description="The page of the workflow's runs in Temporal's UI; null if no UI is configured."
    )


class BindingsPage(ApiModel):
    """One page of bindings, in an order that does not change."""

    items: list[Binding]
    next_cursor: str | None = Field(description="The cursor of the next page; null on the last page.")


def binding_endpoints(database: Database, temporal_ui_url: str | None) -> Sequence[Endpoint[Any]]:
    """Return the endpoints `GET /api/iot/bindings` and `GET /api/iot/bindings/{deviceId}`."""

    async def list_bindings(request: ApiRequest[BindingsQuery]) -> ApiResponse:
        query = request.input
        tenant_id = request.caller.tenant_for(query.tenant_id)
        statement = bindings_query(
            BindingFilter(status=query.status, tenant_id=tenant_id, serial_number=query.serial),
            after=query.cursor,
            # One more than the page holds shows whether there is a next page.
            limit=query.limit + 1,
        )
        rows = await database(lambda session: session.exec(statement).all())
        page = rows[: query.limit]
        next_cursor = _encode_cursor(page[-1].id) if len(rows) > query.limit else None
        items = [Binding.model_validate(row, from_attributes=True, by_name=True) for row in page]
        return ApiResponse(BindingsPage(items=items, next_cursor=next_cursor))

    async def get_binding(request: ApiRequest[BindingPath]) -> ApiResponse:
        device_id = request.input.device_id
        binding, transitions = await database(lambda session: _find(session, device_id, request.caller))
        headers = {"ETag": f'"{binding.id}-{binding.version}"', "Cache-Control": "private, no-cache"}
        if _matches(request.headers.get("if-none-match", ""), headers["ETag"]):
            return ApiResponse(None, 304, headers)
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
        return ApiResponse(detail, headers=headers)

    return [
        Endpoint(
            method="GET",
            path="/api/iot/bindings",
            summary="List bindings",
            tag="bindings",
            request_model=BindingsQuery,
            responses={200: ResponseSpec("A page of bindings.", BindingsPage)},
            problems={403: "The key belongs to another tenant."},
            handle=list_bindings,
        ),
        Endpoint(
            method="GET",
            path="/api/iot/bindings/{deviceId}",
            summary="Return a device's binding",
            tag="bindings",
            request_model=BindingPath,
            responses={
                200: ResponseSpec("The binding, with its version as ETag.", BindingDetail),
                304: ResponseSpec("The binding still has the ETag of If-None-Match."),
            },
            problems={404: "The device has no binding, or belongs to another tenant."},
            request_headers={"If-None-Match": "The ETag of an earlier response."},
            handle=get_binding,
        ),
    ]


def _find(
    session: Session, device_id: UUID, caller: Caller
) -> tuple[AwsThingBinding, Sequence[BindingTransition]]:
    binding = newest_binding(session, device_id)
    if binding is None or not caller.may_see(binding.tenant_id):
        raise not_found("binding")
    return binding, transitions_of(session, binding.id)


def _matches(if_none_match: str, etag: str) -> bool:
    """Return whether the header lists this ETag, by the weak comparison of RFC 9110."""
    listed = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return etag in listed or "*" in listed

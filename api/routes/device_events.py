"""The endpoint to which the platform publishes its devices' lifecycle events."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import Session

from api.auth import Caller
from api.database import Database
from api.endpoints import ApiModel, ApiRequest, ApiResponse, Endpoint, ResponseSpec
from api.errors import not_found
from api.fields import HyphenatedTenantId
from api.temporal import Temporal
from db.bindings import newest_binding
from db.models import DeviceStateRow
from domain.lifecycle_event import LifecycleEvent
from observability.context import set_context
from orchestration.requests import send_event


class DeviceEvent(LifecycleEvent):
    """A lifecycle event. Unknown fields are ignored; a tenant's key supplies a missing `tenantId`."""

    tenant_id: HyphenatedTenantId | None = None


class AcceptedEvent(ApiModel):
    """The event is stored in Temporal, and will not be lost."""

    workflow_id: str


def device_event_endpoints(
    database: Database, temporal: Temporal, task_queue: str
) -> Sequence[Endpoint[Any]]:
    """Return the endpoint `POST /api/iot/device-events`."""

    async def accept(request: ApiRequest[DeviceEvent]) -> ApiResponse:
        caller = request.caller
        # The event was validated with the request, and the caller's tenant needs no validation.
        event = request.input.model_copy(update={"tenant_id": caller.tenant_for(request.input.tenant_id)})
        set_context(tenant_id=event.tenant_id, device_id=event.device_id)
        if not caller.is_operator:
            await database(lambda session: _require_own(session, caller, event))
        workflow_id = await send_event(await temporal(), event, task_queue)
        return ApiResponse(AcceptedEvent(workflow_id=workflow_id), 202)

    return [
        Endpoint(
            method="POST",
            path="/api/iot/device-events",
            summary="Publish a lifecycle event of a device",
            tag="devices",
            request_model=DeviceEvent,
            responses={202: ResponseSpec("The device's workflow has received the event.", AcceptedEvent)},
            problems={
                403: "The key belongs to another tenant.",
                404: "The device does not belong to the tenant.",
            },
            handle=accept,
        )
    ]


def _require_own(session: Session, caller: Caller, event: LifecycleEvent) -> None:
    # A device that enrolled itself has a binding before its first event.
    for row in (session.get(DeviceStateRow, event.device_id), newest_binding(session, event.device_id)):
        if row and not caller.may_see(row.tenant_id):
            raise not_found("device")

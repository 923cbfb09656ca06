"""The door by which the platform tells of its devices' lives."""

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict
from sqlmodel import Session

from api.auth import Caller
from api.database import Database
from api.endpoints import Answer, Call, Door, Promise, Wire
from api.errors import not_found
from api.fields import SerialNumber, TenantId
from api.temporal import Temporal
from db.bindings import newest_binding
from db.models import DeviceStateRow
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from observability.context import set_context
from orchestration.requests import send_event


class DeviceEvent(LifecycleEvent):
    """One event of a device's life. Fields that are unknown here are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": LifecycleEventType.PROVISIONED.value}}},
            "then": {"properties": {"serialNumber": {"type": "string"}}, "required": ["serialNumber"]},
        }
    )

    tenant_id: TenantId | None = None
    serial_number: SerialNumber | None = None


class Accepted(Wire):
    """The event is Temporal's now, and will not be lost."""

    workflow_id: str


def device_event_doors(database: Database, temporal: Temporal, task_queue: str) -> Sequence[Door[Any]]:
    """`POST /api/iot/device-events`."""

    async def handle(call: Call[DeviceEvent]) -> Answer:
        told, caller = call.input, call.caller
        event = LifecycleEvent.model_validate(
            {**told.model_dump(), "tenant_id": caller.tenant_for(told.tenant_id)}
        )
        set_context(tenant_id=event.tenant_id, device_id=event.device_id)
        if not caller.is_operator:
            await database(lambda session: _require_own(session, caller, event))
        return Answer(Accepted(workflow_id=await send_event(await temporal(), event, task_queue)), 202)

    return [
        Door(
            method="POST",
            path="/api/iot/device-events",
            summary="Tell of a device's life",
            tag="devices",
            takes=DeviceEvent,
            answers={202: Promise("The device's workflow has the event.", Accepted)},
            refuses={403: "The key is another tenant's.", 404: "The device is not the tenant's."},
            handle=handle,
        )
    ]


def _require_own(session: Session, caller: Caller, event: LifecycleEvent) -> None:
    # One that enrolled has a binding before its first event.
    for known in (session.get(DeviceStateRow, event.device_id), newest_binding(session, event.device_id)):
        if known and not caller.sees(known.tenant_id):
            raise not_found("device")

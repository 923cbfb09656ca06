"""Device Shadows: the wanted status reported in the classic one, and all of them erased."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Engine
from temporalio import activity

from activities.bindings import actor, transaction
from aws.clients import AwsClients
from aws.errors import AwsError, NotFoundError
from db.bindings import NO_FAILURE, newest_binding, update_binding
from db.device_states import lock_state, state_of
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device
from observability.metrics import REPORTED_PUSHED, UPDATE_FAILURES


class ShadowActivities:
    """What the platform wants the device to be, where the device can read it."""

    def __init__(self, aws: AwsClients, engine: Engine) -> None:
        self._aws = aws
        self._engine = engine

    @activity.defn(name="report_status", no_thread_cancel_exception=True)
    def report_status(self, device: Device) -> None:
        """Report the newest wanted status in the device's classic shadow, once per event that changed it."""
        with transaction(self._engine) as session:
            row = lock_state(session, device.device_id)
            binding = newest_binding(session, device.device_id)
        if row is None or binding is None or binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            return
        desired = state_of(row).desired
        if desired is None or binding.thing_name is None or row.reported_event_id == desired.event_id:
            return
        document = {"state": {"reported": {"status": desired.status, "updatedAt": desired.occurred_at}}}
        try:
            self._aws.call(
                self._aws.iot_data.update_thing_shadow,
                thingName=binding.thing_name,
                payload=to_json(document),
            )
        except AwsError:
            UPDATE_FAILURES.add(device.tenant_id, "report_status")
            raise
        with transaction(self._engine) as session:
            update_binding(session, binding, actor(), last_shadow_reported_at=datetime.now(UTC), **NO_FAILURE)
            if reported := lock_state(session, device.device_id):
                reported.reported_event_id = desired.event_id
        REPORTED_PUSHED.add(device.tenant_id, "report_status")


def erase_shadows(aws: AwsClients, thing_name: str) -> None:
    """Delete a Thing's named shadows and its classic one; they would outlive the Thing."""
    for name in _shadow_names(aws, thing_name):
        _delete(aws, aws.iot_data.delete_thing_shadow, thingName=thing_name, shadowName=name)
    _delete(aws, aws.iot_data.delete_thing_shadow, thingName=thing_name)


def _shadow_names(aws: AwsClients, thing_name: str) -> list[str]:
    names: list[str] = []
    token: dict[str, str] = {}
    while True:
        try:
            page = aws.call(aws.iot_data.list_named_shadows_for_thing, thingName=thing_name, **token)  # type: ignore[arg-type]
        except NotFoundError:
            return names
        names += page.get("results", [])
        if not page.get("nextToken"):
            return names
        token = {"nextToken": page["nextToken"]}


def _delete(aws: AwsClients, operation: Callable[..., Any], **which: str) -> None:
    with suppress(NotFoundError):
        aws.call(operation, **which)

"""The activity that reports a device's desired status in its shadow."""

from datetime import UTC, datetime

from sqlalchemy import Engine
from temporalio import activity

from activities.bindings import actor, transaction
from aws.shadows import Shadows
from db.bindings import NO_FAILURE, newest_binding, update_binding
from db.device_states import lock_state, state_of
from domain.failure import StepError
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device
from observability.metrics import REPORTED_PUSHED, UPDATE_FAILURES


class ShadowActivities:
    """The activity that reports the platform's desired status to the device.

    Args:
        engine: the bridge's database.
        shadows: the Device Shadows in AWS.
    """

    def __init__(self, engine: Engine, shadows: Shadows) -> None:
        self._engine = engine
        self._shadows = shadows

    @activity.defn(name="report_status", no_thread_cancel_exception=True)
    def report_status(self, device: Device) -> None:
        """Report the newest desired status in the device's classic shadow, once per event that changed it."""
        with transaction(self._engine) as session:
            row = lock_state(session, device.device_id)
            binding = newest_binding(session, device.device_id)
        if row is None or binding is None or binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            return
        desired = state_of(row).desired
        if desired is None or binding.thing_name is None or row.reported_event_id == desired.event_id:
            return
        try:
            self._shadows.report_status(binding.thing_name, desired.status, desired.occurred_at)
        except StepError:
            UPDATE_FAILURES.add(device.tenant_id, "report_status")
            raise
        with transaction(self._engine) as session:
            update_binding(session, binding, actor(), last_shadow_reported_at=datetime.now(UTC), **NO_FAILURE)
            if reported := lock_state(session, device.device_id):
                reported.reported_event_id = desired.event_id
        REPORTED_PUSHED.add(device.tenant_id, "report_status")

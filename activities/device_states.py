"""Activity that applies the platform's events to the stored state of a device."""

from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity

from activities.bindings import actor, transaction
from db.bindings import live_binding_of_thing, newest_binding, open_binding
from db.device_states import lock_or_create_state, save_state, state_of
from db.models import AwsThingBinding, DeviceStateRow
from db.retired_certificates import pending_retirements
from domain.device_state import DesiredStatus, DeviceState
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.names import owner_of_thing, thing_name
from domain.provisioning_status import ProvisioningStatus
from domain.saga import ApplyEventRequest, Device, DeviceSnapshot


class DeviceStateActivities:
    """The stored states of devices.

    Args:
        engine: the bridge's database.
        push_status: True to report the desired status of a device in its shadow.
        provisions: True to create a Thing for each device that the platform provisions. A device that enrols
            itself already has one.
        step_retry_seconds: how long one step of the saga is retried.
    """

    def __init__(
        self, engine: Engine, *, push_status: bool, provisions: bool, step_retry_seconds: float
    ) -> None:
        self._engine = engine
        self._push_status = push_status
        self._provisions = provisions
        self._step_retry_seconds = step_retry_seconds

    @activity.defn(name="apply_event", no_thread_cancel_exception=True)
    def apply_event(self, request: ApplyEventRequest) -> DeviceSnapshot:
        """Apply an event to the device's state, and return the snapshot after it."""
        with transaction(self._engine) as session:
            binding = newest_binding(session, request.device_id)
            event = request.event
            if event is None and binding is None:
                return DeviceSnapshot()
            row = lock_or_create_state(session, _initial_state(request.device_id, event, binding))
            state = state_of(row)
            if event is not None:
                if rejection := state.fault_of(event):
                    return DeviceSnapshot(rejection=rejection)
                state = state.apply(event)
                save_state(session, row, state)
                binding = binding or self._first_binding(session, event, state)
            retired = len(pending_retirements(session, request.device_id)) if binding else 0
            return self._snapshot(state, row, binding, retired)

    def _first_binding(
        self, session: Session, event: LifecycleEvent, state: DeviceState
    ) -> AwsThingBinding | None:
        if state.serial_number is None:
            return None
        name = thing_name(state.tenant_id, state.serial_number)
        available = live_binding_of_thing(session, name) is None
        if state.decommissioned:
            # The binding denies the serial number from now on, unless another device uses it.
            return _decommissioned_binding(session, state, name) if available else None
        if event.type is not LifecycleEventType.PROVISIONED or not self._provisions:
            return None
        return open_binding(
            session,
            device_id=state.device_id,
            tenant_id=state.tenant_id,
            thing_name=name if available else None,
            actor=actor(),
        )

    def _snapshot(
        self, state: DeviceState, row: DeviceStateRow, binding: AwsThingBinding | None, retired: int
    ) -> DeviceSnapshot:
        report = None
        if self._push_status and state.desired and row.reported_event_id != state.desired.event_id:
            report = (
                state.desired.status if state.desired.status is not DesiredStatus.DECOMMISSIONED else None
            )
        return DeviceSnapshot(
            device=Device(
                device_id=state.device_id,
                tenant_id=state.tenant_id,
                thing_name=_thing_name_of(state, binding),
            ),
            serial_number=state.serial_number,
            status=binding.provisioning_status if binding else None,
            failure_code=binding.failure_code if binding else None,
            failure_reason=binding.failure_reason if binding else None,
            decommissioned=state.decommissioned,
            status_to_report=report,
            step_retry_seconds=self._step_retry_seconds,
            retired_certificates=retired,
        )


def _initial_state(
    device_id: UUID, event: LifecycleEvent | None, binding: AwsThingBinding | None
) -> DeviceState:
    """Return the state of a device before its first event.

    Its tenant and serial number never change. They come from the binding that fleet provisioning created, or
    else from the first event.
    """
    if binding is not None:
        owner = owner_of_thing(binding.thing_name) if binding.thing_name else None
        return DeviceState(
            device_id=device_id, tenant_id=binding.tenant_id, serial_number=owner[1] if owner else None
        )
    assert event is not None  # noqa: S101  # apply_event returns early without both
    return DeviceState.before_first_event(event)


def _decommissioned_binding(session: Session, state: DeviceState, name: str) -> AwsThingBinding:
    """Create the binding of a device that was decommissioned before it was provisioned."""
    return open_binding(
        session,
        device_id=state.device_id,
        tenant_id=state.tenant_id,
        thing_name=name,
        actor=actor(),
        status=ProvisioningStatus.DECOMMISSIONED,
        reason="decommissioned before it was provisioned",
    )


def _thing_name_of(state: DeviceState, binding: AwsThingBinding | None) -> str | None:
    """Return the Thing name of the device, even if another device has it at present."""
    if binding is not None and binding.thing_name:
        return binding.thing_name
    return thing_name(state.tenant_id, state.serial_number) if state.serial_number else None

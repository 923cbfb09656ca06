"""Folding the platform's events into what the bridge remembers of a device."""

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
    """The memory of the devices.

    Args:
        engine: the bridge's database.
        push_status: whether a device's status is to be reported in its shadow.
        provisions: whether a device that the platform provisions is given its Thing; those that enrol
            themselves have theirs.
        step_retry_seconds: how long one step of the saga may go on being retried.
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
        """Fold an event into the device's state, and say where the device then stands."""
        with transaction(self._engine) as session:
            binding = newest_binding(session, request.device_id)
            event = request.event
            if event is None and binding is None:
                return DeviceSnapshot()
            row = lock_or_create_state(session, _initial_state(request.device_id, event, binding))
            state = state_of(row)
            if event is not None:
                if rejection := state.refuses(event):
                    return DeviceSnapshot(rejection=rejection)
                state = state.apply(event)
                save_state(session, row, state)
                binding = binding or self._first_binding(session, event, state)
            retired = len(pending_retirements(session, request.device_id)) if binding else 0
            return self._standing(state, row, binding, retired)

    def _first_binding(
        self, session: Session, event: LifecycleEvent, state: DeviceState
    ) -> AwsThingBinding | None:
        if state.serial_number is None:
            return None
        name = thing_name(state.tenant_id, state.serial_number)
        free = live_binding_of_thing(session, name) is None
        if state.decommissioned:
            # The row denies the serial number from now on, unless another device lives under it.
            return _tombstone(session, state, name) if free else None
        if event.type is not LifecycleEventType.PROVISIONED or not self._provisions:
            return None
        return open_binding(
            session,
            device_id=state.device_id,
            tenant_id=state.tenant_id,
            thing_name=name if free else None,
            actor=actor(),
        )

    def _standing(
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
                thing_name=_name_of(state, binding),
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
    """Who the device is for ever: what fleet provisioning bound it as, else what its first event says."""
    if binding is not None:
        owner = owner_of_thing(binding.thing_name) if binding.thing_name else None
        return DeviceState(
            device_id=device_id, tenant_id=binding.tenant_id, serial_number=owner[1] if owner else None
        )
    assert event is not None  # noqa: S101  # without either there is nothing to begin from
    return DeviceState.before_first_event(event)


def _tombstone(session: Session, state: DeviceState, name: str) -> AwsThingBinding:
    return open_binding(
        session,
        device_id=state.device_id,
        tenant_id=state.tenant_id,
        thing_name=name,
        actor=actor(),
        status=ProvisioningStatus.DECOMMISSIONED,
        reason="decommissioned before it was provisioned",
    )


def _name_of(state: DeviceState, binding: AwsThingBinding | None) -> str | None:
    """The Thing name the device bears, or would bear were it not held by another device."""
    if binding is not None and binding.thing_name:
        return binding.thing_name
    return thing_name(state.tenant_id, state.serial_number) if state.serial_number else None

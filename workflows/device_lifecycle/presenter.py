"""The view of a device's workflow: current details, search attributes, summaries, the `status` response."""

from uuid import UUID

from temporalio import workflow

from domain.lifecycle_event import LifecycleEvent
from domain.model import CamelModel
from domain.names import tenant_key
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device
from orchestration.search_attributes import PROVISIONING_STATUS, TENANT_ID, THING_NAME
from workflows.device_lifecycle.state import LastError, LifecycleState, RejectedSignal


class DeviceLifecycleStatus(CamelModel):
    """The response to the `status` query."""

    device_id: UUID | None
    thing_name: str | None
    provisioning_status: ProvisioningStatus | None
    step: str
    arn: str | None
    last_error: LastError | None
    queued: list[LifecycleEvent]
    rejected: list[RejectedSignal]
    rejected_count: int


def status_of(state: LifecycleState) -> DeviceLifecycleStatus:
    """Return the response to the `status` query."""
    return DeviceLifecycleStatus(
        device_id=state.device_id,
        thing_name=state.device.thing_name if state.device else None,
        provisioning_status=state.status,
        step=state.step,
        arn=state.arn,
        last_error=state.last_error,
        queued=state.queued,
        rejected=state.rejected,
        rejected_count=state.rejected_count,
    )


def show(state: LifecycleState) -> None:
    """Set the run's current details and search attributes to the state."""
    workflow.set_current_details(_details(state))
    _index(state)


def summary(title: str, device: Device | None) -> str:
    """Return the summary that Temporal's UI shows beside an activity; Temporal allows 200 bytes."""
    return f"{title}: {device.thing_name}" if device and device.thing_name else title


def _details(state: LifecycleState) -> str:
    lines = [f"**{state.step}**", f"Status: {state.status or 'no binding'}"]
    if state.device and state.device.thing_name:
        lines.append(f"Thing: `{state.device.thing_name}`")
    if state.arn:
        lines.append(f"ARN: `{state.arn}`")
    if state.last_error:
        lines.append(f"Last error: **{state.last_error.code}**: {state.last_error.reason}")
    return "\n\n".join(lines)


def _index(state: LifecycleState) -> None:
    """Update the search attributes that have changed: each update is an event of the history."""
    values = {
        TENANT_ID: tenant_key(state.device.tenant_id) if state.device else None,
        THING_NAME: state.device.thing_name if state.device else None,
        PROVISIONING_STATUS: state.status,
    }
    indexed = workflow.info().typed_search_attributes
    changed = [
        key.value_set(str(value)) for key, value in values.items() if value and indexed.get(key) != str(value)
    ]
    if changed:
        workflow.upsert_search_attributes(changed)

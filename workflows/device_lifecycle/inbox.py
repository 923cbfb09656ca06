"""The signals of a device's workflow: decode and validate, then queue or reject."""

from collections.abc import Sequence
from typing import Final

from temporalio import workflow
from temporalio.common import RawValue

from domain.fault import Fault
from domain.lifecycle_event import InvalidEventError, LifecycleEvent
from domain.names import DEVICE_EVENT_SIGNAL, RETRY_SIGNAL
from workflows.device_lifecycle.state import LifecycleState, RejectedSignal

_REJECTIONS_KEPT: Final = 20


class Inbox:
    """Accepts every signal, and stores in the state the event, the retry or the reason for the rejection.

    Args:
        state: the state of the run.
    """

    def __init__(self, state: LifecycleState) -> None:
        self._state = state

    def receive(self, signal: str, arguments: Sequence[RawValue]) -> None:
        """Queue a valid event, count a retry, reject anything else."""
        if signal == RETRY_SIGNAL:
            self._state.retries_received += 1
        elif signal != DEVICE_EVENT_SIGNAL:
            # The name is text of the sender and can be anything, so it is not repeated.
            self.reject(
                "unknown",
                Fault(field="signal", reason=f"must be {DEVICE_EVENT_SIGNAL} or {RETRY_SIGNAL}"),
            )
        else:
            try:
                event = _decode(arguments)
            except InvalidEventError as error:
                self.reject(signal, error.fault)
                return
            if fault := self._state.find_fault(event):
                self.reject(signal, fault)
            else:
                self._state.queued.append(event)

    def reject(self, signal: str, fault: Fault) -> None:
        """Count, list and log a signal that changes nothing."""
        rejected = RejectedSignal(at=workflow.now(), signal=signal, field=fault.field, reason=fault.reason)
        self._state.rejected_count += 1
        self._state.rejected = [*self._state.rejected, rejected][-_REJECTIONS_KEPT:]
        workflow.logger.warning(
            "signal rejected: %s %s", fault.field, fault.reason, extra=self._state.log_fields()
        )

    def next_event(self) -> LifecycleEvent | None:
        """Remove and return the decommission if there is one, else the oldest event."""
        if not self._state.queued:
            return None
        event = min(
            self._state.queued, key=lambda each: (not each.is_decommission, each.occurred_at, each.event_id)
        )
        self._state.queued.remove(event)
        return event

    def put_back(self, event: LifecycleEvent) -> None:
        """Put an event that could not be applied back into the queue."""
        self._state.queued.append(event)


def _decode(arguments: Sequence[RawValue]) -> LifecycleEvent:
    """Read the one argument of the signal `device_event`.

    Raises:
        InvalidEventError: there is not exactly one argument, or it is not a valid event in plain JSON.
    """
    if len(arguments) != 1:
        raise InvalidEventError(
            Fault(field="event", reason=f"must be the signal's one argument, {len(arguments)} were sent")
        )
    payload = arguments[0].payload
    if payload.metadata.get("encoding") != b"json/plain":
        raise InvalidEventError(Fault(field="event", reason="must be plain JSON"))
    return LifecycleEvent.from_json(payload.data)

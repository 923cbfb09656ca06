"""One device's life: its events one at a time, a saga per event, and nothing left open that is done."""

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import inf
from typing import Any, Final, NoReturn, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from pydantic_core import to_json
from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeoutError
from temporalio.workflow import ActivityHandle

from activities.bindings import BindingActivities
from activities.certificates import CertificateActivities
from activities.device_states import DeviceStateActivities
from activities.secrets import SecretActivities
from activities.shadows import ShadowActivities
from activities.teardown import TeardownActivities
from activities.things import ThingActivities
from domain.device_state import DeviceState
from domain.fault import Fault
from domain.lifecycle_event import InvalidEventError, LifecycleEvent
from domain.names import (
    DEVICE_EVENT_SIGNAL,
    DEVICE_LIFECYCLE,
    RETRY_SIGNAL,
    STATUS_QUERY,
    device_of_workflow,
    tenant_key,
)
from domain.provisioning_status import ProvisioningStatus
from domain.saga import ApplyEventRequest, Device, DeviceSnapshot, FailureReport, StepResult, TeardownPlan
from orchestration.failures import failure_of, lacks_credentials, unless_cancelled
from orchestration.search_attributes import PROVISIONING_STATUS, TENANT_ID, THING_NAME
from workflows.policies import (
    CREDENTIALS_RECHECK,
    FOLD,
    RETIREMENT_SECONDS,
    TEARDOWN_RECHECK,
    checkpoint,
    saga_step,
    teardown_step,
)

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_REJECTIONS_KEPT: Final = 20
# Asked for only where it matters, so that no other history has a marker of it.
_KEEPS_WHAT_IS_FOLDED: Final = "keeps-what-is-folded"
_HEEDS_EVERY_RETRY: Final = "heeds-every-retry"


class _Public(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class RejectedSignal(_Public):
    """A signal that changed nothing, and why; its value is nowhere kept."""

    at: datetime
    signal: str
    field: str
    reason: str


class LastError(_Public):
    """What last went wrong, and what to do about it."""

    code: str
    reason: str

    @classmethod
    def of(cls, snapshot: DeviceSnapshot) -> Self | None:
        """Return the last error that the binding records, if any."""
        if snapshot.failure_code is None:
            return None
        return cls(code=snapshot.failure_code, reason=snapshot.failure_reason or "")


class DeviceLifecycleStatus(_Public):
    """The answer to the `status` query."""

    device_id: UUID | None
    thing_name: str | None
    provisioning_status: ProvisioningStatus | None
    step: str
    arn: str | None
    last_error: LastError | None
    queued: list[LifecycleEvent]
    rejected: list[RejectedSignal]
    rejected_count: int


class Carried(BaseModel):
    """What one run hands to the next where its history has grown long."""

    queued: list[LifecycleEvent] = []
    rejected: list[RejectedSignal] = []
    rejected_count: int = 0
    retry: bool = False
    take_up: bool = False
    teardown: TeardownPlan | None = None

    @classmethod
    def from_argument(cls, argument: Any) -> Self:
        """Read the run's argument; whatever else a client sent there is taken for none."""
        try:
            return cls.model_validate_json(to_json(argument)) if argument is not None else cls()
        except ValueError:
            return cls()


@workflow.defn(name=DEVICE_LIFECYCLE)
class DeviceLifecycle:
    """The one workflow of a device (see the contract, "Temporal").

    Signals only queue; `run` takes the oldest event, folds it, and brings AWS to where the device then has to
    be. A decommission is taken first and cancels the step at work.
    """

    @workflow.init
    def __init__(self, argument: Any = None) -> None:
        carried = Carried.from_argument(argument)
        self._device_id = device_of_workflow(workflow.info().workflow_id)
        self._queued = carried.queued
        self._rejected = carried.rejected
        self._rejected_count = carried.rejected_count
        # Two reasons to go on from where the device stands without an event: an operator's retry, which ends
        # the wait of a failed saga, and a run continued as new, which must not.
        self._retry = carried.retry
        self._retries = 0
        self._take_up = carried.take_up
        self._teardown = carried.teardown
        self._indexed: dict[str, str] = {}
        self._standing = DeviceSnapshot()
        self._status: ProvisioningStatus | None = None
        self._step = "waiting for an event"
        self._arn: str | None = None
        self._last_error: LastError | None = None
        self._at_work: ActivityHandle[Any] | None = None
        self._retried_seconds = self._standing.step_retry_seconds

    @workflow.run
    async def run(self, argument: Any = None) -> None:
        """Handle what is queued and what comes in meanwhile, then end.

        Args:
            argument: what an earlier run carried over; a client sends none.
        """
        try:
            await self._handle_all()
        except (CancelledError, ActivityError) as error:
            if is_cancelled_exception(error):
                # Whoever cancelled the run by hand has no event lost: they are remembered until a retry.
                while event := self._next_event():
                    await self._fold(event)
            raise

    @workflow.signal(dynamic=True)
    def on_signal(self, name: str, arguments: Sequence[RawValue]) -> None:
        """Take any signal at all. A typed handler would drop, or block on, what it cannot decode."""
        if name == RETRY_SIGNAL:
            self._retry = True
            self._retries += 1
        elif name != DEVICE_EVENT_SIGNAL:
            known = f"must be {DEVICE_EVENT_SIGNAL} or {RETRY_SIGNAL}"
            self._reject("unknown", Fault(field="signal", reason=known))
        else:
            try:
                self._enqueue(_event_in(arguments))
            except InvalidEventError as error:
                self._reject(name, error.fault)

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> DeviceLifecycleStatus:
        """Where the saga stands."""
        device = self._standing.device
        return DeviceLifecycleStatus(
            device_id=self._device_id,
            thing_name=device.thing_name if device else None,
            provisioning_status=self._status,
            step=self._step,
            arn=self._arn,
            last_error=self._last_error,
            queued=self._queued,
            rejected=self._rejected,
            rejected_count=self._rejected_count,
        )

    # What comes in

    def _enqueue(self, event: LifecycleEvent) -> None:
        if event.device_id != self._device_id:
            raise InvalidEventError(Fault(field="deviceId", reason="is not the device of this workflow"))
        if (known := self._known) and (rejection := known.refuses(event)):
            raise InvalidEventError(rejection)
        self._queued.append(event)
        if event.is_decommission and self._at_work is not None:
            self._at_work.cancel()

    def _reject(self, signal: str, rejection: Fault) -> None:
        self._rejected_count += 1
        rejected = RejectedSignal(
            at=workflow.now(), signal=signal, field=rejection.field, reason=rejection.reason
        )
        self._rejected = [*self._rejected, rejected][-_REJECTIONS_KEPT:]
        workflow.logger.warning(
            "signal rejected: %s %s", rejection.field, rejection.reason, extra=self._ids()
        )

    def _next_event(self) -> LifecycleEvent | None:
        """The decommission if there is one, else the oldest event; out of the queue."""
        if not self._queued:
            return None
        event = min(
            self._queued, key=lambda each: (not each.is_decommission, each.occurred_at, each.event_id)
        )
        self._queued.remove(event)
        return event

    @property
    def _known(self) -> DeviceState | None:
        """Who the device is, once its first event has been folded."""
        device = self._standing.device
        if device is None:
            return None
        return DeviceState(
            device_id=device.device_id,
            tenant_id=device.tenant_id,
            serial_number=self._standing.serial_number,
        )

    @property
    def _overtaken(self) -> bool:
        """Whether a decommission waits for what is at work."""
        return any(event.is_decommission for event in self._queued)

    # What is done about it

    async def _handle_all(self) -> None:
        while self._take_up or self._retry or self._queued:
            if workflow.info().is_continue_as_new_suggested():
                self._continue_as_new()
            event = None if self._take_up or self._retry else self._next_event()
            self._take_up = False
            retries = self._retries
            try:
                standing = await self._fold(event)
            except (CancelledError, ActivityError):
                # Cancelled by hand before the event was remembered: it is the first that `run` remembers.
                if event and workflow.patched(_KEEPS_WHAT_IS_FOLDED):
                    self._queued.append(event)
                raise
            if standing.rejection:
                self._reject(DEVICE_EVENT_SIGNAL, standing.rejection)
            else:
                self._standing = standing
                self._last_error = LastError.of(standing)
                self._arrive_at(standing.status)
            await self._settle()
            came_meanwhile = self._retry and self._retries > retries
            if event is None and not (came_meanwhile and workflow.patched(_HEEDS_EVERY_RETRY)):
                self._retry = False
            self._show("waiting for an event")

    async def _fold(self, event: LifecycleEvent | None) -> DeviceSnapshot:
        if self._device_id is None:
            return DeviceSnapshot()
        request = ApplyEventRequest(device_id=self._device_id, event=event)
        try:
            return await workflow.execute_local_activity_method(
                DeviceStateActivities.apply_event, request, **FOLD
            )
        except (ActivityError, ApplicationError, TemporalTimeoutError):
            # What a local activity failed with comes as it is, and not in an ActivityError.
            return await workflow.execute_activity_method(
                DeviceStateActivities.apply_event,
                request,
                **checkpoint("Fold the event: the database did not answer at once"),
            )

    async def _settle(self) -> None:
        """Bring AWS to where the device has to be, or wait where an operator has to look."""
        device = self._standing.device
        if device is None:
            return
        if self._standing.decommissioned:
            await self._tear_down(device)
            return
        while self._status and (self._status.in_progress or self._status is ProvisioningStatus.FAILED):
            if self._status is ProvisioningStatus.FAILED:
                await self._wait_for_retry(device)
            await self._provision(device)
            if self._overtaken:
                return
        # What is still queued may change the status once more: it is reported when all is folded.
        if self._status is ProvisioningStatus.ACTIVE and self._standing.status_to_report and not self._queued:
            await self._report_status(device)
        if self._status is ProvisioningStatus.ACTIVE and self._standing.retired_certificates:
            await self._erase_retired(device)

    async def _provision(self, device: Device) -> None:
        for title, step in _PROVISIONING:
            if self._overtaken:
                return
            try:
                result = await self._with_credentials(title, step, device)
            except ActivityError as error:
                if not self._overtaken:
                    unless_cancelled(error)
                    await self._fail(device, error)
                return
            self._arn = result.arn
            self._arrive_at(result.status)

    async def _with_credentials(
        self, title: str, step: Callable[[Any, Device], StepResult], device: Device
    ) -> StepResult:
        """Run a step, and again for as long as the bridge has no keys for AWS: that fails no device."""
        while True:
            try:
                return await self._interruptible(title, step, device)
            except ActivityError as error:
                if self._overtaken or not lacks_credentials(error):
                    raise
                # A step that is retried for seconds only must not be begun anew in every one of them.
                await self._wait(
                    lambda: self._overtaken,
                    min(CREDENTIALS_RECHECK, timedelta(seconds=self._retried_seconds)),
                )
                if self._overtaken:
                    raise

    async def _fail(self, device: Device, error: ActivityError) -> None:
        # A retry sent before this is no answer to it.
        self._retry = False
        result = await workflow.execute_activity_method(
            BindingActivities.mark_failed,
            self._note(device, error),
            **checkpoint("Record the failure"),
        )
        self._arrive_at(result.status)

    async def _wait_for_retry(self, device: Device) -> None:
        """Stay open for an operator, in the list of what failed; a decommission ends the wait too."""
        self._show("Failed: waiting for `retry` or a decommission")
        await self._wait(lambda: self._retry or self._overtaken)
        if self._overtaken:
            return
        self._retry = False
        result = await workflow.execute_activity_method(
            BindingActivities.resume_binding,
            device,
            **checkpoint("Go back to where it failed"),
        )
        self._last_error = None
        self._arrive_at(result.status)

    async def _report_status(self, device: Device) -> None:
        await self._attempt("Report the status in the shadow", ShadowActivities.report_status, device)
        self._standing = self._standing.model_copy(update={"status_to_report": None})

    async def _erase_retired(self, device: Device) -> None:
        """Tear down what an enrolment replaced; the next event of the device comes back to what is left."""
        if not self._overtaken:
            await self._attempt(
                "Erase the replaced certificates",
                CertificateActivities.erase_retired_certificates,
                device,
                at_most=RETIREMENT_SECONDS,
            )
        self._standing = self._standing.model_copy(update={"retired_certificates": 0})

    async def _attempt(
        self, title: str, step: Callable[[Any, Device], None], device: Device, at_most: float = inf
    ) -> None:
        """Do for an Active device what it stays Active without: an error is recorded, and that is all."""
        try:
            await self._interruptible(title, step, device, at_most)
        except ActivityError as error:
            if not self._overtaken:
                unless_cancelled(error)
                await self._record(device, error)

    async def _tear_down(self, device: Device) -> None:
        """Erase the device from AWS, for as long as it takes, by a plan made before anything is undone."""
        while self._status not in (None, ProvisioningStatus.DECOMMISSIONED):
            self._retry = False
            try:
                if self._teardown is None:
                    self._teardown = await self._erase(
                        "Plan the teardown", TeardownActivities.plan_teardown, device
                    )
                plan = self._teardown
                for title, step in _TEARDOWN:
                    await self._erase(title, step, plan)
                result = await workflow.execute_activity_method(
                    BindingActivities.close_binding, plan, **checkpoint("Close the binding")
                )
            except ActivityError as error:
                unless_cancelled(error)
                await self._record(device, error)
                await self._wait(lambda: self._retry, TEARDOWN_RECHECK)
            else:
                self._last_error = None
                self._arrive_at(result.status)

    async def _record(self, device: Device, error: ActivityError) -> None:
        await workflow.execute_activity_method(
            BindingActivities.record_error,
            self._note(device, error),
            **checkpoint("Record the error"),
        )

    # How

    async def _interruptible(
        self, title: str, step: Callable[[Any, Device], Result], device: Device, at_most: float = inf
    ) -> Result:
        """Run a step that a decommission cancels; it ends when the step has reported, cancelled or not."""
        self._show(title)
        self._retried_seconds = min(at_most, self._standing.step_retry_seconds)
        handle = workflow.start_activity_method(
            step,
            device,
            **saga_step(_summary(title, device), self._retried_seconds),
        )
        self._at_work = handle
        try:
            return await handle
        finally:
            self._at_work = None

    async def _erase(self, title: str, step: Callable[[Any, Argument], Result], argument: Argument) -> Result:
        self._show(title)
        return await workflow.execute_activity_method(
            step, argument, **teardown_step(_summary(title, self._standing.device))
        )

    async def _wait(self, condition: Callable[[], bool], at_most: timedelta | None = None) -> None:
        """Wait for a condition; in a new run, where a long wait's signals have made the history long."""
        long = workflow.info().is_continue_as_new_suggested
        try:
            await workflow.wait_condition(lambda: condition() or long(), timeout=at_most)
        except TimeoutError:
            return
        if not condition():
            self._continue_as_new()

    def _continue_as_new(self) -> NoReturn:
        workflow.continue_as_new(
            Carried(
                queued=self._queued,
                rejected=self._rejected,
                rejected_count=self._rejected_count,
                retry=self._retry,
                take_up=self._standing.device is not None,
                teardown=self._teardown,
            )
        )

    def _arrive_at(self, status: ProvisioningStatus | None) -> None:
        """Note the binding's status, and keep the search attributes with it."""
        self._status = status
        device = self._standing.device
        wanted = {
            TENANT_ID: tenant_key(device.tenant_id) if device else None,
            THING_NAME: device.thing_name if device else None,
            PROVISIONING_STATUS: status,
        }
        changed = {
            key: value for key, value in wanted.items() if value and self._indexed.get(key.name) != value
        }
        if changed:
            workflow.upsert_search_attributes([key.value_set(str(value)) for key, value in changed.items()])
            self._indexed |= {key.name: str(value) for key, value in changed.items()}
        self._show(self._step)

    def _note(self, device: Device, error: ActivityError) -> FailureReport:
        """Remember what went wrong, and say it as the binding is to say it."""
        code, reason = failure_of(error, self._retried_seconds)
        self._last_error = LastError(code=code, reason=reason)
        workflow.logger.error("%s: %s: %s", self._step, code, reason, extra=self._ids())
        self._show(self._step)
        return FailureReport(device=device, code=code, reason=reason)

    def _ids(self) -> dict[str, str]:
        """Whom a log line is about, as far as it is known."""
        device = self._standing.device
        ids = {
            "device_id": self._device_id,
            "tenant_id": device.tenant_id if device else None,
            "thing_name": device.thing_name if device else None,
        }
        return {name: str(value) for name, value in ids.items() if value is not None}

    def _show(self, step: str) -> None:
        """Keep what the Temporal UI shows of this run."""
        self._step = step
        device = self._standing.device
        lines = [f"**{step}**", f"Status: {self._status or 'no binding'}"]
        if device and device.thing_name:
            lines.append(f"Thing: `{device.thing_name}`")
        if self._arn:
            lines.append(f"ARN: `{self._arn}`")
        if self._last_error:
            lines.append(f"Last error: **{self._last_error.code}**: {self._last_error.reason}")
        workflow.set_current_details("\n\n".join(lines))


_PROVISIONING: Final[Sequence[tuple[str, Callable[[Any, Device], StepResult]]]] = (
    ("Make the Thing", ThingActivities.ensure_thing),
    ("Issue the certificate and store its key", CertificateActivities.issue_certificate),
    ("Attach policy and Thing to the certificate", CertificateActivities.attach_certificate),
    ("Activate the certificate", CertificateActivities.activate_certificate),
)
_TEARDOWN: Final[Sequence[tuple[str, Callable[[Any, TeardownPlan], None]]]] = (
    ("Revoke the certificates", CertificateActivities.revoke_certificates),
    ("Erase the secret", SecretActivities.erase_secret),
    ("Erase the Thing, its jobs and shadows", ThingActivities.erase_thing),
)


def _event_in(arguments: Sequence[RawValue]) -> LifecycleEvent:
    if len(arguments) != 1:
        raise InvalidEventError(
            Fault(field="event", reason=f"must be the signal's one argument, {len(arguments)} were sent")
        )
    payload = arguments[0].payload
    if payload.metadata.get("encoding") != b"json/plain":
        raise InvalidEventError(Fault(field="event", reason="must be plain JSON"))
    return LifecycleEvent.from_json(payload.data)


def _summary(title: str, device: Device | None) -> str:
    """What the UI shows beside an activity; Temporal allows 200 bytes."""
    return f"{title}: {device.thing_name}" if device and device.thing_name else title

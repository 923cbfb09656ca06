"""The workflow of one device: apply its events one at a time, and bring AWS to the state that follows."""

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeVar

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
from domain.lifecycle_event import LifecycleEvent
from domain.names import DEVICE_EVENT_SIGNAL, DEVICE_LIFECYCLE, STATUS_QUERY
from domain.provisioning_status import ProvisioningStatus
from domain.saga import ApplyEventRequest, Device, DeviceSnapshot, FailureReport, StepResult, TeardownPlan
from orchestration.failures import failure_of, lacks_credentials, raise_if_cancelled
from workflows.device_lifecycle.inbox import Inbox
from workflows.device_lifecycle.presenter import DeviceLifecycleStatus, show, status_of, summary
from workflows.device_lifecycle.state import NO_ARGUMENT, WAITING_FOR_EVENT, LastError, LifecycleState
from workflows.policies import (
    APPLY_EVENT,
    CREDENTIALS_RETRY_INTERVAL,
    RETIRED_CERTIFICATES_RETRY_LIMIT,
    TEARDOWN_RETRY_INTERVAL,
    aws_step,
    teardown_step,
    transaction,
)

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@workflow.defn(name=DEVICE_LIFECYCLE)
class DeviceLifecycle:
    """The workflow of one device (see docs/reference.md, "Temporal").

    A signal handler only validates and queues. `run` handles what is queued: it applies an event to the
    device's state in the database, and then provisions, reports or tears down until AWS matches that state.
    A decommission is handled first and cancels the step in progress. The run ends when nothing is left to do.
    """

    @workflow.init
    def __init__(self, argument: RawValue = NO_ARGUMENT) -> None:
        self._state = LifecycleState.at_start(argument)
        self._inbox = Inbox(self._state)
        self._step_in_progress: ActivityHandle[Any] | None = None

    @workflow.run
    async def run(self, argument: RawValue = NO_ARGUMENT) -> None:
        """Handle all queued events and retries, including those that arrive meanwhile, then end.

        Args:
            argument: the state of the previous run, where this one was continued as new; a client sends none.
        """
        try:
            while self._state.has_work:
                if workflow.info().is_continue_as_new_suggested():
                    self._continue_as_new()
                await self._handle_next()
        except (CancelledError, ActivityError) as error:
            if is_cancelled_exception(error):
                # An operator cancelled the run. Store its events: a later retry continues from them.
                while event := self._inbox.next_event():
                    await self._apply(event)
            raise

    @workflow.signal(dynamic=True)
    def on_signal(self, name: str, arguments: Sequence[RawValue]) -> None:
        """Accept any signal. A typed handler would drop, or block on, an argument that it cannot decode."""
        self._inbox.receive(name, arguments)
        if self._state.decommission_queued and self._step_in_progress is not None:
            self._step_in_progress.cancel()

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> DeviceLifecycleStatus:
        """Return the current step, the binding's status, the last error and the last rejected signals."""
        return status_of(self._state)

    # Events

    async def _handle_next(self) -> None:
        """Apply the next event, or read the stored state for a retry, and bring AWS to that state."""
        retries = self._state.retries_received
        reads_state = self._state.resumes or self._state.retry_requested
        event = None if reads_state else self._inbox.next_event()
        self._state.resumes = False
        self._accept(await self._apply_or_put_back(event))
        await self._reconcile()
        if event is None:
            # A retry that has arrived since then is handled next.
            self._state.mark_retries_handled(retries)
        self._show(WAITING_FOR_EVENT)

    async def _apply_or_put_back(self, event: LifecycleEvent | None) -> DeviceSnapshot:
        try:
            return await self._apply(event)
        except (CancelledError, ActivityError):
            # Cancelled by an operator before the event was stored: `run` stores it.
            if event:
                self._inbox.put_back(event)
            raise

    async def _apply(self, event: LifecycleEvent | None) -> DeviceSnapshot:
        """Apply an event to the device's state in the database; without one, read the state."""
        if self._state.device_id is None:
            return DeviceSnapshot()
        request = ApplyEventRequest(device_id=self._state.device_id, event=event)
        try:
            return await workflow.execute_local_activity_method(
                DeviceStateActivities.apply_event, request, **APPLY_EVENT
            )
        except (ActivityError, ApplicationError, TemporalTimeoutError):
            # A local activity raises the cause itself; an ordinary one wraps it in an ActivityError.
            return await workflow.execute_activity_method(
                DeviceStateActivities.apply_event,
                request,
                **transaction("Apply the event: the database did not answer at once"),
            )

    def _accept(self, snapshot: DeviceSnapshot) -> None:
        if snapshot.rejection:
            self._inbox.reject(DEVICE_EVENT_SIGNAL, snapshot.rejection)
            return
        self._state.snapshot = snapshot
        self._state.last_error = LastError.of(snapshot)
        self._set_status(snapshot.status)

    # Provisioning

    async def _reconcile(self) -> None:
        """Bring AWS to the state of the device, or wait for an operator after a failure."""
        device = self._state.device
        if device is None:
            return
        if self._state.snapshot.decommissioned:
            await self._tear_down(device)
            return
        while self._state.is_provisioning:
            if self._state.status is ProvisioningStatus.FAILED:
                await self._wait_for_retry(device)
            await self._provision(device)
            if self._state.decommission_queued:
                return
        if self._state.has_status_to_report:
            await self._report_status(device)
        if self._state.has_certificates_to_erase:
            await self._erase_retired_certificates(device)

    async def _provision(self, device: Device) -> None:
        """Run the steps to Active. Each returns at once if an earlier run has completed it."""
        for title, step in _PROVISIONING:
            if self._state.decommission_queued:
                return
            try:
                result = await self._run_step_with_credentials(title, step, device)
            except ActivityError as error:
                if not self._state.decommission_queued:
                    raise_if_cancelled(error)
                    await self._fail(device, error)
                return
            self._state.arn = result.arn
            self._set_status(result.status)

    async def _run_step_with_credentials(
        self, title: str, step: Callable[[Any, Device], StepResult], device: Device
    ) -> StepResult:
        """Run a step, and repeat it while the bridge has no AWS keys, which must not make a device Failed."""
        while True:
            try:
                return await self._run_step(title, step, device, self._retry_limit)
            except ActivityError as error:
                if self._state.decommission_queued or not lacks_credentials(error):
                    raise
                # Without a wait, a step with a short retry limit would be scheduled again and again.
                await self._wait_for(
                    lambda: self._state.decommission_queued,
                    at_most=min(CREDENTIALS_RETRY_INTERVAL, self._retry_limit),
                )
                if self._state.decommission_queued:
                    raise

    async def _fail(self, device: Device, error: ActivityError) -> None:
        # A retry that was sent before the failure does not count as a retry of it.
        self._state.mark_retries_handled()
        result = await workflow.execute_activity_method(
            BindingActivities.mark_failed,
            self._note_error(device, error, self._retry_limit),
            **transaction("Record the failure"),
        )
        self._set_status(result.status)

    async def _wait_for_retry(self, device: Device) -> None:
        """Keep the run open until an operator's retry or a decommission, so that it is listed as failed."""
        self._show("Failed: waiting for `retry` or a decommission")
        await self._wait_for(lambda: self._state.retry_requested or self._state.decommission_queued)
        if self._state.decommission_queued:
            return
        self._state.mark_retries_handled()
        result = await workflow.execute_activity_method(
            BindingActivities.resume_binding, device, **transaction("Return to the step that failed")
        )
        self._state.last_error = None
        self._set_status(result.status)

    # An Active device

    async def _report_status(self, device: Device) -> None:
        await self._try_step(
            "Report the status in the shadow", ShadowActivities.report_status, device, self._retry_limit
        )
        self._update_snapshot(status_to_report=None)

    async def _erase_retired_certificates(self, device: Device) -> None:
        """Erase certificates that an enrolment replaced. The device's next event repeats what failed."""
        if not self._state.decommission_queued:
            await self._try_step(
                "Erase the replaced certificates",
                CertificateActivities.erase_retired_certificates,
                device,
                min(RETIRED_CERTIFICATES_RETRY_LIMIT, self._retry_limit),
            )
        self._update_snapshot(retired_certificates=0)

    async def _try_step(
        self, title: str, step: Callable[[Any, Device], None], device: Device, retry_for: timedelta
    ) -> None:
        """Run a step of an Active device. The device stays Active without it: an error is only recorded."""
        try:
            await self._run_step(title, step, device, retry_for)
        except ActivityError as error:
            if not self._state.decommission_queued:
                raise_if_cancelled(error)
                await self._record_error(device, error, retry_for)

    # Teardown

    async def _tear_down(self, device: Device) -> None:
        """Erase the device from AWS, without a time limit, by a plan made before the first deletion."""
        while not self._state.is_torn_down:
            self._state.mark_retries_handled()
            try:
                await self._run_teardown(device)
            except ActivityError as error:
                raise_if_cancelled(error)
                await self._record_error(device, error, self._retry_limit)
                await self._wait_for(lambda: self._state.retry_requested, at_most=TEARDOWN_RETRY_INTERVAL)

    async def _run_teardown(self, device: Device) -> None:
        if self._state.teardown is None:
            self._state.teardown = await self._run_teardown_step(
                "Plan the teardown", TeardownActivities.plan_teardown, device
            )
        plan = self._state.teardown
        for title, step in _TEARDOWN:
            await self._run_teardown_step(title, step, plan)
        result = await workflow.execute_activity_method(
            BindingActivities.close_binding, plan, **transaction("Close the binding")
        )
        self._state.last_error = None
        self._set_status(result.status)

    # Steps and waits

    async def _run_step(
        self, title: str, step: Callable[[Any, Device], Result], device: Device, retry_for: timedelta
    ) -> Result:
        """Run a step that a decommission cancels; it ends when its attempt has ended, cancelled or not."""
        self._show(title)
        handle = workflow.start_activity_method(step, device, **aws_step(summary(title, device), retry_for))
        self._step_in_progress = handle
        try:
            return await handle
        finally:
            self._step_in_progress = None

    async def _run_teardown_step(
        self, title: str, step: Callable[[Any, Argument], Result], argument: Argument
    ) -> Result:
        self._show(title)
        return await workflow.execute_activity_method(
            step, argument, **teardown_step(summary(title, self._state.device))
        )

    async def _record_error(self, device: Device, error: ActivityError, retried_for: timedelta) -> None:
        await workflow.execute_activity_method(
            BindingActivities.record_error,
            self._note_error(device, error, retried_for),
            **transaction("Record the error"),
        )

    async def _wait_for(self, condition: Callable[[], bool], at_most: timedelta | None = None) -> None:
        """Wait for a condition; continue as new if signals have made the history long meanwhile."""
        history_is_long = workflow.info().is_continue_as_new_suggested
        try:
            await workflow.wait_condition(lambda: condition() or history_is_long(), timeout=at_most)
        except TimeoutError:
            return
        if not condition():
            self._continue_as_new()

    def _continue_as_new(self) -> NoReturn:
        self._state.resumes = self._state.device is not None
        workflow.continue_as_new(self._state)

    # State

    @property
    def _retry_limit(self) -> timedelta:
        """The retry limit of a step of this device."""
        return timedelta(seconds=self._state.snapshot.step_retry_seconds)

    def _set_status(self, status: ProvisioningStatus | None) -> None:
        self._state.status = status
        show(self._state)

    def _update_snapshot(self, **changes: object) -> None:
        self._state.snapshot = self._state.snapshot.model_copy(update=changes)

    def _show(self, step: str) -> None:
        self._state.step = step
        show(self._state)

    def _note_error(self, device: Device, error: ActivityError, retried_for: timedelta) -> FailureReport:
        """Store, show and log an error, and return the report for the binding."""
        code, reason = failure_of(error, retried_for.total_seconds())
        self._state.last_error = LastError(code=code, reason=reason)
        workflow.logger.error("%s: %s: %s", self._state.step, code, reason, extra=self._state.log_fields())
        show(self._state)
        return FailureReport(device=device, code=code, reason=reason)


_PROVISIONING: Final[Sequence[tuple[str, Callable[[Any, Device], StepResult]]]] = (
    ("Create the Thing", ThingActivities.ensure_thing),
    ("Issue the certificate and store its key", CertificateActivities.issue_certificate),
    ("Attach policy and Thing to the certificate", CertificateActivities.attach_certificate),
    ("Activate the certificate", CertificateActivities.activate_certificate),
)
_TEARDOWN: Final[Sequence[tuple[str, Callable[[Any, TeardownPlan], None]]]] = (
    ("Revoke the certificates", CertificateActivities.revoke_certificates),
    ("Erase the secret", SecretActivities.erase_secret),
    ("Erase the Thing, its jobs and shadows", ThingActivities.erase_thing),
)

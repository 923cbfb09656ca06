"""The activities of the shadow poll: find the deltas of the fleet, publish each once, start its command."""

import asyncio
from collections.abc import Awaitable
from enum import StrEnum
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFreeError
from sqlmodel import Session
from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError

from activities.attempt import AttemptTooSlowError, record_progress
from activities.bindings import transaction
from aws.errors import AwsError
from aws.shadows import Shadows
from db.models import ShadowDeltaRow
from db.outbox import enqueue
from db.shadow_deltas import (
    PendingCommand,
    Visit,
    delete_delta,
    lock_active,
    mark_command_started,
    page_ends,
    pending_commands,
    save_delta,
    visits,
)
from domain.command import (
    APPLY_DESIRED_STATE,
    Command,
    CommandTarget,
    TargetKind,
    delta_correlation_id,
    job_id,
)
from domain.delta_poll import DeltaCounts, DeltaPage, PageProgress, PagesRequest
from domain.failure import FailureCode
from domain.outgoing_event import DeviceDesiredStateChanged
from domain.shadow import Delta, InvalidShadowError, read_delta
from observability.context import set_context
from observability.metrics import DELTAS_DETECTED, POLL_FAILED, POLL_VISITED

# This many devices without an answer in a row mean that AWS is throttling or down, not that the devices fail.
_UNANSWERED_IN_A_ROW: Final = 5
# Each start costs Temporal's server a few milliseconds.
_CONCURRENT_STARTS: Final = 10
_COMMANDS_PER_BATCH: Final = 100
# These errors affect every device and not one, so the page is retried until the database is back.
_DATABASE_DOWN: Final = (OperationalError, InterfaceError, NoConnectionFreeError)


class _Outcome(StrEnum):
    """The result of reading one shadow; all but UNCHANGED are names of `DeltaCounts` fields."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    CLEARED = "cleared"
    FAILED = "failed"


class SendCommand(Protocol):
    """Starts a command's workflow for a Thing, unless one is running or has run."""

    def __call__(self, command: Command, *, thing_name: str) -> Awaitable[Any]: ...


class ShadowDeltaActivities:
    """The activities of the shadow poll.

    Args:
        engine: the bridge's database.
        shadows: the Device Shadows in AWS.
        send: starts a command's workflow.
        page_size: the number of bindings of a page.
        job_id_prefix: the prefix of the ids of the commands' jobs.
        starts_commands: whether this deployment runs commands; if not, deltas are published only.
    """

    def __init__(
        self,
        engine: Engine,
        shadows: Shadows,
        send: SendCommand,
        *,
        page_size: int,
        job_id_prefix: str,
        starts_commands: bool,
    ) -> None:
        self._engine = engine
        self._shadows = shadows
        self._send = send
        self._page_size = page_size
        self._job_id_prefix = job_id_prefix
        self._starts_commands = starts_commands

    @activity.defn(name="next_delta_pages", no_thread_cancel_exception=True)
    def next_delta_pages(self, request: PagesRequest) -> list[DeltaPage]:
        """Return the bounds of the next pages of active bindings; fewer than requested at the fleet's end."""
        with Session(self._engine) as session:
            ends = page_ends(session, request.after, page_size=self._page_size, at_most=request.at_most)
        starts = [request.after, *ends]
        return [DeltaPage(after=after, through=through) for after, through in zip(starts, ends, strict=False)]

    @activity.defn(name="poll_delta_page", no_thread_cancel_exception=True)
    def poll_delta_page(self, page: DeltaPage) -> DeltaCounts:
        """Read the shadows of a page's devices and publish each delta that was not published before.

        Raises:
            AwsError: several devices in a row got no answer from AWS; the next attempt continues from there.
            AttemptTooSlowError: the attempt has no time left; the next attempt continues from there.
            ApplicationError: this worker is shutting down; the next attempt continues from there.
            CancelledError: the poll was cancelled.
        """
        details = activity.info().heartbeat_details
        progress = PageProgress.model_validate(details[0]) if details else PageProgress(after=page.after)
        record_progress(progress)
        with Session(self._engine) as session:
            remaining = visits(session, progress.after, page.through)
        unanswered = 0
        for visit in remaining:
            _stop_if_requested()
            set_context(tenant_id=visit.tenant_id, device_id=visit.device_id, thing_name=visit.thing_name)
            try:
                outcome = self._visit(visit)
                unanswered = 0
            except (AttemptTooSlowError, *_DATABASE_DOWN):
                raise
            except (AwsError, InvalidShadowError) as error:
                unanswered = unanswered + 1 if _is_no_answer(error) else 0
                if unanswered == _UNANSWERED_IN_A_ROW:
                    raise
                activity.logger.warning("shadow of %s not read: %s", visit.thing_name, error)
                outcome = _Outcome.FAILED
            except Exception:  # noqa: BLE001  # no error of one device may stop the other devices
                activity.logger.exception("shadow of %s not read", visit.thing_name)
                outcome = _Outcome.FAILED
            _count(visit, outcome)
            progress = _advance(progress, visit, outcome)
            # Devices without an answer are not recorded yet: if AWS is the cause, they are read again.
            if not unanswered:
                record_progress(progress)
        return progress.counts

    @activity.defn(name="start_delta_commands")
    async def start_delta_commands(self) -> int:
        """Start the command of each delta that has none yet, and return how many were started.

        The delta is committed before the start, and the time of the start after it. A crash in between
        leaves the delta to the next poll; the command's id is made from the delta, so a second start finds
        the same command.

        Raises:
            ApplicationError: Temporal accepted none of a batch of commands.
        """
        started, after = 0, None
        if not self._starts_commands:
            return started
        while batch := await asyncio.to_thread(self._pending_commands, after):
            slots = asyncio.Semaphore(_CONCURRENT_STARTS)
            errors = await asyncio.gather(*(self._start(delta, slots) for delta in batch))
            accepted = [delta for delta, error in zip(batch, errors, strict=True) if error is None]
            await asyncio.to_thread(self._mark_started, accepted)
            if not accepted:
                raise ApplicationError(
                    f"Temporal accepted none of the commands: {errors[0]}", type="NotStarted"
                )
            started, after = started + len(accepted), batch[-1].device_id
        return started

    def _visit(self, visit: Visit) -> _Outcome:
        delta = self._read(visit.thing_name)
        if delta is None:
            if visit.known_hash is None:
                return _Outcome.UNCHANGED
            with transaction(self._engine) as session:
                delete_delta(session, visit.device_id)
            return _Outcome.CLEARED
        if delta.digest != visit.known_hash:
            return self._publish(visit, delta)
        # An attempt of this poll can have published the delta and crashed before it counted it.
        return _Outcome.CHANGED if visit.found_by == _run_id() else _Outcome.UNCHANGED

    def _read(self, thing_name: str) -> Delta | None:
        """Return the delta of a Thing's classic shadow; None without a shadow or without a delta."""
        document = self._shadows.read(thing_name)
        if document is None:
            return None
        delta = read_delta(document)
        return delta if delta.state else None

    def _publish(self, visit: Visit, delta: Delta) -> _Outcome:
        correlation_id = delta_correlation_id(visit.device_id, delta.version)
        with transaction(self._engine) as session:
            # The device can have been decommissioned since the page was listed.
            if not lock_active(session, visit):
                return _Outcome.UNCHANGED
            row = save_delta(session, visit, delta, correlation_id, found_by=_run_id())
            if row is None:
                # Another attempt at this page was first, and enqueued the event in the same transaction.
                return _Outcome.CHANGED
            if not enqueue(session, self._event(visit, row), row.shadow_version):
                # The versions of a deleted shadow begin again, so an earlier delta was published at this
                # version. Both would have the same ids, and consumers would drop this event as a repeat.
                row.correlation_id = uuid4()
                enqueue(session, self._event(visit, row), row.shadow_version, row.correlation_id)
        DELTAS_DETECTED.add(visit.tenant_id, "poll_delta_page")
        return _Outcome.CHANGED

    def _event(self, visit: Visit, row: ShadowDeltaRow) -> DeviceDesiredStateChanged:
        return DeviceDesiredStateChanged(
            device_id=visit.device_id,
            tenant_id=visit.tenant_id,
            binding_id=visit.binding_id,
            thing_name=visit.thing_name,
            shadow_version=row.shadow_version,
            delta=row.delta,
            correlation_id=row.correlation_id,
            job_id=job_id(self._job_id_prefix, row.correlation_id),
        )

    def _pending_commands(self, after: UUID | None) -> list[PendingCommand]:
        with Session(self._engine) as session:
            return pending_commands(session, after, at_most=_COMMANDS_PER_BATCH)

    async def _start(self, delta: PendingCommand, slots: asyncio.Semaphore) -> RPCError | None:
        """Start a delta's command unless it is running or has run; return the error if Temporal refuses."""
        command = Command(
            correlation_id=delta.correlation_id,
            target=CommandTarget(kind=TargetKind.DEVICE, value=str(delta.device_id)),
            operation=APPLY_DESIRED_STATE,
            parameters=delta.delta,
            tenant_id=delta.tenant_id,
        )
        # `gather` runs this in a separate task, so the context is this delta's only.
        set_context(tenant_id=delta.tenant_id, device_id=delta.device_id, thing_name=delta.thing_name)
        async with slots:
            try:
                await self._send(command, thing_name=delta.thing_name)
            except RPCError as error:
                activity.logger.warning("command for %s not started: %s", delta.thing_name, error)
                return error
            finally:
                activity.heartbeat()
        return None

    def _mark_started(self, started: list[PendingCommand]) -> None:
        with transaction(self._engine) as session:
            mark_command_started(session, started)


def _count(visit: Visit, outcome: _Outcome) -> None:
    POLL_VISITED.add(visit.tenant_id, "poll_delta_page")
    if outcome is _Outcome.FAILED:
        POLL_FAILED.add(visit.tenant_id, "poll_delta_page")


def _advance(progress: PageProgress, visit: Visit, outcome: _Outcome) -> PageProgress:
    counted = {} if outcome is _Outcome.UNCHANGED else {outcome.value: 1}
    return PageProgress(
        after=visit.binding_id, counts=progress.counts.plus(DeltaCounts(visited=1, **counted))
    )


def _is_no_answer(error: AwsError | InvalidShadowError) -> bool:
    """Return whether AWS gave no answer about the device: the call was throttled, unanswered or denied."""
    if not isinstance(error, AwsError):
        return False
    return error.retryable or error.failure_code is FailureCode.ACCESS_DENIED


def _run_id() -> str:
    run_id = activity.info().workflow_run_id
    if run_id is None:
        raise ApplicationError("this activity runs as part of a poll only", non_retryable=True)
    return run_id


def _stop_if_requested() -> None:
    """End the attempt where the poll was cancelled or this worker is shutting down.

    Raises:
        CancelledError: the poll was cancelled.
        ApplicationError: this worker is shutting down; another worker continues from the recorded progress.
    """
    if activity.is_cancelled():
        raise CancelledError("the poll was cancelled")
    if activity.is_worker_shutdown():
        raise ApplicationError("this worker is shutting down: another one continues", type="WorkerStops")

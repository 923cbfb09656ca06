"""The desired changes in the fleet's shadows: found, told once each, and made commands."""

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
from aws.clients import AwsClients
from aws.errors import AwsError, NotFoundError
from db.models import ShadowDeltaRow
from db.outbox import put
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

_UNANSWERED_IN_A_ROW: Final = 5
"""As many devices without an answer are no matter of these devices any more: AWS is throttling, or away."""

_STARTED_AT_ONCE: Final = 10
"""Commands on their way to Temporal side by side, each a few milliseconds of its server's."""

_COMMANDS_A_ROUND: Final = 100

# Not one device's error: it would be every other one's too, so the page waits until it is mended.
_DATABASE_AWAY: Final = (OperationalError, InterfaceError, NoConnectionFreeError)


class _Outcome(StrEnum):
    """What came of one shadow; but for the first, names of the counts."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    CLEARED = "cleared"
    FAILED = "failed"


class SendCommand(Protocol):
    """Starts a command's workflow for a Thing, unless it runs or has run."""

    def __call__(self, command: Command, *, thing_name: str) -> Awaitable[Any]: ...


class ShadowDeltaActivities:
    """What the fleet's shadows want of their devices.

    Args:
        aws: the clients.
        engine: the bridge's database.
        send: hands a command to Temporal.
        page_size: how many bindings make a page.
        job_id_prefix: how the ids of the commands' jobs begin.
        starts_commands: whether they run there at all, else each delta is told and that is all.
    """

    def __init__(
        self,
        aws: AwsClients,
        engine: Engine,
        send: SendCommand,
        *,
        page_size: int,
        job_id_prefix: str,
        starts_commands: bool,
    ) -> None:
        self._aws = aws
        self._engine = engine
        self._send = send
        self._page_size = page_size
        self._job_id_prefix = job_id_prefix
        self._starts_commands = starts_commands

    @activity.defn(name="next_delta_pages", no_thread_cancel_exception=True)
    def next_delta_pages(self, request: PagesRequest) -> list[DeltaPage]:
        """The bounds of the next pages of active bindings; fewer than asked for where the fleet ends."""
        with Session(self._engine) as session:
            ends = page_ends(session, request.after, page_size=self._page_size, at_most=request.at_most)
        starts = [request.after, *ends]
        return [DeltaPage(after=after, through=through) for after, through in zip(starts, ends, strict=False)]

    @activity.defn(name="poll_delta_page", no_thread_cancel_exception=True)
    def poll_delta_page(self, page: DeltaPage) -> DeltaCounts:
        """Read the shadows of a page's devices, and tell of each delta that was not told before.

        Raises:
            ApplicationError: the page cannot be read to its end now; the next attempt goes on from there.
        """
        details = activity.info().heartbeat_details
        progress = PageProgress.model_validate(details[0]) if details else PageProgress(after=page.after)
        record_progress(progress)
        with Session(self._engine) as session:
            ahead = visits(session, progress.after, page.through)
        unanswered = 0
        for visit in ahead:
            _unless_told_to_stop()
            set_context(tenant_id=visit.tenant_id, device_id=visit.device_id, thing_name=visit.thing_name)
            try:
                outcome = self._visit(visit)
                unanswered = 0
            except (AttemptTooSlowError, *_DATABASE_AWAY):
                raise
            except (AwsError, InvalidShadowError) as error:
                unanswered = unanswered + 1 if _is_no_answer(error) else 0
                if unanswered == _UNANSWERED_IN_A_ROW:
                    raise
                activity.logger.warning("the shadow of %s was not read: %s", visit.thing_name, error)
                outcome = _Outcome.FAILED
            except Exception:  # noqa: BLE001  # whatever is wrong with one device, the rest go on
                activity.logger.exception("the shadow of %s was not read", visit.thing_name)
                outcome = _Outcome.FAILED
            _count(visit, outcome)
            progress = _behind(visit, outcome, progress)
            # Those without an answer are not behind us yet: should it prove to be AWS, they are read again.
            if not unanswered:
                record_progress(progress)
        return progress.counts

    @activity.defn(name="start_delta_commands")
    async def start_delta_commands(self) -> int:
        """Start the command of each delta that has none yet, and return how many were started.

        A delta and the note that its command is started are two commits, with the start between: a crash
        leaves a delta to the next poll, and the id, which is the delta's own, makes a second start no other.
        """
        started, after = 0, None
        if not self._starts_commands:
            return started
        while batch := await asyncio.to_thread(self._uncommanded, after):
            slots = asyncio.Semaphore(_STARTED_AT_ONCE)
            faults = await asyncio.gather(*(self._start(delta, slots) for delta in batch))
            done = [delta for delta, fault in zip(batch, faults, strict=True) if fault is None]
            await asyncio.to_thread(self._mark, done)
            if not done:
                raise ApplicationError(f"Temporal takes none of the commands: {faults[0]}", type="NotStarted")
            started, after = started + len(done), batch[-1].device_id
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
            return self._tell(visit, delta)
        # Found by this very poll, in an attempt that died before it could say so.
        return _Outcome.CHANGED if visit.found_by == _this_run() else _Outcome.UNCHANGED

    def _read(self, thing_name: str) -> Delta | None:
        """The delta in a Thing's classic shadow, if it has both."""
        try:
            payload = self._aws.call(
                lambda: self._aws.iot_data.get_thing_shadow(thingName=thing_name)["payload"].read()
            )
        except NotFoundError:
            return None
        delta = read_delta(payload)
        return delta if delta.state else None

    def _tell(self, visit: Visit, delta: Delta) -> _Outcome:
        correlation_id = delta_correlation_id(visit.device_id, delta.version)
        with transaction(self._engine) as session:
            # It may have been decommissioned since it was listed.
            if not lock_active(session, visit):
                return _Outcome.UNCHANGED
            kept = save_delta(session, visit, delta, correlation_id, found_by=_this_run())
            if kept is None:
                # Another attempt at this page was first, and told of it in the same transaction.
                return _Outcome.CHANGED
            if not put(session, self._event(visit, kept), kept.shadow_version):
                # A shadow that was deleted and begins again has come to a version that was told of before:
                # the ids made of it are another delta's, whose repeat this would be to everyone.
                kept.correlation_id = uuid4()
                put(session, self._event(visit, kept), kept.shadow_version, kept.correlation_id)
        DELTAS_DETECTED.add(visit.tenant_id, "poll_delta_page")
        return _Outcome.CHANGED

    def _event(self, visit: Visit, kept: ShadowDeltaRow) -> DeviceDesiredStateChanged:
        return DeviceDesiredStateChanged(
            device_id=visit.device_id,
            tenant_id=visit.tenant_id,
            binding_id=visit.binding_id,
            thing_name=visit.thing_name,
            shadow_version=kept.shadow_version,
            delta=kept.delta,
            correlation_id=kept.correlation_id,
            job_id=job_id(self._job_id_prefix, kept.correlation_id),
        )

    def _uncommanded(self, after: UUID | None) -> list[PendingCommand]:
        with Session(self._engine) as session:
            return pending_commands(session, after, at_most=_COMMANDS_A_ROUND)

    async def _start(self, delta: PendingCommand, slots: asyncio.Semaphore) -> RPCError | None:
        """Start a delta's command, unless it runs or has run; return why that could not be done."""
        command = Command(
            correlation_id=delta.correlation_id,
            target=CommandTarget(kind=TargetKind.DEVICE, value=str(delta.device_id)),
            operation=APPLY_DESIRED_STATE,
            parameters=delta.delta,
            tenant_id=delta.tenant_id,
        )
        # In a task of its own, so of this delta alone.
        set_context(tenant_id=delta.tenant_id, device_id=delta.device_id, thing_name=delta.thing_name)
        async with slots:
            try:
                await self._send(command, thing_name=delta.thing_name)
            except RPCError as error:
                activity.logger.warning("the command for %s was not started: %s", delta.thing_name, error)
                return error
            finally:
                activity.heartbeat()
        return None

    def _mark(self, started: list[PendingCommand]) -> None:
        with transaction(self._engine) as session:
            mark_command_started(session, started)


def _count(visit: Visit, outcome: _Outcome) -> None:
    POLL_VISITED.add(visit.tenant_id, "poll_delta_page")
    if outcome is _Outcome.FAILED:
        POLL_FAILED.add(visit.tenant_id, "poll_delta_page")


def _behind(visit: Visit, outcome: _Outcome, progress: PageProgress) -> PageProgress:
    counted = {} if outcome is _Outcome.UNCHANGED else {outcome.value: 1}
    return PageProgress(
        after=visit.binding_id, counts=progress.counts.plus(DeltaCounts(visited=1, **counted))
    )


def _is_no_answer(error: AwsError | InvalidShadowError) -> bool:
    """Whether AWS said nothing of the device: throttled, unreachable, or closed to these credentials."""
    if not isinstance(error, AwsError):
        return False
    return error.retryable or error.failure_code is FailureCode.ACCESS_DENIED


def _this_run() -> str:
    return activity.info().workflow_run_id or ""


def _unless_told_to_stop() -> None:
    """Let go of the page where the poll was cancelled, and hand it on where this worker stops.

    Raises:
        CancelledError, ApplicationError: so.
    """
    if activity.is_cancelled():
        raise CancelledError("the poll was cancelled")
    if activity.is_worker_shutdown():
        raise ApplicationError("this worker stops: another goes on from here", type="WorkerStops")

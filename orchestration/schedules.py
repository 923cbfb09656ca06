"""The schedules: created at the start of a worker, and updated where the settings have changed."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, Final

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError

from domain.area import ALL_AREAS, Area
from domain.names import (
    CLAIM_CERTIFICATE_CHECK,
    CLAIM_CERTIFICATE_CHECK_SCHEDULE,
    COMMAND_GROUP_SWEEP,
    COMMAND_GROUP_SWEEP_SCHEDULE,
    ERASURE_SWEEP,
    ERASURE_SWEEP_SCHEDULE,
    SHADOW_DELTA_POLL,
    SHADOW_DELTA_POLL_SCHEDULE,
)
from domain.operator_error import OperatorError

_SHORTEST_CATCHUP: Final = timedelta(seconds=10)
"""Temporal allows no shorter catch-up window."""


class ScheduleError(OperatorError):
    """Temporal does not allow this client to create or change a schedule."""


def schedules(
    task_queue: str,
    *,
    poll_interval_seconds: int,
    claim_check_interval_hours: int,
    areas: Collection[Area] = ALL_AREAS,
) -> dict[str, Schedule]:
    """Return the schedules of these areas, by id."""
    # In every area, because only the retention setting decides whether anything is erased.
    wanted = {ERASURE_SWEEP_SCHEDULE: _every(timedelta(days=1), ERASURE_SWEEP, task_queue)}
    if Area.SHADOW in areas:
        wanted[SHADOW_DELTA_POLL_SCHEDULE] = _every(
            timedelta(seconds=poll_interval_seconds), SHADOW_DELTA_POLL, task_queue
        )
    if Area.FLEET_PROVISIONING in areas:
        wanted[CLAIM_CERTIFICATE_CHECK_SCHEDULE] = _every(
            timedelta(hours=claim_check_interval_hours), CLAIM_CERTIFICATE_CHECK, task_queue
        )
    if Area.JOBS in areas:
        # A group is deleted after it was unused for hours: one more does not matter.
        wanted[COMMAND_GROUP_SWEEP_SCHEDULE] = _every(timedelta(hours=1), COMMAND_GROUP_SWEEP, task_queue)
    return wanted


async def upsert_schedules(client: Client, wanted: Mapping[str, Schedule]) -> None:
    """Create the schedules that are missing, and update those that differ. Keep an operator's pause and note.

    Raises:
        ScheduleError: this client lacks the permission, or Temporal rejects the request.
    """
    for schedule_id, schedule in wanted.items():
        try:
            await _upsert(client, schedule_id, schedule)
        except RPCError as error:
            raise ScheduleError(
                f"cannot create or change the schedule {schedule_id} of namespace {client.namespace} "
                f"(TEMPORAL_NAMESPACE): {error.message}"
            ) from None


async def _upsert(client: Client, schedule_id: str, wanted: Schedule) -> None:
    def changed(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
        existing = found.description.schedule
        if _comparable(existing) == _comparable(wanted):
            return None
        # The state holds the operator's pause and note.
        return ScheduleUpdate(
            Schedule(action=wanted.action, spec=wanted.spec, policy=wanted.policy, state=existing.state)
        )

    try:
        await client.create_schedule(schedule_id, wanted)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(schedule_id).update(changed)


def _every(interval: timedelta, workflow: str, task_queue: str) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(workflow, id=workflow, task_queue=task_queue),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=interval)]),
        policy=SchedulePolicy(
            # Where a run takes longer than the interval, a second one must not start over the same rows.
            overlap=ScheduleOverlapPolicy.SKIP,
            # Each run visits everything: one run makes up for all that were missed while Temporal was down.
            catchup_window=max(interval, _SHORTEST_CATCHUP),
            pause_on_failure=False,
        ),
    )


def _comparable(schedule: Schedule) -> tuple[Any, ...]:
    """Return the parts that this module sets; the server fills in others, so whole schedules differ."""
    action = schedule.action
    return (
        (action.workflow, action.id, action.task_queue)
        if isinstance(action, ScheduleActionStartWorkflow)
        else None,
        [(each.every, each.offset or timedelta()) for each in schedule.spec.intervals],
        [*schedule.spec.calendars, *schedule.spec.cron_expressions, *schedule.spec.skip],
        schedule.policy,
    )

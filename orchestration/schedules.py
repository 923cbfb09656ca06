"""What runs by the clock: one schedule each, made and kept as the settings say when a worker starts."""

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
"""Temporal takes no shorter one."""


class ScheduleError(OperatorError):
    """Temporal does not let this client make or change a schedule."""


def schedules(
    task_queue: str,
    *,
    poll_interval_seconds: int,
    claim_check_interval_hours: int,
    areas: Collection[Area] = ALL_AREAS,
) -> dict[str, Schedule]:
    """Every schedule there must be for these areas, by its id."""
    # Also where nothing is to be erased, so that turning that off takes no more than the setting.
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
        # A group is unused for hours before it is deleted: one more does not matter.
        wanted[COMMAND_GROUP_SWEEP_SCHEDULE] = _every(timedelta(hours=1), COMMAND_GROUP_SWEEP, task_queue)
    return wanted


async def upsert_schedules(client: Client, wanted: Mapping[str, Schedule]) -> None:
    """Make the schedules that are missing, and change those that differ; what an operator did to one stays.

    Raises:
        ScheduleError: this client may not; says what Temporal answered.
    """
    for schedule_id, schedule in wanted.items():
        try:
            await _upsert(client, schedule_id, schedule)
        except RPCError as error:
            raise ScheduleError(
                f"cannot make or change the schedule {schedule_id} of namespace {client.namespace} "
                f"(TEMPORAL_NAMESPACE): {error.message}"
            ) from None


async def _upsert(client: Client, schedule_id: str, wanted: Schedule) -> None:
    def changed(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
        held = found.description.schedule
        if _essence(held) == _essence(wanted):
            return None
        # Paused or not, and why, is the operator's.
        return ScheduleUpdate(
            Schedule(action=wanted.action, spec=wanted.spec, policy=wanted.policy, state=held.state)
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
            # One that takes longer than the interval is no reason for two at once over the same rows.
            overlap=ScheduleOverlapPolicy.SKIP,
            # Each visits everything there is: what was missed while Temporal was down is worth one, not all.
            catchup_window=max(interval, _SHORTEST_CATCHUP),
            pause_on_failure=False,
        ),
    )


def _essence(schedule: Schedule) -> tuple[Any, ...]:
    """What a schedule is made of here; the server fills in the rest, so that wholes never compare equal."""
    action = schedule.action
    return (
        (action.workflow, action.id, action.task_queue)
        if isinstance(action, ScheduleActionStartWorkflow)
        else None,
        [(each.every, each.offset or timedelta()) for each in schedule.spec.intervals],
        [*schedule.spec.calendars, *schedule.spec.cron_expressions, *schedule.spec.skip],
        schedule.policy,
    )

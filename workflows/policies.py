"""How long each kind of activity may take and how it is retried, each with its why."""

from datetime import timedelta
from typing import Final

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig, LocalActivityConfig

# For what the error seam gives no delay of its own: the database away, a bug being rolled back.
_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(minutes=1)
)

# A decommission cancels a step. In backoff it ends at once; at work it finishes its attempt, and only then
# may anything be torn down, else the attempt would make anew what the teardown has just erased.
_UNTIL_REPORTED: Final = ActivityCancellationType.WAIT_CANCELLATION_COMPLETED

_ONE_POLL: Final = timedelta(hours=1)


def saga_step(summary: str, retry_seconds: float) -> ActivityConfig:
    """A step towards Active: a few AWS calls, each with time to be answered, retried for as long as is set.

    The time of one attempt is also how soon another worker takes over from one that died.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(seconds=45),
        schedule_to_close_timeout=timedelta(seconds=retry_seconds),
        retry_policy=_RETRY,
        cancellation_type=_UNTIL_REPORTED,
    )


def teardown_step(summary: str) -> ActivityConfig:
    """Erasing lists before it deletes, so its length has no bound of ours; it says that it lives instead.

    It is retried for ever: a device that was decommissioned must not stay in AWS because a limit ran out.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=timedelta(seconds=30),
        retry_policy=_RETRY,
        cancellation_type=_UNTIL_REPORTED,
    )


def checkpoint(summary: str) -> ActivityConfig:
    """One transaction. The saga cannot go on without it, so it is retried until the database is back."""
    return ActivityConfig(summary=summary, start_to_close_timeout=timedelta(seconds=30), retry_policy=_RETRY)


def publishing(summary: str) -> ActivityConfig:
    """A round of some minutes, which says that it lives: events wait no longer than that for another worker.

    It is retried for ever: an event that was not sent is kept until its receiver is back.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=15),
        heartbeat_timeout=timedelta(seconds=15),
        retry_policy=_RETRY,
    )


def command_step(summary: str, within: timedelta) -> ActivityConfig:
    """Finding a command's target or making its job: a few AWS calls, for as long as the command may take.

    Cancelled, it finishes its attempt first: only then is it known whether there is a job to cancel.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(seconds=45),
        schedule_to_close_timeout=within,
        retry_policy=_RETRY,
        cancellation_type=_UNTIL_REPORTED,
    )


def job_watch(summary: str, task_queue: str, within: timedelta) -> ActivityConfig:
    """Each attempt is one look at the job: retries stand in no history, and their queue bounds their rate.

    The activity itself ends at the deadline. Temporal's own limit lies behind it, since Temporal ends a
    retrying activity as soon as its next retry would pass the limit. Cancelled, it is not waited for: what
    it was looking at is looked at again.
    """
    return ActivityConfig(
        summary=summary,
        task_queue=task_queue,
        start_to_close_timeout=timedelta(seconds=45),
        schedule_to_close_timeout=within + LATENESS,
        retry_policy=_RETRY,
        cancellation_type=ActivityCancellationType.TRY_CANCEL,
    )


def job_cancellation(summary: str) -> ActivityConfig:
    """Retried long enough for an operator to grant what is missing; then the end is told all the same."""
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(seconds=90),
        schedule_to_close_timeout=CANCELLATION_PATIENCE,
        retry_policy=_RETRY,
    )


def delta_page(summary: str) -> ActivityConfig:
    """Up to a thousand reads, in order: an attempt may be long, since the next goes on where it ended.

    It says before each read that it lives, and a read ends within 8 s: one that is silent for longer has
    died with its worker. A page that cannot be read for an hour is left to the next poll, for the fleet's
    sake.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        schedule_to_close_timeout=_ONE_POLL,
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=_RETRY,
    )


def poll_step(summary: str) -> ActivityConfig:
    """What the poll does between pages. What it cannot do within an hour the next poll does."""
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        schedule_to_close_timeout=_ONE_POLL,
        heartbeat_timeout=timedelta(seconds=30),
        retry_policy=_RETRY,
    )


def fleet_page(summary: str) -> ActivityConfig:
    """A page of some thousand rows, which says after each that it lives, and is retried until it is done.

    A repeat does no harm; there is no second check meanwhile, and the next one is a day away.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=timedelta(seconds=30),
        retry_policy=_RETRY,
    )


def sweep(summary: str) -> ActivityConfig:
    """Work of a schedule, of any length: it says that it lives, and what is left the next run does."""
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=30),
        heartbeat_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=3),
    )


PREPARATION: Final = timedelta(days=1)
"""How long a command's target may take to be found, while AWS or the database is away."""

LATENESS: Final = timedelta(minutes=10)
"""How far a step may overrun a command's deadline: throttled, or waiting for its turn."""

CANCELLATION_PATIENCE: Final = timedelta(hours=1)
"""How long AWS may refuse to cancel a job before the command's end is told without that."""

# Every event is folded before anything else, mostly in a few milliseconds: as a local activity that is one
# history event instead of six. Where the database is away it gives up soon, and the same activity is
# scheduled as an ordinary one, which waits at the server and shows in the UI.
FOLD: Final = LocalActivityConfig(
    schedule_to_close_timeout=timedelta(seconds=5),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=3),
)

RETIREMENT_SECONDS: Final = 600.0
"""How long a replaced certificate is tried to be erased; the device's later events wait for it."""

CREDENTIALS_RECHECK: Final = timedelta(seconds=30)
"""How long a step that was given up for want of keys for AWS waits before it is begun again."""

TEARDOWN_RECHECK: Final = timedelta(hours=1)
"""How long a teardown that AWS refuses waits for an operator's retry before it looks again by itself."""

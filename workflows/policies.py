"""The timeouts and retries of every activity, each with its reason.

A timeout of one attempt (start to close) is also how long a worker that died delays the next attempt, unless
a heartbeat timeout is shorter. A retry limit (schedule to close) bounds all attempts together.
"""

from datetime import timedelta
from typing import Final

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig, LocalActivityConfig

# For errors without a delay of their own: the database is unavailable, or a bug is being rolled back.
_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(minutes=1)
)

# A cancelled step ends at once while it is in backoff; a running attempt is awaited. Otherwise it could
# create resources in AWS that the teardown, or the cancellation of the job, has just deleted.
_UNTIL_ATTEMPT_HAS_ENDED: Final = ActivityCancellationType.WAIT_CANCELLATION_COMPLETED

_ONE_POLL: Final = timedelta(hours=1)

APPLY_EVENT: Final = LocalActivityConfig(
    schedule_to_close_timeout=timedelta(seconds=5),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=3),
)
"""One short transaction per event. A local activity costs one event of the history instead of six.

If the database is unavailable, it gives up soon and the workflow schedules it again as an ordinary activity
(see `transaction`), which is retried by the server and shown in the UI.
"""

RETIRED_CERTIFICATES_RETRY_LIMIT: Final = timedelta(minutes=10)
"""The retry limit of erasing replaced certificates: later events of the device wait for it."""

CREDENTIALS_RETRY_INTERVAL: Final = timedelta(seconds=30)
"""The wait before a step whose retries ended without AWS keys is scheduled again."""

TEARDOWN_RETRY_INTERVAL: Final = timedelta(hours=1)
"""The longest wait for an operator's retry before a teardown that AWS refused is repeated."""

PREPARATION_RETRY_LIMIT: Final = timedelta(days=1)
"""The retry limit of finding a command's target, while AWS or the database is unavailable."""

DEADLINE_GRACE: Final = timedelta(minutes=10)
"""The time that a step may take beyond a command's deadline, throttled or waiting for a free worker."""

CANCELLATION_RETRY_LIMIT: Final = timedelta(hours=1)
"""The retry limit of cancelling a job; after it the command's end is published anyway.

It is long enough for an operator to grant a missing permission.
"""


def transaction(summary: str) -> ActivityConfig:
    """Return the policy of one database transaction.

    The workflow cannot continue without it, so it is retried until the database is back.
    """
    return ActivityConfig(summary=summary, start_to_close_timeout=timedelta(seconds=30), retry_policy=_RETRY)


def aws_step(summary: str, retry_for: timedelta) -> ActivityConfig:
    """Return the policy of a step of a few AWS calls, with a timeout long enough for all of them.

    Args:
        summary: the text that the UI shows beside the activity.
        retry_for: the retry limit.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(seconds=45),
        schedule_to_close_timeout=retry_for,
        retry_policy=_RETRY,
        cancellation_type=_UNTIL_ATTEMPT_HAS_ENDED,
    )


def teardown_step(summary: str) -> ActivityConfig:
    """Return the policy of a step that erases.

    It lists before it deletes, so its length has no bound: heartbeats show that its worker is alive. It has
    no retry limit, because a decommissioned device must not stay in AWS.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=timedelta(seconds=30),
        retry_policy=_RETRY,
        cancellation_type=_UNTIL_ATTEMPT_HAS_ENDED,
    )


def job_watch(summary: str, task_queue: str, within: timedelta) -> ActivityConfig:
    """Return the policy of watching a job: each attempt describes it once.

    Retries add no events to the history, and the rate of the task queue bounds their rate. The activity
    itself ends at the deadline. The retry limit is later than the deadline, because Temporal gives up as soon
    as the next attempt would exceed it. A cancelled attempt is not awaited, because the cancellation of the
    job describes the job again.

    Args:
        summary: the text that the UI shows beside the activity.
        task_queue: the queue whose rate limit bounds the attempts of all workers together.
        within: the time to the deadline.
    """
    return ActivityConfig(
        summary=summary,
        task_queue=task_queue,
        start_to_close_timeout=timedelta(seconds=45),
        schedule_to_close_timeout=within + DEADLINE_GRACE,
        retry_policy=_RETRY,
        cancellation_type=ActivityCancellationType.TRY_CANCEL,
    )


def job_cancellation(summary: str) -> ActivityConfig:
    """Return the policy of cancelling a job, retried until `CANCELLATION_RETRY_LIMIT`."""
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(seconds=90),
        schedule_to_close_timeout=CANCELLATION_RETRY_LIMIT,
        retry_policy=_RETRY,
    )


def batch(summary: str) -> ActivityConfig:
    """Return the policy of a page of some thousand rows, with a heartbeat after each row.

    It has no retry limit: a repeat does no harm, and the next run of its schedule is a day away.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=timedelta(seconds=30),
        retry_policy=_RETRY,
    )


def poll_step(summary: str) -> ActivityConfig:
    """Return the policy of the shadow poll's work between pages, which the next poll can do as well."""
    return ActivityConfig(**batch(summary), schedule_to_close_timeout=_ONE_POLL)


def shadow_page(summary: str) -> ActivityConfig:
    """Return the policy of reading a page of up to a thousand shadows.

    An attempt may be long, because the next one continues where it ended. A read ends within 8 seconds and
    has a heartbeat before it, so a longer silence means that the worker died. A page that cannot be read for
    an hour is left to the next poll, so that it does not delay the rest of the fleet.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=10),
        schedule_to_close_timeout=_ONE_POLL,
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=_RETRY,
    )


def outbox_round(summary: str) -> ActivityConfig:
    """Return the policy of a round of publishing, which lasts minutes.

    The heartbeat timeout is how long events wait for another worker after one died. There is no retry limit:
    an event that could not be sent is kept until its receiver is back.
    """
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=15),
        heartbeat_timeout=timedelta(seconds=15),
        retry_policy=_RETRY,
    )


def sweep(summary: str) -> ActivityConfig:
    """Return the policy of a sweep of any length. Three attempts are enough: the next run does the rest."""
    return ActivityConfig(
        summary=summary,
        start_to_close_timeout=timedelta(minutes=30),
        heartbeat_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=3),
    )

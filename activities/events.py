"""Run the publisher of the outbox as a Temporal activity."""

import time
from datetime import timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from domain.outbox import OutboxShard, Published
from events.publisher import EventNotSentError, Publisher, SinkDisabledError

_IDLE_SECONDS: Final = 1.0


class EventActivities:
    """The activity that publishes the events of one shard."""

    def __init__(
        self, publisher: Publisher, *, round_seconds: float = 600, disabled_recheck_seconds: float = 30
    ) -> None:
        """Store the dependencies.

        Args:
            publisher: sends the events.
            round_seconds: how long one activity sends events before it returns.
            disabled_recheck_seconds: the delay between two checks whether a disabled sink was enabled.
        """
        self._publisher = publisher
        self._round_seconds = round_seconds
        self._disabled_recheck = timedelta(seconds=disabled_recheck_seconds)

    @activity.defn(name="publish_outbox", no_thread_cancel_exception=True)
    def publish_outbox(self, shard: OutboxShard) -> Published:
        """Send the events of a shard as they are written, until the round ends or the worker stops.

        Events that were sent before the retention time are deleted in between.

        Raises:
            ApplicationError: an event could not be sent, or the sink is disabled; both are retryable.
        """
        deadline = time.monotonic() + self._round_seconds
        sent, may_have_expired = 0, True
        while True:
            activity.heartbeat(sent)
            if may_have_expired:
                may_have_expired = self._publisher.delete_expired(shard.number)
            batch = self._send_batch(shard, sent)
            sent += batch
            left = deadline - time.monotonic()
            if left <= 0 or activity.is_cancelled() or activity.is_worker_shutdown():
                return Published(sent=sent)
            if not (batch or may_have_expired):
                activity.wait_for_worker_shutdown_sync(min(left, _IDLE_SECONDS))

    def _send_batch(self, shard: OutboxShard, before: int) -> int:
        try:
            return self._publisher.send_batch(
                shard.number,
                heartbeat=lambda sent: activity.heartbeat(before + sent),
                should_stop=activity.is_worker_shutdown,
            )
        except EventNotSentError as error:
            # After a success the error is a new one, to which the backoff of earlier errors does not apply.
            first_backoff = timedelta(seconds=1) if before or error.sent else None
            raise ApplicationError(
                str(error), type="EventNotSent", next_retry_delay=error.wait or first_backoff
            ) from error.__cause__
        except SinkDisabledError as error:
            raise ApplicationError(
                str(error),
                type="EventSinkDisabled",
                next_retry_delay=self._disabled_recheck,
                # The publisher has logged an error once. Each later check fails too and shows in Temporal's
                # UI, but is not logged.
                category=ApplicationErrorCategory.BENIGN,
            ) from None

"""The endless publishing of one shard of the outbox."""

from typing import Final

from temporalio import workflow

from activities.events import EventActivities
from domain.names import OUTBOX_PUBLISHER
from domain.outbox import OUTBOX_SHARDS, OutboxShard
from workflows.policies import outbox_round

# Half a day of rounds of ten minutes, so that the history shown in the UI stays short.
_ROUNDS: Final = 72


@workflow.defn(name=OUTBOX_PUBLISHER)
class OutboxPublisher:
    """Publishes one shard in rounds; one round is always scheduled or running."""

    @workflow.run
    async def run(self, shard: OutboxShard) -> None:
        """Publish the shard's events as they are written; the run ends only by continuing as new.

        Args:
            shard: the part of the outbox.
        """
        sent = 0
        for _ in range(_ROUNDS):
            workflow.set_current_details(
                f"**Publishing the events of shard {shard.number}** (0 to {OUTBOX_SHARDS - 1})\n\n"
                f"Published in this run before the current round: {sent}\n\n"
                "An event that cannot be sent is shown as the last failure of the pending activity."
            )
            published = await workflow.execute_activity_method(
                EventActivities.publish_outbox,
                shard,
                **outbox_round(f"Publish the events of shard {shard.number}"),
            )
            sent += published.sent
            if workflow.info().is_continue_as_new_suggested():
                break
        workflow.continue_as_new(shard)

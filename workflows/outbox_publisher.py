"""Sending a shard of the outbox, for ever."""

from typing import Final

from temporalio import workflow

from activities.events import EventActivities
from domain.names import OUTBOX_PUBLISHER
from domain.outbox import OUTBOX_SHARDS, OutboxShard
from workflows.policies import outbox_round

# Half a day of rounds of ten minutes: what the UI shows of a run stays short.
_ROUNDS: Final = 72


@workflow.defn(name=OUTBOX_PUBLISHER)
class OutboxPublisher:
    """The one publisher of a shard: it sees to it that some worker is always at sending."""

    @workflow.run
    async def run(self, shard: OutboxShard) -> None:
        """Have the shard's events sent as they come; ends only by continuing as new.

        Args:
            shard: which part of the outbox.
        """
        sent = 0
        for _ in range(_ROUNDS):
            workflow.set_current_details(
                f"**Sending the events of shard {shard.number}** (0 to {OUTBOX_SHARDS - 1})\n\n"
                f"Sent in this run, before the round at work: {sent}\n\n"
                "What cannot be sent shows as the last failure of the pending activity."
            )
            published = await workflow.execute_activity_method(
                EventActivities.publish_outbox,
                shard,
                **outbox_round(f"Send the events of shard {shard.number} as they come"),
            )
            sent += published.sent
            if workflow.info().is_continue_as_new_suggested():
                break
        workflow.continue_as_new(shard)

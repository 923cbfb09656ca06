"""Deleting the dynamic thing groups that no command uses any more."""

from temporalio import workflow

from activities.command_groups import CommandGroupActivities
from domain.names import COMMAND_GROUP_SWEEP
from workflows.policies import sweep


@workflow.defn(name=COMMAND_GROUP_SWEEP)
class CommandGroupSweep:
    """One run of the schedule."""

    @workflow.run
    async def run(self) -> int:
        """Delete what is unused, and return how many groups that were."""
        return await workflow.execute_activity_method(
            CommandGroupActivities.sweep_command_groups,
            **sweep("Delete the dynamic thing groups no command uses"),
        )

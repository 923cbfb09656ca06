"""The sweep that deletes the dynamic thing groups that commands no longer use."""

from temporalio import workflow

from activities.command_groups import CommandGroupActivities
from domain.names import COMMAND_GROUP_SWEEP
from workflows.policies import sweep


@workflow.defn(name=COMMAND_GROUP_SWEEP)
class CommandGroupSweep:
    """One run of the sweep, started by its schedule."""

    @workflow.run
    async def run(self) -> int:
        """Delete the unused groups, and return how many were deleted."""
        return await workflow.execute_activity_method(
            CommandGroupActivities.sweep_command_groups,
            **sweep("Delete the dynamic thing groups no command uses"),
        )

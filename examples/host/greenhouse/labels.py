"""The host's own workflow, which does not use the bridge."""

from datetime import timedelta

from temporalio import activity, workflow


@activity.defn
async def print_label(serial_number: str) -> str:
    """Print a device's label, and return its text."""
    activity.logger.info("a label is printed for %s", serial_number)
    return f"GREENHOUSE {serial_number}"


@workflow.defn
class LabelDevice:
    """A workflow of the host's own, on the worker that also runs the bridge's."""

    @workflow.run
    async def run(self, serial_number: str) -> str:
        """Print a label, and return its text."""
        return await workflow.execute_activity(
            print_label, serial_number, start_to_close_timeout=timedelta(seconds=10)
        )

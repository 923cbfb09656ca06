"""The daily erasure of devices that have been decommissioned for long enough, page by page."""

from temporalio import workflow

from activities.erasure import ErasureActivities
from domain.erasure import Erased
from domain.names import ERASURE_SWEEP
from workflows.policies import transaction


@workflow.defn(name=ERASURE_SWEEP)
class ErasureSweep:
    """Erases all due devices, in several runs if the history would grow too long."""

    @workflow.run
    async def run(self, erased: Erased | None = None) -> Erased:
        """Erase every device whose retention is over, and return their number.

        Args:
            erased: the count of the previous runs, in a run that was continued as new; a client sends none.
        """
        count = erased.count if erased else 0
        while True:
            page = await workflow.execute_activity_method(
                ErasureActivities.erase_expired, **transaction("Erase devices whose retention is over")
            )
            count += page.count
            workflow.set_current_details(f"Devices erased: **{count}**")
            if page.count == 0:
                return Erased(count=count)
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(Erased(count=count))

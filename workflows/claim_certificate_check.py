"""The daily check of enrolled devices: warn of expiring claim certificates, and repeat lost follow-ups."""

from temporalio import workflow

from activities.claim_certificates import ClaimCertificateActivities
from domain.claim_check import CheckProgress, CheckTotals, ClaimPage, FollowUpPage
from domain.names import CLAIM_CERTIFICATE_CHECK
from workflows.policies import batch


@workflow.defn(name=CLAIM_CERTIFICATE_CHECK)
class ClaimCertificateCheck:
    """Check the fleet page by page, so that no activity and no history grows with its size."""

    @workflow.init
    def __init__(self, progress: CheckProgress | None = None) -> None:
        """Begin now, or continue where the previous run ended."""
        self._progress = progress or CheckProgress(at=workflow.now())

    @workflow.run
    async def run(self, progress: CheckProgress | None = None) -> CheckTotals:
        """Check every enrolled device once, and return the totals.

        Args:
            progress: where the previous run ended, in a run that was continued as new; a client sends none.
        """
        while not self._progress.claims_done:
            warnings = await workflow.execute_activity_method(
                ClaimCertificateActivities.warn_of_expiring_claims,
                ClaimPage(at=self._progress.at, after=self._progress.claims),
                **batch("Publish warnings of expiring claim certificates"),
            )
            self._advance(
                CheckTotals(warned=warnings.count), claims=warnings.next, claims_done=warnings.next is None
            )
        while not self._progress.follow_ups_done:
            sent = await workflow.execute_activity_method(
                ClaimCertificateActivities.follow_up_enrolments,
                FollowUpPage(after=self._progress.follow_ups),
                **batch("Signal enrolled devices whose follow-up never ran"),
            )
            self._advance(
                CheckTotals(signalled=sent.count), follow_ups=sent.next, follow_ups_done=sent.next is None
            )
        return self._progress.totals

    def _advance(self, more: CheckTotals, **position: object) -> None:
        totals = self._progress.totals.plus(more)
        self._progress = self._progress.model_copy(update={"totals": totals, **position})
        workflow.set_current_details(
            f"Warnings published: **{totals.warned}**\n\nDevices signalled again: {totals.signalled}"
        )
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._progress)

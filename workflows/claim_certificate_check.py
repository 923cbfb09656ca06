"""The daily look at enrolled devices: claim certificates that expire, follow-ups that never ran."""

from temporalio import workflow

from activities.claim_certificates import ClaimCertificateActivities
from domain.claim_check import CheckProgress, CheckTotals, ClaimPage, FollowUpPage
from domain.names import CLAIM_CERTIFICATE_CHECK
from workflows.policies import batch


@workflow.defn(name=CLAIM_CERTIFICATE_CHECK)
class ClaimCertificateCheck:
    """Takes the fleet page by page, so that its size bounds neither an activity nor a history."""

    @workflow.init
    def __init__(self, progress: CheckProgress | None = None) -> None:
        """Begin now, or go on from where another run ended."""
        self._progress = progress or CheckProgress(at=workflow.now())

    @workflow.run
    async def run(self, progress: CheckProgress | None = None) -> CheckTotals:
        """Look at every enrolled device once.

        Args:
            progress: none from a client; where the run before this one ended.
        """
        while not self._progress.claims_done:
            warnings = await workflow.execute_activity_method(
                ClaimCertificateActivities.warn_of_expiring_claims,
                ClaimPage(at=self._progress.at, after=self._progress.claims),
                **batch("Tell of claim certificates that expire"),
            )
            self._go_on(
                CheckTotals(warned=warnings.count), claims=warnings.next, claims_done=warnings.next is None
            )
        while not self._progress.follow_ups_done:
            sent = await workflow.execute_activity_method(
                ClaimCertificateActivities.follow_up_enrolments,
                FollowUpPage(after=self._progress.follow_ups),
                **batch("Signal enrolled devices whose follow-up never ran"),
            )
            self._go_on(
                CheckTotals(signalled=sent.count), follow_ups=sent.next, follow_ups_done=sent.next is None
            )
        return self._progress.totals

    def _go_on(self, more: CheckTotals, **to: object) -> None:
        totals = self._progress.totals.plus(more)
        self._progress = self._progress.model_copy(update={"totals": totals, **to})
        workflow.set_current_details(
            f"Claim certificates told of: **{totals.warned}**\n\nDevices signalled again: {totals.signalled}"
        )
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._progress)

"""Messages of the check of claim certificates. Temporal stores them: a new field needs a default."""

from datetime import datetime
from uuid import UUID

from domain.model import Message


class ClaimCursor(Message):
    """The last claim certificate of a page."""

    expires_at: datetime
    binding_id: UUID


class ClaimPage(Message):
    """Request for the page of claim certificates after a cursor. `at` is the start time of the check."""

    at: datetime
    after: ClaimCursor | None = None


class ClaimWarnings(Message):
    """The number of warnings for a page, and the cursor of the next page if there is one."""

    count: int
    next: ClaimCursor | None = None


class FollowUpPage(Message):
    """Request for the page of enrolled devices after a binding."""

    after: UUID | None = None


class FollowUpsSent(Message):
    """The number of workflows signalled for a page, and the cursor of the next page if there is one."""

    count: int
    next: UUID | None = None


class CheckTotals(Message):
    """The result of a check."""

    warned: int = 0
    signalled: int = 0

    def plus(self, more: "CheckTotals") -> "CheckTotals":
        """Return the sum of both."""
        return CheckTotals(warned=self.warned + more.warned, signalled=self.signalled + more.signalled)


class CheckProgress(Message):
    """The progress of a check, which a run passes to the next one when it continues as new."""

    at: datetime
    claims: ClaimCursor | None = None
    claims_done: bool = False
    follow_ups: UUID | None = None
    follow_ups_done: bool = False
    totals: CheckTotals = CheckTotals()

"""What the check of claim certificates and its activities say to each other. It stands in histories."""

from datetime import datetime
from uuid import UUID

from domain.model import Message


class ClaimCursor(Message):
    """The last claim certificate of a page."""

    expires_at: datetime
    binding_id: UUID


class ClaimPage(Message):
    """Which claim certificates to look at: those after a cursor, as of the moment the whole check began."""

    at: datetime
    after: ClaimCursor | None = None


class ClaimWarnings(Message):
    """How many expiring certificates were warned of, and where the next page begins, if there is one."""

    count: int
    next: ClaimCursor | None = None


class FollowUpPage(Message):
    """Which enrolled devices to look at: those after a binding."""

    after: UUID | None = None


class FollowUpsSent(Message):
    """How many workflows were signalled, and where the next page begins, if there is one."""

    count: int
    next: UUID | None = None


class CheckTotals(Message):
    """What a check has done."""

    warned: int = 0
    signalled: int = 0

    def plus(self, more: "CheckTotals") -> "CheckTotals":
        """Both together."""
        return CheckTotals(warned=self.warned + more.warned, signalled=self.signalled + more.signalled)


class CheckProgress(Message):
    """How far a check has come; a run hands it to the next where its history has grown long."""

    at: datetime
    claims: ClaimCursor | None = None
    claims_done: bool = False
    follow_ups: UUID | None = None
    follow_ups_done: bool = False
    totals: CheckTotals = CheckTotals()

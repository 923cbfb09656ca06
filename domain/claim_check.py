"""What the check of claim certificates and its activities say to each other. It stands in histories."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class ClaimCursor(_Message):
    """The last claim certificate of a page."""

    expires_at: datetime
    binding_id: UUID


class ClaimPage(_Message):
    """Which claim certificates to look at: those after a cursor, as of the moment the whole check began."""

    at: datetime
    after: ClaimCursor | None = None


class ClaimsTold(_Message):
    """How many expiring certificates were told of, and where the next page begins, if there is one."""

    count: int
    next: ClaimCursor | None = None


class FollowUpPage(_Message):
    """Which enrolled devices to look at: those after a binding."""

    after: UUID | None = None


class FollowUpsSent(_Message):
    """How many workflows were signalled, and where the next page begins, if there is one."""

    count: int
    next: UUID | None = None


class CheckTotals(_Message):
    """What a check has done."""

    told: int = 0
    signalled: int = 0

    def plus(self, more: "CheckTotals") -> "CheckTotals":
        """Both together."""
        return CheckTotals(told=self.told + more.told, signalled=self.signalled + more.signalled)


class CheckProgress(_Message):
    """How far a check has come; a run hands it to the next where its history has grown long."""

    at: datetime
    claims: ClaimCursor | None = None
    claims_done: bool = False
    follow_ups: UUID | None = None
    follow_ups_done: bool = False
    totals: CheckTotals = CheckTotals()

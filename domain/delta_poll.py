"""What the poll of the shadows says to its activities. It stands in histories: see `domain.saga`."""

from typing import Self
from uuid import UUID

from domain.model import Message


class DeltaCounts(Message):
    """What came of reading shadows."""

    visited: int = 0
    changed: int = 0
    cleared: int = 0
    failed: int = 0

    def plus(self, other: "DeltaCounts") -> Self:
        """Both together."""
        both = {name: getattr(self, name) + getattr(other, name) for name in type(other).model_fields}
        return self.model_copy(update=both)


class PagesRequest(Message):
    """The next pages behind a binding; none for the first ones."""

    after: UUID | None
    at_most: int


class DeltaPage(Message):
    """The bindings behind `after`, and up to and with `through`, in the order of their ids."""

    after: UUID | None
    through: UUID


class PageProgress(Message):
    """How far an attempt at a page has come, for the attempt that takes over from it."""

    after: UUID | None
    counts: DeltaCounts = DeltaCounts()


class PollTotals(DeltaCounts):
    """What came of a poll; `failed_pages` were given up, and their devices are left to the next poll."""

    failed_pages: int = 0
    commanded: int = 0


class PollProgress(Message):
    """How far a poll has come, for the run that goes on with it."""

    after: UUID | None = None
    totals: PollTotals = PollTotals()

"""The messages between the shadow poll and its activities, stored in histories (see `domain.saga`)."""

from typing import Self
from uuid import UUID

from domain.model import Message


class DeltaCounts(Message):
    """The counts of shadows that were read, by result."""

    visited: int = 0
    changed: int = 0
    cleared: int = 0
    failed: int = 0

    def plus(self, other: "DeltaCounts") -> Self:
        """Return the sums of both."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in type(other).model_fields}
        return self.model_copy(update=sums)


class PagesRequest(Message):
    """A request for the bounds of the pages after the binding `after`; None requests the first pages."""

    after: UUID | None
    at_most: int


class DeltaPage(Message):
    """The bindings after `after`, up to and including `through`, in the order of their ids."""

    after: UUID | None
    through: UUID


class PageProgress(Message):
    """The progress of an attempt at a page; the next attempt continues from it."""

    after: UUID | None
    counts: DeltaCounts = DeltaCounts()


class PollTotals(DeltaCounts):
    """The counts of a poll; `failed_pages` could not be read and are left to the next poll."""

    failed_pages: int = 0
    commanded: int = 0


class PollProgress(Message):
    """The progress of a poll; the run that continues as new begins from it."""

    after: UUID | None = None
    totals: PollTotals = PollTotals()

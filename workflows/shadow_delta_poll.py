"""The poll of the shadows of the whole fleet, page by page."""

from asyncio import Semaphore, gather
from typing import Final

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.shadow_deltas import ShadowDeltaActivities
from domain.delta_poll import DeltaCounts, DeltaPage, PagesRequest, PollProgress, PollTotals
from domain.names import SHADOW_DELTA_POLL
from orchestration.failures import raise_if_cancelled
from workflows.policies import poll_step, shadow_page

# A quarter of the default number of threads of one worker: the rest is for the sagas. With 20 ms for each
# read, this allows 400 reads per second.
_CONCURRENT_PAGES: Final = 8

# A page adds at most 6 events to the history, a batch 12 more. Temporal suggests to continue as new at 4,096
# events, which is after about 13 batches. A million bindings in pages of 100 are 10,000 pages, 200 batches
# and 16 runs.
_PAGES_PER_BATCH: Final = 50


@workflow.defn(name=SHADOW_DELTA_POLL)
class ShadowDeltaPoll:
    """Reads the shadow of every active binding once, and starts a command for each new delta."""

    @workflow.init
    def __init__(self, progress: PollProgress | None = None) -> None:
        """Begin at the first binding, or where the previous run ended."""
        self._progress = progress or PollProgress()
        self._slots = Semaphore(_CONCURRENT_PAGES)

    @workflow.run
    async def run(self, progress: PollProgress | None = None) -> PollTotals:
        """Read the shadows of the whole fleet.

        Args:
            progress: where the previous run ended; None from a client.

        Returns:
            The counts of the poll. A page that cannot be read does not fail it: the next poll reads it again.
        """
        while True:
            self._show()
            pages = await self._next_pages()
            await gather(*(self._poll(page) for page in pages))
            # Also without pages: an earlier poll can have crashed before it started its commands.
            await self._start_commands()
            if len(pages) < _PAGES_PER_BATCH:
                self._show()
                return self._progress.totals
            self._progress = self._progress.model_copy(update={"after": pages[-1].through})
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._progress)

    async def _next_pages(self) -> list[DeltaPage]:
        return await workflow.execute_activity_method(
            ShadowDeltaActivities.next_delta_pages,
            PagesRequest(after=self._progress.after, at_most=_PAGES_PER_BATCH),
            **poll_step("List the next pages"),
        )

    async def _poll(self, page: DeltaPage) -> None:
        async with self._slots:
            try:
                counts = await workflow.execute_activity_method(
                    ShadowDeltaActivities.poll_delta_page,
                    page,
                    **shadow_page(f"Read the shadows up to binding {page.through}"),
                )
            except ActivityError as error:
                raise_if_cancelled(error)
                workflow.logger.error("page not read, left to the next poll: %s", error.cause)
                self._add(PollTotals(failed_pages=1))
            else:
                self._add(counts)
            self._show()

    async def _start_commands(self) -> None:
        try:
            started = await workflow.execute_activity_method(
                ShadowDeltaActivities.start_delta_commands, **poll_step("Start the commands")
            )
        except ActivityError as error:
            raise_if_cancelled(error)
            workflow.logger.error("commands not started, left to the next poll: %s", error.cause)
        else:
            self._add(PollTotals(commanded=started))

    def _add(self, counts: DeltaCounts) -> None:
        totals = self._progress.totals.plus(counts)
        self._progress = self._progress.model_copy(update={"totals": totals})

    def _show(self) -> None:
        """Set the details that the Temporal UI shows of this run."""
        totals = self._progress.totals
        workflow.set_current_details(
            f"Shadows read: **{totals.visited}**, of which {totals.failed} failed\n\n"
            f"Deltas: {totals.changed} new, {totals.cleared} gone\n\n"
            f"Commands started: {totals.commanded}\n\n"
            f"Pages left to the next poll: {totals.failed_pages}"
        )

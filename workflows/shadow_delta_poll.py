"""The poll of the whole fleet's shadows, page by page."""

from asyncio import Semaphore, gather
from typing import Final

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.shadow_deltas import ShadowDeltaActivities
from domain.delta_poll import DeltaCounts, DeltaPage, PagesRequest, PollProgress, PollTotals
from domain.names import SHADOW_DELTA_POLL
from orchestration.failures import raise_if_cancelled
from workflows.policies import poll_step, shadow_page

# A quarter of the threads of one worker as it is set by default: the sagas keep the rest. At 20 ms a read
# they are 400 reads a second.
_PAGES_AT_ONCE: Final = 8

# Six events a page at most, and a dozen for the batch: a run of 4,096 events, where Temporal suggests a new
# one, is some 13 batches. A million bindings in pages of 100 are 10,000 pages, 200 batches and 16 runs.
_PAGES_A_BATCH: Final = 50


@workflow.defn(name=SHADOW_DELTA_POLL)
class ShadowDeltaPoll:
    """Visits every active binding once, and starts the commands that their shadows want."""

    @workflow.init
    def __init__(self, progress: PollProgress | None = None) -> None:
        """Begin at the first binding, or go on from where another run ended."""
        self._progress = progress or PollProgress()
        self._slots = Semaphore(_PAGES_AT_ONCE)

    @workflow.run
    async def run(self, progress: PollProgress | None = None) -> PollTotals:
        """Poll to the end of the fleet.

        Args:
            progress: none from a client; where the run before this one ended.

        Returns:
            What came of it. A page that could not be read fails no poll: the next one reads it again.
        """
        while True:
            self._show()
            pages = await self._next_pages()
            await gather(*(self._poll(page) for page in pages))
            # Also where no page is left: a poll that crashed may have found what it did not start.
            await self._start_commands()
            if len(pages) < _PAGES_A_BATCH:
                self._show()
                return self._progress.totals
            self._progress = self._progress.model_copy(update={"after": pages[-1].through})
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._progress)

    async def _next_pages(self) -> list[DeltaPage]:
        return await workflow.execute_activity_method(
            ShadowDeltaActivities.next_delta_pages,
            PagesRequest(after=self._progress.after, at_most=_PAGES_A_BATCH),
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
                workflow.logger.error("a page was not read, the next poll does: %s", error.cause)
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
            workflow.logger.error("commands were not started, the next poll does: %s", error.cause)
        else:
            self._add(PollTotals(commanded=started))

    def _add(self, counts: DeltaCounts) -> None:
        totals = self._progress.totals.plus(counts)
        self._progress = self._progress.model_copy(update={"totals": totals})

    def _show(self) -> None:
        """Keep what the Temporal UI shows of this run."""
        totals = self._progress.totals
        workflow.set_current_details(
            f"Shadows read: **{totals.visited}**, of which {totals.failed} failed\n\n"
            f"Deltas: {totals.changed} new, {totals.cleared} gone\n\n"
            f"Commands started: {totals.commanded}\n\n"
            f"Pages left to the next poll: {totals.failed_pages}"
        )

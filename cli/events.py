"""`thingbridge events`: what the sink does not take, and having it sent again."""

from collections.abc import Iterator, Sequence
from typing import Annotated
from uuid import UUID

import typer

from cli.database import transaction
from cli.output import shown_time, standard_output
from db.models import EventSinkRow, OutboxRow
from db.outbox import enable_sinks, list_disabled_sinks, list_refused, resend


class NotRefusedError(LookupError):
    """There is no such event that a sink refuses."""


app = typer.Typer(
    help="Events that their sink does not take: list them, send them again. Each command needs DATABASE_URL.",
    no_args_is_help=True,
)


@app.command(name="list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the oldest first.")] = 50,
) -> None:
    """List the sinks that want no more events, and the events that are refused.

    An event that is `refused` is sent again by itself, and its device's later
    ones wait for it; one that is `parked` is not, and they went on without it.
    Events that only wait for a sink that is away are not listed: see the
    publishers in the Temporal UI.
    """
    with transaction() as session:
        sinks, events = list_disabled_sinks(session), list_refused(session, limit + 1)
    lines = [*_disabled(sinks), *_listed(events[:limit])]
    if len(events) > limit:
        lines.append(f"the oldest {limit} of more: see --limit")
    for line in lines or ["no event is refused, and every sink is sent to"]:
        standard_output().print(line, soft_wrap=True, markup=False)


@app.command(name="resend")
def resend_(
    event_id: Annotated[
        UUID | None, typer.Argument(metavar="EVENT_ID", help="An event that is listed.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are.")] = False,
) -> None:
    """Have refused events sent again at once, parked or not.

    One that was parked comes after later events of its device: `sequence`
    tells a receiver.
    """
    if (event_id is None) != everything:
        raise typer.BadParameter("name either an EVENT_ID or --all")
    with transaction() as session:
        count = resend(session, event_id)
    if event_id and not count:
        raise NotRefusedError(f"no event {event_id} is refused: see `thingbridge events list`")
    standard_output().print(f"sent again: {count}", markup=False)


@app.command()
def enable() -> None:
    """Have every sink sent events again that had said, by 410 Gone, that it wants no more.

    They go on where they stopped, within half a minute.
    """
    with transaction() as session:
        count = enable_sinks(session)
    standard_output().print(f"sent to again: {count}", markup=False)


def _disabled(sinks: Sequence[EventSinkRow]) -> Iterator[str]:
    for sink in sinks:
        yield (
            f"nothing is sent to a {sink.kind} since {shown_time(sink.disabled_at)}: {sink.reason}; "
            "`thingbridge events enable` has it sent to again"
        )


def _listed(events: Sequence[OutboxRow]) -> Iterator[str]:
    if events:
        yield f"{'event':36}  {'state':7}  {'refused since':20}  {'device':36}  {'number':6}  type, why"
    for event in events:
        state = "parked" if event.parked_at else "refused"
        since = shown_time(event.first_refused_at) if event.first_refused_at else ""
        yield (
            f"{event.event_id}  {state:7}  {since:20}  {event.device_id or ''!s:36}  "
            f"{event.sequence or '':6}  {event.type}: {event.refused_because}"
        )

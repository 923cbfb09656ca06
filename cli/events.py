"""The commands `events …`: outgoing events that their sink refuses."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from cli.database import transaction
from cli.output import shown_time, standard_output
from domain.operator_error import OperatorError

if TYPE_CHECKING:
    from db.models import EventSinkRow, OutboxRow


class NotRefusedError(OperatorError):
    """There is no refused event with this id."""


app = typer.Typer(
    help="Outgoing events that their sink refuses. Each command needs DATABASE_URL.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(name="list")
def list_(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="The number of events to list, the oldest first.")
    ] = 50,
) -> None:
    """List the sinks that are disabled, and the events that are refused.

    A `refused` event is sent again automatically, and the later events of its
    device wait for it. A `parked` event is not sent again, and the later events
    were sent without it. Events that wait for a sink that does not answer are
    not listed: see the publishers in the Temporal UI.
    """
    with transaction() as session:
        from db.outbox import list_disabled_sinks, list_refused

        sinks, events = list_disabled_sinks(session), list_refused(session, limit + 1)
    lines = [*_sink_lines(sinks), *_event_lines(events[:limit])]
    if len(events) > limit:
        lines.append(f"the oldest {limit} of more: see --limit")
    for line in lines or ["no event is refused, and no sink is disabled"]:
        standard_output().print(line, soft_wrap=True, markup=False)


@app.command(name="resend")
def resend_(
    event_id: Annotated[
        UUID | None, typer.Argument(metavar="EVENT_ID", help="The event to send again.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Send all refused events again.")] = False,
) -> None:
    """Send refused events again at once, parked or not.

    A parked event arrives after later events of its device; a receiver
    recognises that by `sequence`.
    """
    if (event_id is None) != everything:
        raise typer.BadParameter("name either an EVENT_ID or --all")
    with transaction() as session:
        from db.outbox import resend

        count = resend(session, event_id)
    if event_id and not count:
        raise NotRefusedError(f"no event {event_id} is refused: see `thingbridge events list`")
    standard_output().print(f"sent again: {count}", markup=False)


@app.command()
def enable() -> None:
    """Enable every sink that was disabled because it answered 410 Gone.

    Delivery continues where it stopped, within half a minute.
    """
    with transaction() as session:
        from db.outbox import enable_sinks

        count = enable_sinks(session)
    standard_output().print(f"enabled: {count}", markup=False)


def _sink_lines(sinks: Sequence["EventSinkRow"]) -> Iterator[str]:
    for sink in sinks:
        yield (
            f"the {sink.kind} is disabled since {shown_time(sink.disabled_at)}: {sink.reason}; "
            "`thingbridge events enable` enables it"
        )


def _event_lines(events: Sequence["OutboxRow"]) -> Iterator[str]:
    if events:
        yield f"{'event':36}  {'state':7}  {'refused since':20}  {'device':36}  {'number':6}  type, reason"
    for event in events:
        state = "parked" if event.parked_at else "refused"
        since = shown_time(event.first_refused_at) if event.first_refused_at else ""
        yield (
            f"{event.event_id}  {state:7}  {since:20}  {event.device_id or ''!s:36}  "
            f"{event.sequence or '':6}  {event.type}: {event.refused_because}"
        )

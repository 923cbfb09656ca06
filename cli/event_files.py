"""Sending lifecycle events from files to the devices' workflows."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from cli.output import standard_output
from domain.lifecycle_event import EVENT_SIZE_LIMIT, InvalidEventError, LifecycleEvent
from orchestration.client import connect
from orchestration.requests import send_event
from settings import ClientSettings

_CONCURRENCY: Final = 32
# Errors of the namespace or the connection, not of one event: every other line would fail too.
_ERRORS_OF_EVERY_EVENT: Final = frozenset(
    {
        RPCStatusCode.NOT_FOUND,
        RPCStatusCode.PERMISSION_DENIED,
        RPCStatusCode.UNAUTHENTICATED,
        RPCStatusCode.UNAVAILABLE,
    }
)


@dataclass(frozen=True)
class _Line:
    file: Path
    number: int
    size: int
    content: bytes
    """The beginning of the line, one byte longer than an event may be."""


async def send_files(settings: ClientSettings, files: Sequence[Path]) -> int:
    """Send every valid event of the files, report every invalid line, and return the exit code.

    Raises:
        RPCError: Temporal accepts no event at all.
    """
    client = await connect(settings.encryption.decoded_keys)
    sent = failed = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[sent]} sent"),
        console=Console(stderr=True, emoji=False),
    ) as progress:
        bar = progress.add_task("sending", total=sum(file.stat().st_size for file in files) or 1, sent=0)

        async def send_lines(lines: Iterator[_Line]) -> None:
            nonlocal sent, failed
            for line in lines:
                if line.content.strip():
                    fault = await _send_line(client, line, settings.worker.task_queue)
                    if fault:
                        failed += 1
                        report = f"{line.file}:{line.number}: {fault}"
                        progress.console.print(report, soft_wrap=True, highlight=False, markup=False)
                    else:
                        sent += 1
                progress.update(bar, advance=line.size, sent=sent)

        lines = _lines(files)
        await asyncio.gather(*(send_lines(lines) for _ in range(_CONCURRENCY)))
    standard_output().print(f"{sent} sent, {failed} refused")
    return 1 if failed else 0


async def _send_line(client: Client, line: _Line, task_queue: str) -> str | None:
    """Send one line, and return what is wrong with it, or None."""
    if line.size > len(line.content):
        return f"event: has {line.size} bytes, at most {EVENT_SIZE_LIMIT} are allowed"
    try:
        await send_event(client, LifecycleEvent.from_json(line.content.strip()), task_queue)
    except InvalidEventError as error:
        return str(error)
    except RPCError as error:
        if error.status in _ERRORS_OF_EVERY_EVENT:
            raise
        return f"not sent, Temporal refused: {error.message}"
    return None


def _lines(files: Sequence[Path]) -> Iterator[_Line]:
    """Yield the lines one at a time: a file may be larger than memory, and so may a line."""
    for file in files:
        with file.open("rb") as opened:
            number = 0
            while content := opened.readline(EVENT_SIZE_LIMIT + 1):
                number += 1
                size, end = len(content), content
                while not end.endswith(b"\n") and (end := opened.readline(EVENT_SIZE_LIMIT)):
                    size += len(end)
                yield _Line(file, number, size, content)

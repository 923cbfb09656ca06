"""The command `send`."""

from pathlib import Path
from typing import Annotated

import typer


def send(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.jsonl",
            help="Lifecycle events, one JSON object a line; several files are sent together.",
            exists=True,
            dir_okay=False,
        ),
    ],
) -> None:
    """Send lifecycle events to the devices' workflows.

    An invalid line is reported with file, line and field; the other lines are
    sent anyway, and the exit code is then 1. Sending a file twice changes
    nothing.
    """
    import asyncio

    from cli.event_files import send_files
    from settings import ClientSettings

    raise typer.Exit(asyncio.run(send_files(ClientSettings.load(), files)))

"""How and where results are printed: fitted to a terminal, complete everywhere else."""

from datetime import datetime
from typing import Final

from rich.console import Console

# Wider than any line: rich takes a pipe or a CI's log for 80 columns, and would cut the ids.
_UNBOUNDED: Final = 10_000


def standard_output() -> Console:
    """Standard output: on a terminal fitted to it; elsewhere nothing is cut, and no line broken."""
    # Else the `:secret:` of an ARN is shown as an emoji.
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_UNBOUNDED)


def shown_time(moment: datetime) -> str:
    """A moment in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"

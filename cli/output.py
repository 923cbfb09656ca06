"""The form of printed results: fitted to a terminal, and complete everywhere else."""

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

# Wider than any line: rich assumes 80 columns for a pipe or the log of a CI, and would cut the ids.
_UNBOUNDED: Final = 10_000


def standard_output() -> "Console":
    """Return the console of standard output: fitted to a terminal; elsewhere no line is cut or wrapped."""
    from rich.console import Console

    # Without emoji, since rich would replace the `:secret:` of an ARN with one.
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_UNBOUNDED)


def shown_time(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def runnable(program: str) -> str:
    """Return the words with which a new shell runs a program of this installation.

    A program that is not part of it, as Temporal's in production, is expected on the PATH.
    """
    installed = Path(sys.executable).with_name(program)
    if not installed.exists():
        return program
    # `uv run` and an activated environment put the program on the PATH of this shell alone.
    return f"uv run {program}" if "UV_RUN_RECURSION_DEPTH" in os.environ else shlex.quote(str(installed))

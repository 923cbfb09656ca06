"""The form of printed results."""

import os
import sys
from pathlib import Path

import pytest

from cli.output import runnable


@pytest.mark.parametrize("program", ["thingbridge", "temporal"])
def test_printed_command_runs_in_a_new_shell(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A program of this installation is printed with `uv run` if uv started us, else with its path."""
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert runnable(program) == f"uv run {program}"
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH")
    path = Path(runnable(program))
    assert path == Path(sys.executable).with_name(program)
    assert os.access(path, os.X_OK)


def test_program_of_another_installation_is_expected_on_the_path() -> None:
    """Production has Temporal's command line from elsewhere."""
    assert runnable("not-installed-here") == "not-installed-here"

"""What the operator's handbook says can be done as it says; so can what the other documents say."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main

from cli import app
from domain.failure import FailureCode
from domain.provisioning_status import ProvisioningStatus
from settings import CONFIG_FILE_VARIABLE, describe
from tests import ROOT

HANDBOOK: Final = (ROOT / "docs" / "handbook.md").read_text()
DOCUMENTS: Final = "\n".join(
    path.read_text()
    for pattern in ("*.md", "docs/*.md", "deploy/*/README.md", "examples/*/README.md")
    for path in sorted(ROOT.glob(pattern))
)


def shell_lines() -> Iterator[str]:
    """Each command of the documents' code blocks, whole, also where what it quotes has several lines."""
    for block in re.findall(r"^```sh\n(.*?)^```$", DOCUMENTS, re.MULTILINE | re.DOTALL):
        command = ""
        for line in block.replace("\\\n", " ").splitlines():
            command = f"{command}\n{line}".strip()
            try:
                shlex.split(command, comments=True)
            except ValueError:  # a quotation goes on
                continue
            if command:
                yield command
            command = ""
        assert not command, f"never ends: {command}"


def words_of(line: str, program: str) -> list[str] | None:
    """The arguments of a call of a program, if the line is one, whatever stands in front of it."""
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    while words and (words[0] in {"uv", "run"} or re.match(r"[A-Z_]+=", words[0])):
        words.pop(0)
    return words[1:] if words[:1] == [program] else None


def calls_of(program: str) -> list[list[str]]:
    """Every call of a program in code blocks, and those named in a sentence."""
    in_blocks = [words for line in shell_lines() if (words := words_of(line, program)) is not None]
    in_text = [shlex.split(call) for call in re.findall(rf"`{program} ([^`\n]+)`", DOCUMENTS)]
    return [*in_blocks, *in_text]


def command_of(words: Sequence[str]) -> Any:
    """The command that the words begin with; None where there is no such."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(found, "commands") or word.startswith("-"):
            break
        found = found.commands.get(word)
    return found


@cache
def told_by_temporal(*arguments: str) -> str:
    """What Temporal's command line says."""
    temporal = shutil.which("temporal", path=str(Path(sys.executable).parent))
    assert temporal is not None
    return subprocess.run([temporal, *arguments], capture_output=True, text=True, check=True).stdout


def options_in(words: Sequence[str]) -> set[str]:
    return {word for word in words if word.startswith("--")} - {"--help"}


def anchors() -> list[str]:
    """The anchors of the handbook's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", HANDBOOK, flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("words", calls_of("thingbridge"), ids=" ".join)
def test_every_command_is_one_of_thingbridge(words: list[str]) -> None:
    """A command that a document gives is there, and so is each of its options."""
    command = command_of(words)
    assert command is not None
    options = {name for parameter in command.params for name in parameter.opts}
    assert options_in(words) <= options


@pytest.mark.parametrize("words", calls_of("temporal"), ids=" ".join)
def test_every_command_is_one_of_temporal(words: list[str]) -> None:
    """Temporal's own command line has the commands and options that the documents give."""
    verbs = words[: next((at for at, word in enumerate(words) if word.startswith("-")), len(words))]
    told = told_by_temporal(*verbs, "--help")
    assert f"temporal {' '.join(verbs)} [" in told
    # Those of every command are told apart.
    assert options_in(words) <= set(re.findall(r"--[a-z-]+", told + told_by_temporal("options")))


def test_every_setting_is_one() -> None:
    """A setting that a document names is one that the bridge reads."""
    known = {knob.variable for _, knobs in describe() for knob in knobs} | {CONFIG_FILE_VARIABLE}
    named = set(re.findall(r"IOT_AWS_\w+", DOCUMENTS))
    assert named
    assert named <= known


def test_every_failure_code_has_its_section() -> None:
    """Who reads a code in a binding finds what to do by searching for it."""
    _, _, codes = HANDBOOK.partition("\n## Failure codes\n")
    sections = re.findall(r"^### (\w+)$", codes.partition("\n## ")[0], re.MULTILINE)
    assert sorted(sections) == sorted(code.value for code in FailureCode)


def test_every_status_is_explained() -> None:
    """The table of statuses has a row for each."""
    explained = re.findall(r"^\| `(\w+)` \| ", HANDBOOK, re.MULTILINE)
    assert set(explained) >= set(ProvisioningStatus)


def test_every_link_leads_somewhere() -> None:
    """Files, images and sections that the handbook points to are there."""
    there = anchors()
    assert len(set(there)) == len(there)
    for target in re.findall(r"\]\(([^)]+)\)", HANDBOOK):
        path, _, anchor = target.partition("#")
        if path:
            assert (ROOT / "docs" / path).exists(), target
        else:
            assert anchor in there, target


def test_the_readme_leads_to_the_handbook() -> None:
    """Whoever looks for it looks there first."""
    assert "(docs/handbook.md)" in (ROOT / "README.md").read_text()

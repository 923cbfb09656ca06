"""Commands, settings, links and failure codes in the handbook and the other documents are valid."""

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


def shell_commands(documents: str) -> Iterator[str]:
    """Yield each command of the documents' code blocks, including those with quoted text of several lines."""
    for block in re.findall(r"^```sh\n(.*?)^```$", documents, re.MULTILINE | re.DOTALL):
        command = ""
        for line in block.replace("\\\n", " ").splitlines():
            command = f"{command}\n{line}".strip()
            try:
                shlex.split(command, comments=True)
            except ValueError:  # the quoted text continues on the next line
                continue
            if command:
                yield command
            command = ""
        assert not command, f"a quotation is not closed: {command}"


def words_of(line: str, program: str) -> list[str] | None:
    """Return the arguments of a program if the line runs it, after optional `uv run` and variables."""
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    while words and (words[0] in {"uv", "run"} or re.match(r"[A-Z_]+=", words[0])):
        words.pop(0)
    return words[1:] if words[:1] == [program] else None


def calls_of(program: str) -> list[list[str]]:
    """Return the arguments of every call of a program, in code blocks and in sentences."""
    in_blocks = [
        words for line in shell_commands(DOCUMENTS) if (words := words_of(line, program)) is not None
    ]
    in_text = [shlex.split(call) for call in re.findall(rf"`(?:uv run )?{program} ([^`\n]+)`", DOCUMENTS)]
    return [*in_blocks, *in_text]


def command_of(words: Sequence[str]) -> Any:
    """Return the command that the words begin with; None if there is none."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(found, "commands") or word.startswith("-"):
            break
        found = found.commands.get(word)
    return found


@cache
def temporal_output(*arguments: str) -> str:
    """Return the output of Temporal's command line."""
    temporal = shutil.which("temporal", path=str(Path(sys.executable).parent))
    assert temporal is not None
    return subprocess.run([temporal, *arguments], capture_output=True, text=True, check=True).stdout


def options_in(words: Sequence[str]) -> set[str]:
    return {word for word in words if word.startswith("--")} - {"--help"}


def anchors() -> list[str]:
    """Return the anchors of the handbook's headings, by GitHub's rules."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", HANDBOOK, flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("words", calls_of("thingbridge"), ids=" ".join)
def test_every_thingbridge_command_exists(words: list[str]) -> None:
    """Each documented command exists, with each documented option."""
    command = command_of(words)
    assert command is not None
    options = {name for parameter in command.params for name in parameter.opts}
    assert options_in(words) <= options


@pytest.mark.parametrize("words", calls_of("temporal"), ids=" ".join)
def test_every_temporal_command_exists(words: list[str]) -> None:
    """Temporal's command line has each documented command and option."""
    verbs = words[: next((at for at, word in enumerate(words) if word.startswith("-")), len(words))]
    help_text = temporal_output(*verbs, "--help")
    assert f"temporal {' '.join(verbs)} [" in help_text
    # Options that all commands have are listed separately.
    assert options_in(words) <= set(re.findall(r"--[a-z-]+", help_text + temporal_output("options")))


def test_commands_run_in_a_fresh_clone() -> None:
    """Each command starts with `uv run`, because the programs are in the clone's environment."""
    commands = [*shell_commands(DOCUMENTS), *re.findall(r"`([^`\n]+)`", HANDBOOK)]
    assert not [command for command in commands if re.match(r"(thingbridge|temporal) ", command)]


def test_every_setting_exists() -> None:
    """Each setting named in a document is read by the bridge."""
    known = {setting.variable for _, section in describe() for setting in section} | {CONFIG_FILE_VARIABLE}
    named = set(re.findall(r"IOT_AWS_\w+", DOCUMENTS))
    assert named
    assert named <= known


def test_every_failure_code_has_a_section() -> None:
    """The section of a failure code describes its remedy."""
    _, _, codes = HANDBOOK.partition("\n## Failure codes\n")
    sections = re.findall(r"^### (\w+)$", codes.partition("\n## ")[0], re.MULTILINE)
    assert sorted(sections) == sorted(code.value for code in FailureCode)


def test_every_status_is_described() -> None:
    """The table of statuses has a row for each status."""
    described = re.findall(r"^\| `(\w+)` \| ", HANDBOOK, re.MULTILINE)
    assert set(described) >= set(ProvisioningStatus)


def test_every_link_target_exists() -> None:
    """Files, images and sections that the handbook links to exist."""
    existing = anchors()
    assert len(set(existing)) == len(existing)
    for target in re.findall(r"\]\(([^)]+)\)", HANDBOOK):
        path, _, anchor = target.partition("#")
        if path:
            assert (ROOT / "docs" / path).exists(), target
        else:
            assert anchor in existing, target


def test_readme_links_to_the_handbook() -> None:
    """The handbook is found from the README."""
    assert "(docs/handbook.md)" in (ROOT / "README.md").read_text()

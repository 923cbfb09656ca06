"""The command line: the registration of every command.

The modules imported here load only the standard library, typer and light modules of `domain`. A command
imports what it works with when it runs, so that `--help` or a wrong option is answered at once.
"""

import signal
import sys
from typing import Annotated

import typer

from cli import bindings, commands, development, events, keys, migration, sending, servers
from cli.application import CommandGroup, print_version
from cli.exit_codes import INTERRUPTED

app = typer.Typer(
    name="thingbridge",
    cls=CommandGroup,
    help="The AWS IoT Core companion of a device platform: durable Temporal workflows behind one binding per "
    "device.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: rich's takes longer to import than everything else here.
    rich_markup_mode=None,
    # A traceback with local variables could print a key.
    pretty_exceptions_show_locals=False,
)

if development.is_installed():
    app.command()(development.dev)
    app.command()(development.demo)
    app.command()(development.emulator)
app.command()(servers.worker)
app.command()(servers.api)
app.command()(servers.codec)
app.command()(migration.migrate)
app.command()(sending.send)
app.command()(commands.command)
app.command()(commands.cancel)
app.command()(bindings.bindings)
app.command()(bindings.retry)
app.command()(bindings.erase)
app.add_typer(keys.app, name="keys")
app.add_typer(events.app, name="events")


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def main() -> None:
    """Run the command line in this process, and end the process."""
    code = 0
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # a second one, while the first was handled
        code = INTERRUPTED
    # Now that nothing is left to stop, an interrupt would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "temporalio" in sys.modules:
        from orchestration.client import end_process

        # Temporal's SDK may crash an interpreter that shuts down in the usual way.
        end_process(code)
    sys.exit(code)

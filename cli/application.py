"""The behaviour that all commands share: the help on settings, errors in one sentence, the version."""

from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from cli.development import COMMANDS as DEVELOPMENT_COMMANDS
from domain.operator_error import OperatorError


class CommandGroup(TyperGroup):
    """The group of all commands.

    Its help ends with the settings. An error that an operator can fix is printed as one sentence instead of a
    traceback, and the exit code is 2.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, and below it the settings."""
        # The settings import pydantic, which is slow; the help of one command does not need it.
        from cli.settings_help import write_settings

        super().format_help(ctx, formatter)
        write_settings(formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, and say how to install one that is missing."""
        if args[0] in DEVELOPMENT_COMMANDS and args[0] not in self.commands:
            ctx.fail(f"{args[0]} needs the embedded servers: install thingbridge[embedded].")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            _fail(str(error))
        except Exception as error:
            if sentence := _operator_sentence(error):
                _fail(sentence)
            raise


def print_version(requested: bool) -> None:
    """Print the version if the option is given, and exit."""
    if requested:
        from importlib.metadata import version

        typer.echo(f"thingbridge {version('thingbridge')}")
        raise typer.Exit


def _operator_sentence(error: Exception) -> str | None:
    """Return the sentence for an error of a server that cannot be used; None for any other error."""
    # Only the library that raised the error is imported, and that one is loaded already.
    library = type(error).__module__.partition(".")[0]
    if library in {"psycopg", "sqlalchemy"}:
        import psycopg
        import sqlalchemy.exc

        if isinstance(error, psycopg.Error | sqlalchemy.exc.DBAPIError):
            cause = getattr(error, "orig", None) or error
            return f"the database (DATABASE_URL) refuses or does not answer: {str(cause).strip()}"
    if library == "temporalio":
        from temporalio.service import RPCError

        if isinstance(error, RPCError):
            return f"Temporal refuses or does not answer: {error.message}"
    return None


def _fail(sentence: str) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("error: ", "red"), sentence), soft_wrap=True)
    raise typer.Exit(2)

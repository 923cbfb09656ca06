"""The exit codes of commands, beside 0 and 1."""

from typing import Final

INTERRUPTED: Final = 130
"""The command was ended by Ctrl-C, as shells report it."""

"""The dev stack: Temporal, PostgreSQL and an AWS emulator, for the command line, tests and benchmarks."""

from typing import Final

REGION: Final = "eu-west-1"
"""The region of the emulated account, used by every client of it."""

ACCOUNT: Final = "123456789012"
"""The number of the emulated account."""

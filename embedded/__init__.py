"""The dev stack: Temporal, PostgreSQL and AWS on one machine, for the command line, tests and benchmarks."""

from typing import Final

REGION: Final = "eu-west-1"
"""Where the emulated account is, for all who call it."""

"""Tests, in folders that mirror the rooms of the code."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

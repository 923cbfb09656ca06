"""The ids of the current work (tenant, device, workflow), for its log lines and its metrics of AWS calls."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Final
from uuid import UUID

NO_TENANT: Final = "global"
"""The label `tenant_id` of work that belongs to no tenant."""

_EMPTY: Final[Mapping[str, str]] = {}
_context: ContextVar[Mapping[str, str]] = ContextVar("log_context")


def set_context(**ids: UUID | str | None) -> Token[Mapping[str, str]]:
    """Add ids to the context of the current task or thread, until it ends.

    Args:
        ids: `tenant_id`, `device_id`, `thing_name`, `workflow_id`, `run_id`; None removes an id.
    """
    merged = {**current_context(), **ids}
    return _context.set({name: str(value) for name, value in merged.items() if value is not None})


@contextmanager
def log_context(**ids: UUID | str | None) -> Iterator[None]:
    """Add ids to the context within a block: see `set_context`."""
    token = set_context(**ids)
    try:
        yield
    finally:
        _context.reset(token)


def current_context() -> Mapping[str, str]:
    """Return the ids of the current work."""
    return _context.get(_EMPTY)

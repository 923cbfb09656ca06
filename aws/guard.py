"""The check that runs before each request to AWS, so that services need to know nothing of activities."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final


def _proceed() -> None:
    """Let the request be sent."""


before_request: Final[ContextVar[Callable[[], None]]] = ContextVar("before_request", default=_proceed)
"""Called before each request of the current task or thread. It raises where no request may be sent any more.

An activity sets it, to send a heartbeat and to end an attempt that has no time left for another request.
"""

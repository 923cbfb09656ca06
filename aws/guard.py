"""The check that runs before each request to AWS, set by the code that calls a service."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final


def _allow() -> None:
    """Allow the request."""


before_request: Final[ContextVar[Callable[[], None]]] = ContextVar("before_request", default=_allow)
"""The function called before each request of the current task or thread. It raises if no request may be sent.

Activities set it, to send a heartbeat and to end an attempt that has no time left for another request.
"""

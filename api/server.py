"""Serving an ASGI application: as the only work of a process, or in a thread beside other work."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Thread
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from api.app import create_app
from settings import ApiSettings

_OPTIONS: Final[dict[str, Any]] = {
    "server_header": False,
    # uvicorn's own log lines have another format, and its access log would duplicate the API's own.
    "log_config": None,
    "access_log": False,
}

_NOT_STARTED: Final = 3
"""The exit code of uvicorn for a server that could not start."""


class _Server(uvicorn.Server):
    """A server that stops in order at the first SIGTERM or SIGINT, and ignores further ones.

    At a second SIGINT, uvicorn's own server would skip the end of the shutdown and print a traceback.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if not self.should_exit:
            super().handle_exit(sig, frame)


def serve(settings: ApiSettings, host: str, port: int) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    serve_app(create_app(settings), host, port)


def serve_app(app: ASGIApp, host: str, port: int) -> None:
    """Serve an application as the only work of this process, until SIGTERM or Ctrl-C."""
    # Objects that exist now are never freed. Otherwise every full garbage collection would traverse them all
    # and delay the requests in progress by a tenth of a second.
    gc.collect()
    gc.freeze()
    server = _Server(uvicorn.Config(app, host=host, port=port, **_OPTIONS))
    # After the shutdown, uvicorn raises the signal that caused it once more.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)


def serving(settings: ApiSettings, port: int) -> AbstractContextManager[str]:
    """Serve the HTTP API on 127.0.0.1 from a thread, and return its URL."""
    return serving_app(create_app(settings), port)


@contextmanager
def serving_app(app: ASGIApp, port: int) -> Iterator[str]:
    """Serve an application on 127.0.0.1 from a thread, which leaves all signals to the process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **_OPTIONS))
    thread = Thread(target=server.run, name="api")
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()

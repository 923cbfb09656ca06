"""How the application is served: as the process's own work, or beside it."""

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

_HOW: Final[dict[str, Any]] = {
    "server_header": False,
    # Its own logging would be another format on the same stream, and its access log a second one.
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
    """Serve until SIGTERM or Ctrl-C."""
    serve_app(create_app(settings), host, port)


def serve_app(app: ASGIApp, host: str, port: int) -> None:
    """Serve an application, as the one work of this process, until SIGTERM or Ctrl-C."""
    # What is loaded by now stays loaded. Else each full collection walks through all of it, and every request
    # then under way waits a tenth of a second for that.
    gc.collect()
    gc.freeze()
    server = _Server(uvicorn.Config(app, host=host, port=port, **_HOW))
    # After the shutdown, uvicorn raises the signal that caused it once more.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)


def serving(settings: ApiSettings, port: int) -> AbstractContextManager[str]:
    """Serve on 127.0.0.1 from a thread; the address it is at."""
    return serving_app(create_app(settings), port)


@contextmanager
def serving_app(app: ASGIApp, port: int) -> Iterator[str]:
    """Serve an application on 127.0.0.1 from a thread, which leaves all signals to the process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **_HOW))
    thread = Thread(target=server.run, name="api")
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()

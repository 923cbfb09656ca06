"""How the application is served: as the process's own work, or beside it."""

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Thread
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


def serve(settings: ApiSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    serve_app(create_app(settings), host, port)


def serve_app(app: ASGIApp, host: str, port: int) -> None:
    """Serve an application, as the one work of this process, until SIGTERM or Ctrl-C."""
    # What is loaded by now stays loaded. Else each full collection walks through all of it, and every request
    # then under way waits a tenth of a second for that.
    gc.collect()
    gc.freeze()
    uvicorn.run(app, host=host, port=port, **_HOW)


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

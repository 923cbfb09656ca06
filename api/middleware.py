"""What every request passes on its way in and out: its id, key, log line, and its answer's headers."""

import logging
import re
import time
from http import HTTPStatus
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import Keys
from api.endpoints import CALLER, in_time
from api.errors import Refused

logger = logging.getLogger("thingbridge.api")

REQUEST_ID: Final = "X-Request-Id"
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_LONGEST_PATH_LOGGED: Final = 256

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""


def path_within(scope: Scope) -> str:
    """The path as the application's own routes know it: without that at which a host has mounted it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    within = path.removeprefix(root)
    return within if within.startswith("/") else path


class Edge:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, keys: Keys, timeout_seconds: float, guarded: tuple[str, ...] = ("/api/",)
    ) -> None:
        self._app = app
        self._keys = keys
        self._timeout_seconds = timeout_seconds
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may go in, and see to it that each is answered and logged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope)
        request_id = given.get(REQUEST_ID, "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = str(uuid4())
        told = {
            "method": scope["method"],
            # As it was sent, so that no line break in it is written into the log; the query may name devices.
            "path": (scope.get("raw_path") or scope["path"].encode()).decode("ascii", "replace")[
                :_LONGEST_PATH_LOGGED
            ],
            "request_id": request_id,
        }
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers[REQUEST_ID] = request_id
            await send(message)

        try:
            # Before any route is looked for: who has no key learns nothing, not even what there is.
            if path_within(scope).startswith(self._guarded):
                caller = await in_time(self._keys.caller(given.get("Authorization")), self._timeout_seconds)
                scope[CALLER] = caller
                told["key"] = caller.key_id
                if caller.tenant_id is not None:
                    told["tenant_id"] = str(caller.tenant_id)
            await self._app(scope, receive, answer)
        except Refused as refused:
            await refused.response()(scope, receive, answer)
        except ClientDisconnect:
            # Nobody is left to be answered, and nothing is amiss here.
            pass
        except Exception:
            logger.exception("a request failed", extra=told)
            if status is not None:
                raise
            failed = Refused(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"a fault of the bridge: see its log for {request_id}"
            )
            await failed.response()(scope, receive, answer)
        finally:
            took = round((time.perf_counter() - began) * 1000, 1)
            logger.info("answered", extra={**told, "status": status, "milliseconds": took})

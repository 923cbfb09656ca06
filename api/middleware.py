"""ASGI middleware, each class with one job, and the order in which a request passes through them.

RequestId         give the request an id, and return it in the response
SecurityHeaders   add headers that keep browsers from caching, framing and sniffing
AccessLog         write one log line per request
ErrorResponses    answer errors and unexpected exceptions with RFC 9457 problems
Authentication    identify the caller by an API key
"""

import logging
import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import CALLER, Authenticator, Caller
from api.errors import ApiError
from api.timeouts import within

logger = logging.getLogger("thingbridge.api")

REQUEST_ID_HEADER: Final = "X-Request-Id"
_REQUEST_ID: Final = "thingbridge.request_id"
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_LOGGED_PATH_LIMIT: Final = 256

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Added to every response that does not set them itself."""


def middleware_stack(
    authenticator: Authenticator, timeout_seconds: float, protected: tuple[str, ...]
) -> Sequence[Middleware]:
    """Return the middleware of an application, the outermost first.

    Responses to errors pass through the id, header and log middleware too, which are therefore outside the
    error responses. Authentication is the innermost, but still before any route is matched.

    Args:
        authenticator: identifies callers.
        timeout_seconds: the time limit of the authentication.
        protected: the beginnings of the paths that require an API key.
    """
    return [
        Middleware(RequestId),
        Middleware(SecurityHeaders),
        Middleware(AccessLog),
        Middleware(ErrorResponses),
        Middleware(Authentication, authenticator, timeout_seconds, protected),
    ]


class RequestId:
    """Gives every request an id, the caller's own if it is safe to log, and returns it in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        if not _SAFE_ID.fullmatch(request_id):
            request_id = str(uuid4())
        scope[_REQUEST_ID] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class SecurityHeaders:
    """Adds the security headers to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class AccessLog:
    """Writes one log line per request, with the caller, the status and the duration."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_status)
        finally:
            milliseconds = round((time.perf_counter() - began) * 1000, 1)
            logger.info(
                "request completed",
                extra={**_log_fields(scope), "status": status, "milliseconds": milliseconds},
            )


class ErrorResponses:
    """Answers an ApiError with its problem response, and any other exception with a 500 without details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_record_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_start)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except ClientDisconnect:
            # The client has closed the connection: there is no one to answer, and this is not an error.
            pass
        except Exception:
            logger.exception("request failed", extra=_log_fields(scope))
            if started:
                raise
            internal = ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"an internal error: see the bridge's log for request {scope[_REQUEST_ID]}",
            )
            await internal.response()(scope, receive, send)


class Authentication:
    """Requires an API key on protected paths, before any route is matched.

    An unauthenticated caller therefore cannot find out which paths exist.
    """

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, timeout_seconds: float, protected: tuple[str, ...]
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._timeout_seconds = timeout_seconds
        self._protected = protected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and path_within(scope).startswith(self._protected):
            authorization = Headers(scope=scope).get("Authorization")
            scope[CALLER] = await within(
                self._timeout_seconds, self._authenticator.authenticate(authorization)
            )
        await self._app(scope, receive, send)


def path_within(scope: Scope) -> str:
    """Return the path without the prefix under which a host has mounted the application."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    within_root = path.removeprefix(root)
    return within_root if within_root.startswith("/") else path


def _log_fields(scope: Scope) -> dict[str, Any]:
    # The path as it was sent, so that it cannot write a line break into the log. The query is left out, since
    # it may name devices.
    path = (scope.get("raw_path") or scope["path"].encode()).decode("ascii", "replace")
    fields = {
        "method": scope["method"],
        "path": path[:_LOGGED_PATH_LIMIT],
        "request_id": scope[_REQUEST_ID],
    }
    caller: Caller | None = scope.get(CALLER)
    if caller is not None:
        fields["key"] = caller.key_id
        if caller.tenant_id is not None:
            fields["tenant_id"] = str(caller.tenant_id)
    return fields

"""The codec server: Temporal's UI and command line decode encrypted payloads with it, for operators."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from google.protobuf.json_format import MessageToJson, Parse, ParseError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.api.common.v1 import Payload, Payloads

from api.auth import CALLER, Authenticator
from api.body import read_limited
from api.database import Database
from api.errors import ApiError, http_problem
from api.middleware import middleware_stack
from api.routes.health import liveness_route
from api.timeouts import within
from db.engine import open_engine
from orchestration.codec import EncryptionCodec, UnreadablePayloadError
from settings import PREFIX, CodecSettings, InvalidSettingsError

BODY_LIMIT: Final = 8 * 1024 * 1024
"""Bytes: Temporal's limit for one message, 4 MiB, plus a third for base64."""

_DECODE, _ENCODE, _SIGN_IN = "/decode", "/encode", "/signin"
_COOKIE: Final = "thingbridge_key"
_SIGN_IN_LIMIT: Final = 1024
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>thingbridge codec server</title>'
    '<form method="post" action="signin"><p>{}</p><label>Operator\'s key '
    '<input name="key" type="password" autocomplete="off" required autofocus></label> '
    "<button>Sign in</button></form></html>"
)

_Conversion = Callable[[Sequence[Payload]], Awaitable[list[Payload]]]


class CodecServer:
    """The handlers that encode and decode payloads for operators.

    Args:
        codec: encrypts and decrypts payloads.
        authenticator: identifies operators by their keys.
        timeout_seconds: the time limit for receiving a body.
        over_tls: whether browsers reach the server by https only, even if a proxy terminates TLS.
    """

    def __init__(
        self, codec: EncryptionCodec, authenticator: Authenticator, timeout_seconds: float, *, over_tls: bool
    ) -> None:
        self._codec = codec
        self._over_tls = over_tls
        self._authenticator = authenticator
        self._timeout_seconds = timeout_seconds

    async def decode(self, request: Request) -> Response:
        """Decrypt payloads: `POST /decode`."""
        return await self._convert(request, self._codec.decode)

    async def encode(self, request: Request) -> Response:
        """Encrypt payloads that the UI or the command line is about to send: `POST /encode`."""
        return await self._convert(request, self._codec.encode)

    async def sign_in_page(self, _: Request) -> Response:
        """Return the page on which an operator enters a key: `GET /signin`. The UI has no field for one."""
        return HTMLResponse(_PAGE.format("Temporal's UI then decodes payloads in this browser."))

    async def sign_in(self, request: Request) -> Response:
        """Store the key in a cookie that no script can read and no other site can send: `POST /signin`."""
        body = await self._body(request, _SIGN_IN_LIMIT)
        key = parse_qs(body.decode("ascii", "replace")).get("key", [""])[0].strip()
        try:
            caller = await within(self._timeout_seconds, self._authenticator.authenticate(f"Bearer {key}"))
            caller.require_operator("signing in")
        except ApiError as error:
            if error.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise
            return HTMLResponse(_PAGE.format("This is not an operator's key."), error.status)
        response = HTMLResponse(_PAGE.format("You are signed in until you close the browser."))
        secure = self._over_tls or request.url.scheme == "https"
        response.set_cookie(_COOKIE, key, httponly=True, samesite="strict", secure=secure)
        return response

    async def _convert(self, request: Request, convert: _Conversion) -> Response:
        request.scope[CALLER].require_operator("reading and writing payloads")
        body = await self._body(request, BODY_LIMIT)
        try:
            payloads = Parse(body, Payloads()).payloads
        except (ParseError, ValueError):
            # The parser's own message may quote the body.
            raise ApiError(
                HTTPStatus.BAD_REQUEST, "the body is not the JSON form of Temporal's Payloads"
            ) from None
        try:
            converted = Payloads(payloads=await convert(payloads))
        except UnreadablePayloadError as error:
            raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        return Response(MessageToJson(converted, indent=None), media_type="application/json")

    async def _body(self, request: Request, limit: int) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await read_limited(request, limit)
        except TimeoutError:
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "the body was not received in time") from None


class KeyFromCookie:
    """ASGI middleware that passes the key in an operator's cookie on as the `Authorization` header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            key = cookie_parser(headers.get("Cookie", "")).get(_COOKIE)
            if key and "Authorization" not in headers:
                scope = {**scope, "headers": list(scope["headers"])}
                MutableHeaders(scope=scope)["Authorization"] = f"Bearer {key}"
        await self._app(scope, receive, send)


def create_codec_app(settings: CodecSettings, ui_origin: str | None) -> Starlette:
    """Create the codec server.

    Args:
        settings: the settings, with encryption keys.
        ui_origin: the origin of Temporal's UI, as `https://HOST`. Only its pages may read responses.

    Raises:
        InvalidSettingsError: there are no encryption keys.
    """
    encryption, own = settings.encryption.decoded_keys, settings.api
    if encryption is None:
        raise InvalidSettingsError(f"{PREFIX}ENCRYPTION__KEYS: is required by the codec server")
    threads = own.max_concurrent_requests
    database = Database(open_engine(settings.database_url.get_secret_value(), pool_size=threads), threads)
    authenticator = Authenticator(database, own.key_cache_seconds)
    server = CodecServer(
        EncryptionCodec(encryption),
        authenticator,
        own.request_timeout_seconds,
        # A page that was loaded by https can call this server by https only, so it is behind TLS as well.
        over_tls=ui_origin is not None and ui_origin.startswith("https://"),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        database.close()

    return Starlette(
        routes=[
            liveness_route(),
            Route(_DECODE, server.decode, methods=["POST"]),
            Route(_ENCODE, server.encode, methods=["POST"]),
            Route(_SIGN_IN, server.sign_in_page, methods=["GET"]),
            Route(_SIGN_IN, server.sign_in, methods=["POST"]),
        ],
        middleware=[
            # The outermost: a browser's preflight request has no key, and a page can read an error response
            # only if it has CORS headers too.
            Middleware(
                CORSMiddleware,
                allow_origins=[ui_origin] if ui_origin else [],
                allow_methods=["POST"],
                allow_headers=["Authorization", "X-Namespace"],
                allow_credentials=True,
                # A UI on a public address may call a server on a private one.
                allow_private_network=True,
            ),
            Middleware(KeyFromCookie),
            *middleware_stack(authenticator, own.request_timeout_seconds, (_DECODE, _ENCODE)),
        ],
        exception_handlers={HTTPException: http_problem},
        lifespan=lifespan,
    )

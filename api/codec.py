"""The codec server: by it Temporal's UI and command line show operators what is encrypted."""

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
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.api.common.v1 import Payload, Payloads

from api.auth import Keys
from api.body import read_bounded
from api.database import Database
from api.endpoints import CALLER, in_time
from api.errors import Refused, http_problem
from api.middleware import Edge
from db.engine import open_engine
from orchestration.codec import EncryptionCodec, UnreadablePayloadError
from settings import PREFIX, CodecSettings, InvalidSettingsError

BODY_LIMIT: Final = 8 * 1024 * 1024
"""Bytes: what Temporal sends in one message, 4 MiB, and base64's third."""

_DECODE, _ENCODE, _SIGN_IN = "/decode", "/encode", "/signin"
_COOKIE: Final = "thingbridge_key"
_SIGN_IN_LIMIT: Final = 1024
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>thingbridge codec server</title>'
    '<form method="post" action="signin"><p>{}</p><label>Operator\'s key '
    '<input name="key" type="password" autocomplete="off" required autofocus></label> '
    "<button>Sign in</button></form></html>"
)

_Work = Callable[[Sequence[Payload]], Awaitable[list[Payload]]]


class Codec:
    """Encodes and decodes payloads for operators.

    Args:
        codec: with the keys of the payloads.
        keys: the operators'.
        timeout_seconds: how long a request's body may take.
        over_tls: whether browsers come by https alone, wherever TLS ends.
    """

    def __init__(self, codec: EncryptionCodec, keys: Keys, timeout_seconds: float, *, over_tls: bool) -> None:
        self._codec = codec
        self._over_tls = over_tls
        self._keys = keys
        self._timeout_seconds = timeout_seconds

    async def decode(self, request: Request) -> Response:
        """`POST /decode`: payloads as they are read."""
        return await self._answer(request, self._codec.decode)

    async def encode(self, request: Request) -> Response:
        """`POST /encode`: what the UI or the command line is about to send."""
        return await self._answer(request, self._codec.encode)

    async def sign_in_page(self, _: Request) -> Response:
        """`GET /signin`: where an operator gives the key once, for the UI has no place for it."""
        return HTMLResponse(_PAGE.format("Temporal's UI then shows this browser what is encrypted."))

    async def sign_in(self, request: Request) -> Response:
        """`POST /signin`: keep the key in a cookie that no script reads and no other site's page sends."""
        body = await self._body(request, _SIGN_IN_LIMIT)
        key = parse_qs(body.decode("ascii", "replace")).get("key", [""])[0].strip()
        try:
            caller = await in_time(self._keys.caller(f"Bearer {key}"), self._timeout_seconds)
            caller.require_operator("payloads are read")
        except Refused as refused:
            if refused.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise
            return HTMLResponse(_PAGE.format("This is no operator's key."), refused.status)
        answer = HTMLResponse(_PAGE.format("You are signed in, until the browser is closed."))
        secure = self._over_tls or request.url.scheme == "https"
        answer.set_cookie(_COOKIE, key, httponly=True, samesite="strict", secure=secure)
        return answer

    async def _answer(self, request: Request, work: _Work) -> Response:
        request.scope[CALLER].require_operator("payloads are read and written")
        body = await self._body(request, BODY_LIMIT)
        try:
            given = Parse(body, Payloads())
        except (ParseError, ValueError):
            # What it says may quote the body.
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON of Temporal's Payloads") from None
        try:
            done = Payloads(payloads=await work(given.payloads))
        except UnreadablePayloadError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        return Response(MessageToJson(done, indent=None), media_type="application/json")

    async def _body(self, request: Request, limit: int) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await read_bounded(request, limit)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None


class KeyInCookie:
    """Takes the key of who has signed in for one that was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope)
            key = cookie_parser(given.get("Cookie", "")).get(_COOKIE)
            if key and "Authorization" not in given:
                scope = {**scope, "headers": list(scope["headers"])}
                MutableHeaders(scope=scope)["Authorization"] = f"Bearer {key}"
        await self._app(scope, receive, send)


def create_codec_app(settings: CodecSettings, ui_origin: str | None) -> Starlette:
    """The codec server.

    Args:
        settings: with keys, else there is nothing to decode.
        ui_origin: where Temporal's UI is, as `https://HOST`, the one origin whose pages may read answers.

    Raises:
        InvalidSettingsError: there are no keys.
    """
    encryption, own = settings.encryption.in_use, settings.api
    if encryption is None:
        raise InvalidSettingsError(f"{PREFIX}ENCRYPTION__KEYS: is required, else there is nothing to decode")
    threads = own.max_concurrent_requests
    database = Database(open_engine(settings.database_url.get_secret_value(), pool_size=threads), threads)
    keys = Keys(database, own.key_cache_seconds)
    codec = Codec(
        EncryptionCodec(encryption),
        keys,
        own.request_timeout_seconds,
        # No browser lets a page that came by https ask a server that does not.
        over_tls=ui_origin is not None and ui_origin.startswith("https://"),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        database.close()

    return Starlette(
        routes=[
            Route("/healthz", _alive),
            Route(_DECODE, codec.decode, methods=["POST"]),
            Route(_ENCODE, codec.encode, methods=["POST"]),
            Route(_SIGN_IN, codec.sign_in_page, methods=["GET"]),
            Route(_SIGN_IN, codec.sign_in, methods=["POST"]),
        ],
        middleware=[
            # Outermost: a browser asks it before it sends a key, and reads a refusal by its leave alone.
            Middleware(
                CORSMiddleware,
                allow_origins=[ui_origin] if ui_origin else [],
                allow_methods=["POST"],
                allow_headers=["Authorization", "X-Namespace"],
                allow_credentials=True,
                # A UI in the open may ask one that is not.
                allow_private_network=True,
            ),
            Middleware(KeyInCookie),
            Middleware(Edge, keys, own.request_timeout_seconds, guarded=(_DECODE, _ENCODE)),
        ],
        exception_handlers={HTTPException: http_problem},
        lifespan=lifespan,
    )


async def _alive(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})

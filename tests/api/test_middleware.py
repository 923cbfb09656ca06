"""The behaviour that all endpoints share: keys, bodies, problem responses, headers and the access log."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlmodel import Session
from starlette.applications import Starlette
from starlette.types import Message

from api.app import create_app
from api.auth import Authenticator
from api.body import BODY_LIMIT, DEPTH_LIMIT
from api.database import Database
from api.endpoints import ApiModel, ApiRequest, ApiResponse, Endpoint, ResponseSpec, endpoint_routes
from api.middleware import middleware_stack
from db.api_keys import create_key, list_keys, revoke_key
from db.engine import open_engine
from embedded.stack import Addresses
from settings import Api, ApiSettings
from tests.harness.bridge import Device
from tests.harness.http_api import HttpApi, faults, open_http_api, problem

EVENTS = "/api/iot/device-events"
JSON = {"Content-Type": "application/json"}


def app_with(**changes: Any) -> Starlette:
    """Return the application with changed API settings."""
    return create_app(ApiSettings.load().model_copy(update={"api": Api(**changes)}))


# --- keys


@pytest.mark.parametrize("path", [EVENTS, "/api/iot/bindings", "/api/iot/bindings/x", "/api/", "/api/none"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
async def test_without_a_key_every_path_is_401(http_api: HttpApi, method: str, path: str) -> None:
    """A path that exists and one that does not get the same response, with the scheme to use."""
    async with http_api.client() as http:
        answer = await http.request(method, path, content=b"{")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    if method != "HEAD":
        problem(answer)


async def test_only_a_complete_key_is_accepted(http_api: HttpApi) -> None:
    """Another scheme, another key's secret or id, and a part of a key are refused."""
    key, other = http_api.key(None), http_api.key(None)
    async with http_api.client() as http:
        for given, status in {
            f"Bearer {key}": 200,
            f"bearer  {key}": 200,
            f"Basic {key}": 401,
            key: 401,
            "Bearer": 401,
            "Bearer ": 401,
            f"Bearer {key[:-1]}": 401,
            f"Bearer {key}A": 401,
            f"Bearer {key[:11]}_{other[12:]}": 401,
            f"Bearer {other[:11]}_{key[12:]}": 401,
            f"Bearer tb_00000000_{'A' * 43}": 401,
            "Bearer \u00e9": 401,
        }.items():
            headers = {b"Authorization": given.encode()}
            answer = await http.get("/api/iot/bindings", headers=headers)
            assert answer.status_code == status, given


async def test_a_revoked_key_is_refused(http_api: HttpApi, engine: Engine) -> None:
    """It is refused immediately without a cache, and accepted until its cache entry expires."""
    key = http_api.key(uuid4())
    async with (
        open_http_api(engine, app_with(key_cache_seconds=0)) as uncached,
        open_http_api(engine, app_with(key_cache_seconds=300)) as cached,
        uncached.client(key) as one,
        cached.client(key) as other,
    ):
        assert (await one.get("/api/iot/bindings")).status_code == 200
        assert (await other.get("/api/iot/bindings")).status_code == 200
        with Session(engine) as session, session.begin():
            revoked = revoke_key(session, key[3:11])
            assert revoked is not None
        assert (await one.get("/api/iot/bindings")).status_code == 401
        assert (await other.get("/api/iot/bindings")).status_code == 200


@pytest.mark.parametrize("named", [None, "own", "other"])
async def test_a_tenants_key_determines_the_tenant(http_api: HttpApi, named: str | None) -> None:
    """Naming no tenant and naming the own tenant are the same; naming another one is 403."""
    own, other = uuid4(), uuid4()
    query = {} if named is None else {"tenantId": str(own if named == "own" else other)}
    async with http_api.tenant(own) as http:
        answer = await http.get("/api/iot/bindings", params=query)
    assert answer.status_code == (403 if named == "other" else 200)


# --- bodies


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is missing"),
        (b" \n", "is missing"),
        (b"{", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("{}".encode("utf-16"), "is not JSON"),
        ("\ufeff{}".encode(), "is not JSON"),
        (b'{"deviceId": 1, "deviceId": 2}', "names a field twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', "names a field twice"),
        (b'{"a": NaN}', "contains NaN or Infinity"),
        (b'{"a": [-Infinity]}', "contains NaN or Infinity"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b"[" * (DEPTH_LIMIT + 1) + b"]" * (DEPTH_LIMIT + 1), "nests deeper"),
        (b"[" * (BODY_LIMIT - 1), "nests deeper"),
        (b'{"a":' * 50_000, "nests deeper"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_body_of_ambiguous_json_is_400(http_api: HttpApi, body: bytes, reason: str) -> None:
    """A body that is not JSON, or that two parsers may read differently, is refused with the reason."""
    async with http_api.operator() as http:
        answer = await http.post(EVENTS, content=body, headers=JSON)
    assert answer.status_code == 400
    assert reason in problem(answer)["detail"]


async def test_json_at_the_depth_limit_is_validated(http_api: HttpApi) -> None:
    """Its depth is not a fault; only its content is reported."""
    body = b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT
    async with http_api.operator() as http:
        answer = await http.post(EVENTS, content=body, headers=JSON)
    assert (answer.status_code, faults(answer)) == (422, {"body": "must be a JSON object"})


async def test_a_body_above_the_size_limit_is_413(http_api: HttpApi) -> None:
    """Both a declared and an undeclared length count; a body of exactly the limit is read."""

    async def parts(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 1024):
            yield b" " * 1024

    async with http_api.operator() as http:
        for body in (b" " * (BODY_LIMIT + 1), parts(BODY_LIMIT + 1024)):
            answer = await http.post(EVENTS, content=body, headers=JSON)
            assert problem(answer)["status"] == 413
        assert problem(await http.post(EVENTS, content=parts(BODY_LIMIT), headers=JSON))["status"] == 400


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 422),
        ("Application/JSON; charset=utf-8", 422),
        ("application/cloudevents+json", 422),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
async def test_only_a_json_content_type_is_accepted(
    http_api: HttpApi, content_type: str, status: int
) -> None:
    """A body of another type is 415, so that a browser's form cannot call an endpoint."""
    async with http_api.operator() as http:
        answer = await http.post(EVENTS, content=b"[]", headers={"Content-Type": content_type})
    assert problem(answer)["status"] == status


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("limit=0", "limit", "must be greater than or equal to 1"),
        ("limit=1001", "limit", "must be less than or equal to 1000"),
        ("limit=1.0", "limit", "must be a whole number"),
        ("limit=", "limit", "must be a whole number"),
        ("limit=1&limit=2", "limit", "is given more than once"),
        ("serail=A", "serail", "is not a field of this request"),
        ("serial=%00", "query", "contains U+0000"),
        ("tenantId=hush", "tenantId", "must be a UUID"),
        (f"tenantId={UUID(int=0)}", "tenantId", "must not be the zero UUID, the null tenant is null"),
        ("cursor=AAAA", "cursor", "must be the nextCursor of an earlier page"),
    ],
)
async def test_an_invalid_parameter_is_422_with_its_name(
    http_api: HttpApi, query: str, field: str, reason: str
) -> None:
    """An unknown parameter is refused too: a misspelt filter must not list everything."""
    async with http_api.operator() as http:
        answer = await http.get(f"/api/iot/bindings?{query}")
    assert (answer.status_code, faults(answer)) == (422, {field: reason})
    assert "hush" not in answer.text


# --- responses


async def test_an_unknown_path_or_method_is_a_problem(http_api: HttpApi) -> None:
    """An unknown path is 404, and an unknown method is 405 with the methods that the path supports."""
    async with http_api.operator() as http:
        for path in ("/", "/api/iot/none", "/api/iot/bindings/", "/healthz/"):
            assert problem(await http.get(path))["status"] == 404
        answer = await http.request("PUT", f"/api/iot/commands/granit-{uuid4()}")
        assert (problem(answer)["status"], answer.headers["allow"]) == (405, "DELETE, GET")


@pytest.mark.parametrize("path", ["/healthz", "/api/iot/bindings", "/none", "/docs", "/openapi.json"])
@pytest.mark.parametrize("with_key", [True, False])
async def test_every_response_has_an_id_and_security_headers(
    http_api: HttpApi, path: str, with_key: bool
) -> None:
    """This includes error responses: no sniffing, no caching, no framing, no scripts."""
    async with http_api.operator() if with_key else http_api.client() as http:
        answer = await http.get(path)
    assert str(UUID(answer.headers["x-request-id"])) == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy


@pytest.mark.parametrize(
    ("given", "kept"),
    [("trace-1/2:3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a\tb", False)],
)
async def test_a_callers_request_id_is_kept_if_it_is_safe(http_api: HttpApi, given: str, kept: bool) -> None:
    """A request can be traced through several systems, and a caller cannot forge log lines."""
    async with http_api.client() as http:
        answer = await http.get("/healthz", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept


async def test_each_request_is_one_log_line(http_api: HttpApi, caplog: pytest.LogCaptureFixture) -> None:
    """It has the ids of request and key and the status, but neither the query nor the key's secret."""
    caplog.set_level(logging.INFO, "thingbridge.api")
    key = http_api.key(None)
    async with http_api.client(key) as http:
        answer = await http.get("/api/iot/bindings?serial=SECRETIVE")
        await http.get("/a%0Ab")
    line, other = (vars(record) for record in caplog.records if record.name == "thingbridge.api")
    assert line["request_id"] == answer.headers["x-request-id"]
    expected = {"method": "GET", "path": "/api/iot/bindings", "status": 200, "key": key[3:11]}
    assert expected.items() <= line.items()
    assert line["milliseconds"] >= 0
    assert (other["path"], other["status"]) == ("/a%0Ab", 404)
    written = json.dumps([line, other], default=str)
    assert "SECRETIVE" not in written
    assert key[12:] not in written


# --- failures


class Empty(ApiModel):
    """A request without fields."""


@pytest.fixture
def failing(stack: Addresses, engine: Engine) -> Iterator[HttpApi]:
    """An application with an endpoint that raises, and one that never responds."""

    async def broken(_: ApiRequest[Empty]) -> ApiResponse:
        raise RuntimeError("hush")

    async def endless(_: ApiRequest[Empty]) -> ApiResponse:
        await asyncio.Event().wait()
        return ApiResponse(None)

    endpoints = [
        Endpoint(
            method="POST",
            path=f"/api/{handle.__name__}",
            summary="A test",
            tag="tests",
            request_model=Empty,
            responses={200: ResponseSpec("Never.")},
            handle=handle,
        )
        for handle in (broken, endless)
    ]
    database = Database(open_engine(stack.database_url, pool_size=1), 1)
    middleware = middleware_stack(Authenticator(database, 5), 30, ("/api/",))
    app = Starlette(routes=endpoint_routes(endpoints, 0.2), middleware=middleware)
    yield HttpApi(app, engine)
    database.close()


async def test_an_unexpected_exception_is_500_without_its_message(
    failing: HttpApi, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets the request id, under which the log has the exception."""
    async with failing.operator() as http:
        answer = await http.post("/api/broken", json={})
    failure = problem(answer)
    assert failure["status"] == HTTPStatus.INTERNAL_SERVER_ERROR
    assert answer.headers["x-request-id"] in failure["detail"]
    assert "hush" not in answer.text
    (logged,) = [record for record in caplog.records if record.exc_info]
    assert vars(logged)["request_id"] == answer.headers["x-request-id"]


async def test_slow_work_is_503_and_a_slow_body_is_408(failing: HttpApi) -> None:
    """Both time limits end the request; a 503 has the time to wait before a retry."""

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with failing.operator() as http:
        late = await http.post("/api/endless", json={})
        assert (problem(late)["status"], late.headers["retry-after"]) == (503, "5")
        assert problem(await http.post("/api/endless", content=stalling(), headers=JSON))["status"] == 408


@pytest.mark.usefixtures("engine")
async def test_a_transaction_of_a_timed_out_request_is_not_committed(stack: Addresses) -> None:
    """The work may continue in its thread after the response, but nothing of it is committed."""
    label, begun, released = f"abandoned {uuid4()}", Event(), Event()

    def slow(session: Session) -> None:
        create_key(session, None, label)
        begun.set()
        released.wait()

    # With one thread, the next work runs after this one.
    database = Database(open_engine(stack.database_url, pool_size=1), 1)
    task = asyncio.create_task(database(slow))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    released.set()
    assert label not in {key.label for key in await database(list_keys)}
    database.close()


async def test_a_client_disconnect_is_not_an_error(
    failing: HttpApi, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged as a request, and neither answered nor logged as an error."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    caplog.set_level(logging.INFO, "thingbridge.api")
    headers = {"authorization": f"Bearer {failing.key(None)}", "content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/broken",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await failing.app(scope, receive, send)
    assert sent == []
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "request completed")
    ]


async def test_without_the_database_requests_are_503(
    engine: Engine, http_api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that cannot be looked up is not refused as invalid."""
    key = http_api.key(None)
    monkeypatch.setenv("DATABASE_URL", "postgresql://bridge:hunter2@127.0.0.1:1/none")
    async with open_http_api(engine) as unavailable, unavailable.client(key) as http:
        answer = await http.get("/api/iot/bindings")
    assert (problem(answer)["status"], answer.headers["retry-after"]) == (503, "5")
    assert "hunter2" not in answer.text


async def test_without_temporal_events_are_503_and_bindings_are_returned(
    engine: Engine, http_api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints without Temporal keep working, and the others work again once Temporal is back."""
    device, key = Device("WITHOUT-TEMPORAL"), http_api.key(None)
    async with open_http_api(engine) as opened, opened.client(key) as http:
        with monkeypatch.context() as patched:
            patched.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
            answer = await http.post(EVENTS, json=device.event("Activated"))
            assert (problem(answer)["status"], answer.headers["retry-after"]) == (503, "5")
            assert (await http.get("/api/iot/bindings?limit=1")).status_code == 200
        assert (await http.post(EVENTS, json=device.event("Activated"))).status_code == 202

"""The AWS emulator: ministack behind a layer that corrects its differences from AWS.

A call passes through the injected faults, then the differences, then ministack. Devices connect to the MQTT
port with their certificates. The account is stored in the state file. `/_emulator/` is the control endpoint,
whose client is `EmulatorControl`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import socket
import ssl
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import uvicorn
from ministack import app as ministack
from ministack.core.responses import request_scope
from ministack.services import iot

from embedded import ACCOUNT, REGION
from embedded.emulator import connections, groups, jobs, registry, secrets, shadows
from embedded.emulator.calls import AwsError, Response, read_call
from embedded.emulator.faults import Faults
from embedded.emulator.settings import SETTINGS, Settings
from embedded.emulator.state import StateFile
from embedded.processes import HOST, ServerError

if TYPE_CHECKING:
    from pathlib import Path
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping

    from embedded.emulator.calls import Call, Difference

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_CONTROL = "/_emulator/"
_BACKLOG = 128
_REFRESH_SECONDS = 1.0

_DIFFERENCES: Mapping[str, Difference] = {
    **registry.DIFFERENCES,
    **shadows.DIFFERENCES,
    **groups.DIFFERENCES,
    **jobs.DIFFERENCES,
    **secrets.DIFFERENCES,
    **connections.DIFFERENCES,
}


class Emulator:
    """Handles requests to the control endpoint, and all others as calls to AWS."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        self._faults = Faults()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as an ASGI application."""
        if scope["type"] != "http":
            await ministack.app(scope, receive, send)
            return
        body = await _read_body(receive)
        if scope["path"].startswith(_CONTROL):
            path = scope["path"].removeprefix(_CONTROL)
            try:
                response = await self._control(scope["method"], path, json.loads(body or b"{}"))
            except (TypeError, ValueError) as error:
                response = Response(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode())
        else:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            path, query = scope["raw_path"].decode(), scope["query_string"].decode()
            call = read_call(scope["method"], path, query, headers, body)
            response = await self._faults.around(call, lambda call: self._respond(call, scope))
        await _send_response(send, response, is_head=scope["method"] == "HEAD")

    async def _respond(self, call: Call, scope: Scope) -> Response:
        async def forward() -> Response:
            return await _forward(scope, call.body)

        with request_scope(ACCOUNT, call.region):
            try:
                call.validate()
                if call.service == "iot" and groups.dynamic_groups():
                    await groups.refresh()
                difference = _DIFFERENCES.get(call.operation)
                response = await (forward() if difference is None else difference(call, forward))
            except AwsError as error:
                return error.response(call)
        if call.changes_something:
            self._state.request_save()
        return response

    async def _control(self, method: str, path: str, content: dict[str, Any]) -> Response:
        faults, region = self._faults, content.pop("region", "")
        match method, path:
            case "POST", "faults":
                return Response.of({"id": faults.add(content)})
            case "GET", "faults":
                return Response.of({"ids": [fault.id for fault in faults.faults]})
            case "DELETE", "faults":
                faults.faults.clear()
            case "GET", "calls":
                return Response.of(faults.calls)
            case "DELETE", "calls":
                faults.calls.clear()
            case "PUT", "quotas":
                faults.limit(content)
            case "POST", "revoked-keys":
                faults.revoke(content["access_key_id"], content["grace_seconds"])
            case "GET", "revoked-keys":
                return Response.of(faults.refused_keys)
            case "DELETE", "revoked-keys":
                faults.restore_keys()
            case "POST", "settings":
                vars(SETTINGS).update(vars(dataclasses.replace(SETTINGS, **content)))
            case "DELETE", "settings":
                vars(SETTINGS).update(vars(Settings()))
            case "DELETE", "shadow":
                with request_scope(ACCOUNT, region):
                    shadows.forget(content["thing_name"])
                self._state.request_save()
            case "POST", "timeout":
                with request_scope(ACCOUNT, region):
                    found = jobs.time_out(content["job_id"], content["thing_name"])
                self._state.request_save()
                return Response.of({}) if found else Response(HTTPStatus.NOT_FOUND, b"{}")
            case "POST", "reset":
                _reset()
                self._faults = Faults()
                self._state.request_save()
            case _:
                return Response(HTTPStatus.NOT_FOUND, b"{}")
        return Response.of({})


async def _forward(scope: Scope, body: bytes) -> Response:
    """Let ministack handle the request as one of the root user of the account, whatever key signed it."""
    signed_as_root = [
        (name, re.sub(rb"Credential=[^/]+", b"Credential=" + ACCOUNT.encode(), value))
        if name == b"authorization"
        else (name, value)
        for name, value in scope["headers"]
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await ministack.app({**scope, "headers": signed_as_root}, receive, send)
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Response(sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]), headers)


async def _read_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _send_response(send: Send, response: Response, *, is_head: bool) -> None:
    headers = {"x-amzn-requestid": str(uuid4()), **response.headers, "content-length": str(len(response.body))}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": b"" if is_head else response.body})


def _reset() -> None:
    """Empty the account. Its certificate authority stays, so that devices still trust the MQTT endpoint."""
    authority = {"ca_cert_pem": iot._ca_cert_pem, "ca_key_pem": iot._ca_key_pem}
    server = {"cert_pem": iot._mtls_server_cert_pem, "key_pem": iot._mtls_server_key_pem}
    ministack._reset_all_state()
    iot.load_persisted_state({"ca": authority, "mtls_server": server})
    for writer in list(iot._mtls_sessions):
        writer.close()
    registry.forget_detaches()
    secrets.forget_deletions()
    _prepare_account()


def _prepare_account() -> None:
    """Turn the fleet index on, as the operator of a real account does, unless the account has a setting."""
    indexed = {"thingIndexingMode": "REGISTRY_AND_SHADOW", "thingConnectivityIndexingMode": "STATUS"}
    with request_scope(ACCOUNT, REGION):
        if not iot._indexing_config:
            iot._update_indexing_configuration({"thingIndexingConfiguration": indexed})


@asynccontextmanager
async def _mqtt(port: int) -> AsyncIterator[None]:
    """Listen for devices on this machine only, and require a certificate from each of them.

    The listener of ministack itself would listen on every network, and accept devices without a certificate.
    """
    context = await asyncio.to_thread(iot._mtls_build_ssl_context)
    context.verify_mode = ssl.CERT_REQUIRED
    iot._mtls_ssl_context = context
    server = await asyncio.get_running_loop().create_server(iot._MtlsAcceptor, HOST, port)
    yield
    server.close()
    for writer in list(iot._mtls_sessions):
        writer.transport.abort()


async def _refresh_groups() -> None:
    """Let dynamic groups follow the changes that devices make, in an endless loop."""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        for account, region in {(key[0], key[1]) for key in iot._thing_groups._data}:
            with request_scope(account, region):
                await groups.refresh()


async def serve(port: int, mqtt_port: int, state_file: Path) -> None:
    """Serve the emulator on two local ports until SIGTERM or Ctrl-C, then save the account.

    Raises:
        ServerError: the state file cannot be read, or a port cannot be used.
    """
    state = StateFile(state_file)
    state.load()
    _prepare_account()
    try:
        listener = socket.create_server((HOST, port), backlog=_BACKLOG)
    except OSError as error:
        raise _unusable(port, error) from error
    try:
        async with _mqtt(mqtt_port):
            state_file.with_name(state_file.name + ".ca.pem").write_text(iot.get_ca_cert_pem())
            tasks = [asyncio.create_task(state.save_changes()), asyncio.create_task(_refresh_groups())]
            config = uvicorn.Config(Emulator(state), log_level="warning", access_log=False)
            await uvicorn.Server(config).serve([listener])
            for task in tasks:
                task.cancel()
    except OSError as error:
        raise _unusable(mqtt_port, error) from error
    state.save()


def _unusable(port: int, error: OSError) -> ServerError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ServerError(f"the AWS emulator cannot listen on {HOST}:{port} ({reason}): choose another port")

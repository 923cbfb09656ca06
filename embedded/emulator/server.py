"""The AWS emulator: ministack behind a layer that corrects its differences from AWS.

A call passes through the injected faults, then the differences, then ministack. Devices connect to the MQTT
port with their certificates. The account is stored in the state file. `/_emulator/` is the control endpoint,
whose client is `EmulatorControl`.
"""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote
from uuid import uuid4

import uvicorn
from ministack import app as ministack
from ministack.core.responses import request_scope
from ministack.services import iot, sts
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from embedded import ACCOUNT, REGION
from embedded.emulator import groups, jobs, registry, secrets, shadows
from embedded.emulator.calls import DIFFERENCES, AwsError, Call, RefusedError, Response, read_call
from embedded.emulator.faults import Faults
from embedded.emulator.settings import SETTINGS, Settings
from embedded.emulator.state import StateFile
from embedded.processes import HOST, ServerError

_CONTROL = "/_emulator/"
_REFRESH_SECONDS = 1.0


class Emulator:
    """Handles requests to the control endpoint, and all others as calls to AWS."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        self._faults = Faults()
        self._controls: Mapping[str, Callable[..., object]] = {
            "add_fault": self._faults.add,
            "active_faults": lambda: [fault.id for fault in self._faults.faults],
            "clear_faults": self._faults.faults.clear,
            "calls": lambda: self._faults.calls,
            "forget_calls": self._faults.calls.clear,
            "limit": self._faults.limit,
            "revoke_key": self._faults.revoke,
            "refused_keys": lambda: self._faults.refused_keys,
            "restore_keys": self._faults.restore_keys,
            "settings": lambda **changes: vars(SETTINGS).update(vars(replace(SETTINGS, **changes))),
            "default_settings": lambda: vars(SETTINGS).update(vars(Settings())),
            "forget_shadow": shadows.forget,
            "time_out_execution": jobs.time_out,
            "reset": self._reset,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as an ASGI application."""
        request = Request(scope, receive) if scope["type"] == "http" else None
        is_control = request is not None and request.url.path.startswith(_CONTROL)
        if request is None or not (is_control or "authorization" in request.headers):
            # The start and stop of the server, a WebSocket, or a page of ministack about itself.
            await ministack.app(scope, receive, send)
            return
        body = await request.body()
        if is_control:
            response = self._control(request.url.path.removeprefix(_CONTROL), json.loads(body or b"{}"))
        else:
            path, query = scope["raw_path"].decode(), scope["query_string"].decode()
            call = read_call(request.method, path, query, dict(request.headers), body)
            response = await self._faults.around(call, self._respond)
        headers = {"x-amzn-requestid": str(uuid4()), **response.headers}
        await HttpResponse(response.body, response.status, headers)(scope, receive, send)

    def _control(self, name: str, arguments: Mapping[str, Any]) -> Response:
        try:
            with request_scope(ACCOUNT, REGION):
                result = self._controls[name](**arguments)
        except (KeyError, TypeError, ValueError) as error:
            return Response(400, json.dumps({"error": str(error)}).encode())
        self._state.request_save()
        return Response.of({"result": result})

    async def _respond(self, call: Call) -> Response:
        with request_scope(ACCOUNT, call.region):
            try:
                call.validate()
                if call.service == "iot" and groups.dynamic_groups():
                    await groups.refresh()
                handle = DIFFERENCES.get(call.operation)
                response = await (_forward(call) if handle is None else handle(call, lambda: _forward(call)))
            except AwsError as error:
                return error.response(call)
            except RefusedError as refused:
                return refused.response
        if call.changes_something:
            self._state.request_save()
        return response

    def _reset(self) -> None:
        """Empty the account. Its authority stays, so that devices still trust the MQTT endpoint."""
        authority = {"ca_cert_pem": iot._ca_cert_pem, "ca_key_pem": iot._ca_key_pem}
        server = {"cert_pem": iot._mtls_server_cert_pem, "key_pem": iot._mtls_server_key_pem}
        ministack._reset_all_state()
        iot.load_persisted_state({"ca": authority, "mtls_server": server})
        for writer in list(iot._mtls_sessions):
            writer.close()
        registry.detached_at.clear()
        secrets.deleted_at.clear()
        self._faults.reset()


async def _forward(call: Call) -> Response:
    """Let ministack handle the call: as one of its role if a role signed it, else of the root user."""
    path, _, query = call.path.partition("?")
    headers = dict(call.headers)
    if call.access_key_id not in sts._sessions:
        headers["authorization"] = re.sub(
            "Credential=[^/]+", f"Credential={ACCOUNT}", headers["authorization"]
        )
    status, headers, body = await ministack._dispatch_service_request(
        call.method, unquote(path), headers, call.body, parse_qs(query, keep_blank_values=True), str(uuid4())
    )
    response = Response(status, body, {name.lower(): value for name, value in headers.items()})
    if status >= HTTPStatus.BAD_REQUEST:
        raise RefusedError(response)
    return response


@asynccontextmanager
async def _mqtt(listener: socket.socket) -> AsyncIterator[None]:
    """Listen for devices on this machine only, and require a certificate from each of them.

    The listener of ministack itself would listen on every network, and accept devices without a certificate.
    """
    context = await asyncio.to_thread(iot._mtls_build_ssl_context)
    context.verify_mode = ssl.CERT_REQUIRED
    iot._mtls_ssl_context = context
    server = await asyncio.get_running_loop().create_server(iot._MtlsAcceptor, sock=listener)
    yield
    server.close()
    for writer in list(iot._mtls_sessions):
        writer.transport.abort()


async def _follow_devices(state: StateFile) -> None:
    """Let dynamic groups and the state file follow the changes that devices make, in an endless loop."""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        if iot._connected_clients:
            state.request_save()
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
    http, mqtt = _listen(port), _listen(mqtt_port)
    # Uvicorn raises the signal again once it has stopped, which would end this process before the last save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    async with _mqtt(mqtt):
        state_file.with_name(state_file.name + ".ca.pem").write_text(iot.get_ca_cert_pem())
        tasks = [asyncio.create_task(state.save_changes()), asyncio.create_task(_follow_devices(state))]
        config = uvicorn.Config(Emulator(state), log_level="warning", access_log=False)
        await uvicorn.Server(config).serve([http])
        for task in tasks:
            task.cancel()
    state.save()


def _listen(port: int) -> socket.socket:
    # With the protocol, asyncio disables Nagle's algorithm, which would delay each response by 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        message = f"the AWS emulator cannot listen on {HOST}:{port} ({reason}): choose another port"
        raise ServerError(message) from error
    return listener

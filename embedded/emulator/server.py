"""The AWS emulator: ministack behind a layer that corrects its differences from AWS.

A call passes through the injected faults, then the differences, then ministack. Devices connect to the MQTT
port with their certificates. The account is stored in the state file. `/_emulator/` is the control endpoint,
whose client is `EmulatorControl`.
"""

import asyncio
import json
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
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
from embedded.emulator.calls import DIFFERENCES, SETTINGS, AwsError, Call, RefusedError, Response, read_call
from embedded.emulator.faults import Faults
from embedded.emulator.state import StateFile
from embedded.emulator_control import Settings
from embedded.processes import listen

_CONTROL = "/_emulator/"


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
            response = self._control(request.url.path.removeprefix(_CONTROL), body)
        else:
            path, query = (scope[part].decode(errors="replace") for part in ("raw_path", "query_string"))
            call = read_call(request.method, path, query, dict(request.headers), body)
            response = await self._faults.around(call, self._respond)
        headers = {"x-amzn-requestid": str(uuid4()), **response.headers}
        await HttpResponse(response.body, response.status, headers)(scope, receive, send)

    def _control(self, name: str, arguments: bytes) -> Response:
        try:
            with request_scope(ACCOUNT, REGION):
                result = self._controls[name](**json.loads(arguments or b"{}"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return Response(400, json.dumps({"error": str(error)}).encode())
        self._state.request_save()
        return Response.of({"result": result})

    async def _respond(self, call: Call) -> Response:
        with request_scope(ACCOUNT, call.region):
            try:
                call.validate()
                if call.service == "iot" and re.search("Group|Job|Search", call.name):
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
        await asyncio.sleep(1)
        if iot._connected_clients:
            state.request_save()
        for account, region in {key[:2] for key in iot._thing_groups._data}:
            with request_scope(account, region):
                await groups.refresh()


async def serve(port: int, mqtt_port: int, state_file: Path) -> None:
    """Serve the emulator on two local ports until SIGTERM or Ctrl-C, then save the account.

    Raises:
        ServerError: the state file cannot be read, or a port cannot be used.
    """
    state = StateFile(state_file)
    state.load()
    http, mqtt = listen(port), listen(mqtt_port)
    times = {"timeout_graceful_shutdown": 1, "timeout_keep_alive": 60}
    server = uvicorn.Server(uvicorn.Config(Emulator(state), log_level="warning", **times))  # type: ignore[arg-type]
    # Also before and after Uvicorn runs, which raises the signal again: nothing interrupts the last save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    async with _mqtt(mqtt):
        state.ca_file.write_text(iot.get_ca_cert_pem())
        tasks = [asyncio.create_task(state.save_changes()), asyncio.create_task(_follow_devices(state))]
        await server.serve([http])
        for task in tasks:
            task.cancel()
    state.save()

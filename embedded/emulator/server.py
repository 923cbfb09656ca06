"""The AWS emulator: an HTTP server with moto behind a layer that corrects its differences from AWS.

    python -m embedded.emulator.server --port 4566 --state aws.state

A call passes through the injected faults, then the differences, then moto. The account is stored in the state
file. `/_emulator/` is the control endpoint, whose client is `EmulatorControl`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from base64 import b64decode
from dataclasses import replace
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

from embedded.emulator import jobs, shadows
from embedded.emulator.account import Account, Settings
from embedded.emulator.calls import AwsError, Response, read_call
from embedded.emulator.differences import respond_as_aws
from embedded.emulator.faults import Faults
from embedded.emulator.keys import RevokedKeys
from embedded.emulator.state import StateFile
from embedded.processes import HOST, ServerError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from embedded.emulator.calls import Call

_CONTROL = "/_emulator/"
_BACKLOG = 128


class Emulator:
    """Handles requests to the control endpoint, and all others as calls to AWS."""

    def __init__(self, account: Account, state: StateFile) -> None:
        self._account = account
        self._state = state
        self._faults = Faults()
        self._revoked_keys = RevokedKeys()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._applications: dict[str, WSGIApplication] = {}

    def handle(self, environ: WSGIEnvironment, body: bytes) -> Response:
        """Handle a request."""
        if environ["PATH_INFO"].startswith(_CONTROL):
            path = environ["PATH_INFO"].removeprefix(_CONTROL)
            return self._control(environ["REQUEST_METHOD"], path, json.loads(body or b"{}"))
        return self._faults.around(read_call(environ, body), self._call)

    def _call(self, call: Call) -> Response:
        try:
            self._revoked_keys.refuse(call)
        except AwsError as error:
            return error.response(call)
        response = respond_as_aws(call, self._account, lambda: self._forward(call))
        if call.changes_something:
            self._state.request_save()
        return response

    def _forward(self, call: Call) -> Response:
        call.environ["wsgi.input"] = BytesIO(call.body)
        # Moto searches its folders for the service of each request, which takes a third of its time.
        application = self._applications.get(call.service) or self._moto.get_application(call.environ)
        if call.is_signed:
            self._applications[call.service] = application
        chunks, status, headers = run_wsgi_app(application, call.environ, buffered=True)
        return Response(int(status.split()[0]), b"".join(chunks), dict(headers))

    def _control(self, method: str, path: str, content: dict[str, Any]) -> Response:
        match method, path:
            case "POST", "faults":
                try:
                    return Response.of({"id": self._faults.add(content)})
                except (TypeError, ValueError) as error:
                    return Response(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode())
            case "GET", "faults":
                return Response.of({"ids": self._faults.ids()})
            case "DELETE", "faults":
                self._faults.clear()
            case "GET", "calls":
                return Response.of(self._faults.calls())
            case "DELETE", "calls":
                self._faults.forget_calls()
            case "POST", "revoked-keys":
                self._revoked_keys.add(content["access_key_id"], content["grace_seconds"])
            case "GET", "revoked-keys":
                return Response.of(self._revoked_keys.refused())
            case "DELETE", "revoked-keys":
                self._revoked_keys.clear()
            case "POST", "settings":
                try:
                    self._account.settings = replace(self._account.settings, **content)
                except TypeError as error:
                    return Response(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode())
            case "DELETE", "settings":
                self._account.settings = Settings()
            case "POST", "shadow":
                payload = b64decode(content["payload"])
                shadows.put_raw(self._account, content["region"], content["thing_name"], payload)
                self._state.request_save()
            case "DELETE", "shadow":
                shadows.forget(self._account, content["region"], content["thing_name"])
                self._state.request_save()
            case "POST", "timeout":
                found = jobs.time_out(
                    self._account, content["region"], content["job_id"], content["thing_name"]
                )
                self._state.request_save()
                return Response.of({}) if found else Response(HTTPStatus.NOT_FOUND, b"{}")
            case "POST", "reset":
                self._account.reset()
                self._faults.clear()
                self._faults.forget_calls()
                self._revoked_keys.clear()
                self._state.request_save()
            case _:
                return Response(HTTPStatus.NOT_FOUND, b"{}")
        return Response.of({})


class _RequestHandler(MotoRequestHandler):
    """Keeps connections open for several requests, which the handler of werkzeug does not.

    boto reuses its connections. A new connection for each call would be slow and would need a new thread.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    emulator: Emulator

    def run_wsgi(self) -> None:
        """Handle one request."""
        environ = self.make_environ()
        body = self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0))
        response = self.emulator.handle(environ, body)
        headers = {"x-amzn-requestid": str(uuid4())} | {
            name.lower(): value for name, value in response.headers.items()
        }
        self.send_response(response.status)
        for name, value in (headers | {"content-length": str(len(response.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do not log requests: there are thousands."""


def serve(port: int, state_file: Path) -> None:
    """Serve the emulator on a local port until SIGTERM or Ctrl-C, then save the account.

    Raises:
        ServerError: the state file cannot be read, or the port cannot be used.
    """
    account = Account()
    state = StateFile(state_file, account)
    state.load()
    # Bound here, because werkzeug would print an error and exit if the port is in use.
    try:
        listener = socket.create_server((HOST, port), backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ServerError(
            f"the AWS emulator cannot listen on {HOST}:{port} ({reason}): choose another port"
        ) from error
    threading.Thread(target=state.save_changes, daemon=True).start()
    handler = type("_Handler", (_RequestHandler,), {"emulator": Emulator(account, state)})
    with listener:
        server = make_server(
            HOST, port, lambda *_: (), threaded=True, request_handler=handler, fd=listener.fileno()
        )
    # In a thread: shutdown() waits for the loop, which this signal handler interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    state.save_and_close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    try:
        serve(arguments.port, arguments.state)
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

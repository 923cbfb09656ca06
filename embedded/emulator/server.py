"""AWS on this machine: moto behind a layer that makes it behave as AWS does, in one HTTP server.

    python -m embedded.emulator.server --port 4566 --state aws.state

A call passes the faults that a test may have asked for, then the differences, then moto. What is in the
account is kept in the state file. `/_emulator/` is the control door, to which `EmulatorControl` speaks.
"""

from __future__ import annotations

import argparse
import json
import signal
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
from embedded.emulator.calls import Answer, AwsError, read_call
from embedded.emulator.differences import answer_as_aws
from embedded.emulator.faults import Faults
from embedded.emulator.keys import RevokedKeys
from embedded.emulator.state import StateFile

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from embedded.emulator.calls import Call

_CONTROL = "/_emulator/"


class Emulator:
    """Answers requests: the control door's itself, any other as a call to AWS."""

    def __init__(self, account: Account, state: StateFile) -> None:
        self._account = account
        self._state = state
        self._faults = Faults()
        self._revoked_keys = RevokedKeys()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._applications: dict[str, WSGIApplication] = {}

    def answer(self, environ: WSGIEnvironment, body: bytes) -> Answer:
        """What a request is answered with."""
        if environ["PATH_INFO"].startswith(_CONTROL):
            door = environ["PATH_INFO"].removeprefix(_CONTROL)
            return self._control(environ["REQUEST_METHOD"], door, json.loads(body or b"{}"))
        return self._faults.around(read_call(environ, body), self._call)

    def _call(self, call: Call) -> Answer:
        try:
            self._revoked_keys.refuse(call)
        except AwsError as error:
            return error.answer(call)
        answer = answer_as_aws(call, self._account, lambda: self._forward(call))
        if call.changes_something:
            self._state.note_change()
        return answer

    def _forward(self, call: Call) -> Answer:
        call.environ["wsgi.input"] = BytesIO(call.body)
        # Moto searches its folders for each request's service, a third of all its time: once is enough.
        application = self._applications.get(call.service) or self._moto.get_application(call.environ)
        if call.is_signed:
            self._applications[call.service] = application
        chunks, status, headers = run_wsgi_app(application, call.environ, buffered=True)
        return Answer(int(status.split()[0]), b"".join(chunks), dict(headers))

    def _control(self, method: str, door: str, content: dict[str, Any]) -> Answer:
        match method, door:
            case "POST", "faults":
                try:
                    return Answer.of({"id": self._faults.add(content)})
                except (TypeError, ValueError) as error:
                    return Answer(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode())
            case "GET", "faults":
                return Answer.of({"ids": self._faults.ids()})
            case "DELETE", "faults":
                self._faults.clear()
            case "GET", "calls":
                return Answer.of(self._faults.calls())
            case "DELETE", "calls":
                self._faults.forget_calls()
            case "POST", "revoked-keys":
                self._revoked_keys.add(content["access_key_id"], content["grace_seconds"])
            case "GET", "revoked-keys":
                return Answer.of(self._revoked_keys.refused())
            case "DELETE", "revoked-keys":
                self._revoked_keys.clear()
            case "POST", "settings":
                try:
                    self._account.settings = replace(self._account.settings, **content)
                except TypeError as error:
                    return Answer(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode())
            case "DELETE", "settings":
                self._account.settings = Settings()
            case "POST", "shadow":
                payload = b64decode(content["payload"])
                shadows.put_raw(self._account, content["region"], content["thing_name"], payload)
                self._state.note_change()
            case "DELETE", "shadow":
                shadows.forget(self._account, content["region"], content["thing_name"])
                self._state.note_change()
            case "POST", "timeout":
                found = jobs.time_out(
                    self._account, content["region"], content["job_id"], content["thing_name"]
                )
                self._state.note_change()
                return Answer.of({}) if found else Answer(HTTPStatus.NOT_FOUND, b"{}")
            case "POST", "reset":
                self._account.reset()
                self._faults.clear()
                self._faults.forget_calls()
                self._revoked_keys.clear()
                self._state.note_change()
            case _:
                return Answer(HTTPStatus.NOT_FOUND, b"{}")
        return Answer.of({})


class _RequestHandler(MotoRequestHandler):
    """Serves any number of requests on one connection, which werkzeug's own handler does not.

    boto keeps its connections; a new one for each call costs it, and a thread here.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    emulator: Emulator

    def run_wsgi(self) -> None:
        """Answer one request."""
        environ = self.make_environ()
        body = self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = self.emulator.answer(environ, body)
        headers = {"x-amzn-requestid": str(uuid4())} | {
            name.lower(): value for name, value in answer.headers.items()
        }
        self.send_response(answer.status)
        for name, value in (headers | {"content-length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: thousands of calls are no news."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()

    account = Account()
    state = StateFile(arguments.state, account)
    state.load()
    threading.Thread(target=state.save_changes, daemon=True).start()
    handler = type("_Handler", (_RequestHandler,), {"emulator": Emulator(account, state)})
    server = make_server("127.0.0.1", arguments.port, lambda *_: (), threaded=True, request_handler=handler)
    # From a thread: shutdown() waits for the loop, which this signal interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    state.save_for_good()


if __name__ == "__main__":
    main()

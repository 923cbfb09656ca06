"""An HTTP endpoint for webhooks that can be stopped and started again at the same address."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID


@dataclass(frozen=True)
class Answer:
    """A response to send."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """A received request, and the status of its response."""

    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def event(self) -> dict[str, Any]:
        sent: dict[str, Any] = json.loads(self.body)
        return sent


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True


class Endpoint:
    """A webhook receiver that responds to each event with the result of `answer`, by default 204."""

    def __init__(self) -> None:
        # This socket is bound and never listens: it reserves the port while no server runs.
        self._address = socket.socket()
        self._address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._address.bind(("127.0.0.1", 0))
        self.port = self._address.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks?token=url-token"
        self.requests: list[Request] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: Answer()
        self._server: _Server | None = None

    def start(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = endpoint.answer(json.loads(body))
                headers = {name.lower(): value for name, value in self.headers.items()}
                endpoint.requests.append(Request(headers, body, answer.status))
                self.send_response(answer.status)
                for name, value in {**answer.headers, "content-length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.stop()
        self._address.close()

    def arrived(self, device: UUID) -> list[int]:
        """Return the sequences of a device's accepted events, in order of arrival."""
        return [
            int(request.event["sequence"])
            for request in self.requests.copy()
            if request.status < 300 and request.event.get("subject") == str(device)
        ]


@contextmanager
def running_endpoint() -> Iterator[Endpoint]:
    """Run an endpoint."""
    endpoint = Endpoint()
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.close()

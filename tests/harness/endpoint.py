"""A receiver of webhooks on a socket of its own, which can be killed and come back at the same address."""

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
    """What a request is answered with."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """What came, and how it was answered."""

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
    """Answers each event as it is told to; as long as nobody says otherwise, that it has arrived."""

    def __init__(self) -> None:
        # Bound and never listening: it keeps the port for this endpoint while nothing answers there.
        self._address = socket.socket()
        self._address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._address.bind(("127.0.0.1", 0))
        self.port = self._address.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks?token=hush"
        self.requests: list[Request] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: Answer()
        self._server: _Server | None = None

    def up(self) -> None:
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

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.down()
        self._address.close()

    def arrived(self, device: UUID) -> list[int]:
        """The numbers of the device's events that were taken, as they came."""
        return [
            int(request.event["sequence"])
            for request in self.requests.copy()
            if request.status < 300 and request.event.get("subject") == str(device)
        ]


@contextmanager
def endpoint_up() -> Iterator[Endpoint]:
    """An endpoint that answers, until it is taken down."""
    endpoint = Endpoint()
    endpoint.up()
    try:
        yield endpoint
    finally:
        endpoint.close()

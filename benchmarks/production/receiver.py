"""The webhook receiver of the platform: a process that stores every delivery and checks its signature.

    WEBHOOK_SECRET=whsec_… python -m benchmarks.production.receiver --port 9000 --file deliveries.jsonl

The signature is checked by the Standard Webhooks specification, with code that is independent of the bridge.
"""

import argparse
import hmac
import json
import os
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Final

_TOLERANCE_SECONDS: Final = 300


def fault_of(headers: Mapping[str, str], body: bytes, secret: str, now: float) -> str | None:
    """Return the fault of a delivery's signature, or None if the signature is correct."""
    message_id, timestamp = headers.get("webhook-id"), headers.get("webhook-timestamp")
    if not message_id or not timestamp or not timestamp.isdecimal():
        return "webhook-id or webhook-timestamp is missing"
    if abs(now - int(timestamp)) > _TOLERANCE_SECONDS:
        return "webhook-timestamp is not the current time"
    key = b64decode(secret.removeprefix("whsec_"))
    signed = b".".join([message_id.encode(), timestamp.encode(), body])
    expected = "v1," + b64encode(hmac.digest(key, signed, sha256)).decode()
    given = headers.get("webhook-signature", "").split()
    return (
        None if any(hmac.compare_digest(expected, each) for each in given) else "webhook-signature is wrong"
    )


class Receiver(BaseHTTPRequestHandler):
    """Accepts deliveries."""

    protocol_version = "HTTP/1.1"
    secret: str
    file: BinaryIO
    writing: threading.Lock

    def do_GET(self) -> None:
        """Respond with 200, as a readiness check."""
        self._answer(HTTPStatus.OK)

    def do_POST(self) -> None:
        """Store a delivery, then confirm it."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        now = time.time()
        fault = fault_of(headers, body, self.secret, now)
        line = {"at": now, "headers": headers, "body": body.decode(errors="replace"), "fault": fault}
        with self.writing:
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()
        self._answer(HTTPStatus.UNAUTHORIZED if fault else HTTPStatus.NO_CONTENT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in the base class
        """Do not log requests: the file has all of them."""

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


def main() -> None:
    """Accept deliveries until the process is killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.file.open("ab") as file:
        members = {"secret": os.environ["WEBHOOK_SECRET"], "file": file, "writing": threading.Lock()}
        handler = type("_Receiver", (Receiver,), members)
        ThreadingHTTPServer(("127.0.0.1", arguments.port), handler).serve_forever()


if __name__ == "__main__":
    main()

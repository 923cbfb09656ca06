"""moto, the second AWS emulator, as its authors ship it: docs/emulator.md lists where it differs from AWS."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.awsrequest import AWSResponse, HTTPHeaders

from aws.clients import AwsClients
from embedded.processes import HOST, ServerProcess, child_environment, choose_ports, is_ok


@contextmanager
def moto_server(log_file: Path) -> Iterator[str]:
    """Run a moto server and return its URL.

    It is a process of its own: in this process it would share its resources with the tests that use moto
    directly, which delete all of them.
    """
    (port,) = choose_ports(0)
    command = [sys.executable, "-P", "-m", "moto.server", "--host", HOST, "--port", str(port)]
    with Path(os.devnull).open("rb") as nothing:
        process = ServerProcess(
            "moto", command, log_file, environment=child_environment(), keep_open=nothing.fileno()
        )
    try:
        process.wait_until(lambda: is_ok(port, "/moto-api/data.json"))
        yield f"http://{HOST}:{port}"
    finally:
        process.request_stop()
        process.wait_stopped()


def without_connections(aws: AwsClients) -> AwsClients:
    """Answer DeleteConnection in place of moto, which lacks it, as AWS does for a device that is offline."""

    def answer(model: Any, **_: Any) -> tuple[AWSResponse, dict[str, Any]] | None:
        if model.name != "DeleteConnection":
            return None
        error = {"Code": "ResourceNotFoundException", "Message": "the device is offline"}
        return AWSResponse("", 404, HTTPHeaders(), None), {"Error": error}

    # Last, after the measurement of calls has begun: a handler that answers is the last that is called.
    aws.iot_data.meta.events.register_last("before-call", answer)  # type: ignore[arg-type] # the stub knows no handler that answers
    return aws

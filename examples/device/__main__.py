"""Run one device in the foreground: `python -m examples.device --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

from examples.device.device import APPLY_DESIRED_STATE, Device, Endpoint, Event, Identity, Outcome
from examples.device.factory import SECRET_NAME_TEMPLATE, FactoryError, fetch_identity

_DESCRIPTION = """\
Run the device of one Thing until Ctrl-C. It connects to AWS IoT Core over MQTT 5 with its certificate,
reports its shadow, executes its jobs, and connects again when the connection is lost. It prints one line per
event. Ctrl-C waits at most 15 seconds for the job that is being executed; a second one does not wait.
"""
_EXAMPLES = """\
against `thingbridge dev`, which prints the port and the CA file:
  set -a; . .thingbridge/dev/environment; set +a
  python -m examples.device --ca .thingbridge/dev/aws.state.ca.pem --thing NAME --from-factory

against AWS, with files that the factory wrote:
  python -m examples.device --host PREFIX-ats.iot.REGION.amazonaws.com --thing NAME \\
    --cert NAME.pem --key NAME.key
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the device, and return the exit code."""
    options = _options(arguments)
    try:
        device = Device(
            options.thing,
            _identity(options),
            Endpoint(options.host, options.port, options.ca and options.ca.read_bytes()),
            execute,
            properties={"firmwareVersion": "1.0.0"},
            applies_delta=options.apply_delta,
            on_event=_print,
        )
    except OSError as error:
        return _fail(f"cannot use {error.filename}: {error.strerror}")
    except (FactoryError, ValueError) as error:
        return _fail(str(error))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    device.start()
    stop.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    device.stop()
    return 0


def execute(operation: str, parameters: Mapping[str, Any]) -> Outcome:
    """Execute an operation of a job: this is where a real device does something."""
    match operation:
        case "reboot":
            return Outcome("SUCCEEDED", {"rebooted": "yes"})
        case _ if operation == APPLY_DESIRED_STATE:
            return Outcome("SUCCEEDED", {"applied": ", ".join(parameters)})
        case _:
            return Outcome("REJECTED", {"reason": f"this device has no operation {operation}"})


def _identity(options: argparse.Namespace) -> Identity:
    """Return the certificate and key from the files, or from AWS.

    Raises:
        OSError: a file cannot be read or written.
        FactoryError: AWS has no certificate and key of the Thing.
    """
    if not options.from_factory:
        return Identity.from_files(options.cert, options.key)
    try:
        iot, secrets = boto3.client("iot"), boto3.client("secretsmanager")
    except BotoCoreError as error:
        raise FactoryError(f"cannot call AWS: {error}") from None
    identity = fetch_identity(options.thing, iot, secrets, options.secret_name)
    if options.save_to:
        for path in identity.write_files(options.save_to, options.thing):
            sys.stdout.write(f"wrote {path}\n")
    return identity


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.device",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--thing", metavar="NAME", required=True, help="the name of the Thing, which is also the client id")
    add("--host", default="localhost", help="the endpoint for devices (default: localhost)")
    add("--port", type=int, default=8883, help="its port (default: 8883)")
    add(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the certificate of the endpoint's authority, as PEM (default: the authorities of this system)",
    )
    add("--cert", type=Path, metavar="FILE", help="the certificate of the device, as PEM")
    add("--key", type=Path, metavar="FILE", help="its private key, as PEM")
    add(
        "--from-factory",
        action="store_true",
        help="fetch both from AWS instead, with the AWS credentials and region of the environment",
    )
    add(
        "--secret-name",
        metavar="TEMPLATE",
        default=SECRET_NAME_TEMPLATE,
        help="with --from-factory: the name of the secret that contains the key (default: %(default)s)",
    )
    add("--save-to", type=Path, metavar="FOLDER", help="with --from-factory: also write both to this folder")
    add(
        "--apply-delta",
        action="store_true",
        help="apply a change of the desired state at once, instead of waiting for the job of thingbridge",
    )
    options = parser.parse_args(arguments)
    if options.from_factory == bool(options.cert or options.key):
        parser.error("give either --cert and --key, or --from-factory")
    if not options.from_factory and not (options.cert and options.key):
        parser.error("--cert and --key belong together")
    if options.save_to and not options.from_factory:
        parser.error("--save-to belongs to --from-factory")
    return options


def _print(event: Event) -> None:
    sys.stdout.write(f"{event.kind}: {event.detail}\n")
    sys.stdout.flush()


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Run the AWS emulator: `python -m embedded.emulator --port 4566 --mqtt-port 8883 --state aws.state`."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from embedded import ACCOUNT, REGION
from embedded.processes import ServerError


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="embedded.emulator", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="of the HTTP endpoint of every service")
    parser.add_argument("--mqtt-port", type=int, required=True, help="of the MQTT endpoint for devices")
    parser.add_argument("--state", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    # Ministack reads its configuration when it is imported.
    os.environ |= {
        "GATEWAY_PORT": str(arguments.port),
        "MINISTACK_REGION": REGION,
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "AUTH": "true",  # enforces the IoT policies of devices, and roles
        "IOT_MTLS_ENABLED": "0",  # our own listener replaces it
        "LOG_LEVEL": "WARNING",
    }
    from embedded.emulator.server import serve

    try:
        asyncio.run(serve(arguments.port, arguments.mqtt_port, arguments.state))
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

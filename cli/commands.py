"""The commands `command` and `cancel`, for AWS IoT jobs."""

from typing import Annotated
from uuid import UUID

import typer


def command(
    operation: Annotated[
        str, typer.Argument(metavar="OPERATION", help="The operation for the device to do.")
    ],
    device: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Target: one device, whose binding is Active.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Target: the devices that are now in this thing group."),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY",
            help="Target: the devices that this fleet-indexing query finds, now or while the job is tracked.",
        ),
    ] = None,
    parameters: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help="A JSON object for the device, or a file with one.")
    ] = "{}",
    correlation_id: Annotated[
        UUID | None,
        typer.Option(
            metavar="UUID",
            help="Identifies the command, so that it can be sent again; default: a random one.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit code 0 only if the device succeeded.")
    ] = False,
) -> None:
    """Send a command to devices, as an AWS IoT job.

    The target is a device, a thing group, or the devices that a query finds.
    Prints the job's id, which is also its workflow's. With a correlation id that
    was used before, nothing is sent: the same command prints the same job,
    another command is an error.
    """
    import asyncio

    from cli import command_jobs
    from settings import CommandSettings

    read = command_jobs.read_command(
        operation,
        device=device,
        group=group,
        query=query,
        parameters=parameters,
        correlation_id=correlation_id,
    )
    raise typer.Exit(asyncio.run(command_jobs.send(CommandSettings.load(), read, wait=wait)))


def cancel(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The job id of the command.")],
) -> None:
    """Cancel a command that has not ended, and its job in AWS."""
    import asyncio

    from cli import command_jobs
    from settings import ClientSettings

    asyncio.run(command_jobs.cancel(ClientSettings.load(), job_id))

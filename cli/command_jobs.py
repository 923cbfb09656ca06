"""Commands to devices: parsing the arguments, sending, waiting for the end, cancelling."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import typer
from pydantic_core import from_json
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from temporalio.client import WorkflowFailureError

from cli.output import runnable, standard_output
from domain.command import Command, CommandTarget, TargetKind
from domain.operator_error import OperatorError
from orchestration.client import connect
from orchestration.requests import cancel_command, command_sent, describe_command, send_command
from settings import ClientSettings, CommandSettings
from workflows.device_command import DeviceCommandStatus


class CorrelationIdTakenError(OperatorError):
    """Another command was sent with the same correlation id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} is another command, nothing was sent: use another --correlation-id")


def read_command(
    operation: str,
    *,
    device: UUID | None,
    group: str | None,
    query: str | None,
    parameters: str,
    correlation_id: UUID | None,
) -> Command:
    """Return the command that the arguments describe.

    Raises:
        typer.BadParameter: an argument is wrong; nothing has been sent.
    """
    candidates = {
        TargetKind.DEVICE: str(device) if device else None,
        TargetKind.GROUP: group,
        TargetKind.QUERY: query,
    }
    targets = [
        CommandTarget(kind=kind, value=value) for kind, value in candidates.items() if value is not None
    ]
    if len(targets) != 1:
        raise typer.BadParameter("name one target: --device, --group or --query")
    command = Command(
        correlation_id=correlation_id or uuid4(),
        target=targets[0],
        operation=operation,
        parameters=_read_parameters(parameters),
    )
    if fault := command.fault():
        raise typer.BadParameter(str(fault))
    return command


async def send(settings: CommandSettings, command: Command, *, wait: bool) -> int:
    """Send a command, and return the exit code: 0 if it was sent or, with `wait`, succeeded.

    Raises:
        CorrelationIdTakenError: another command was sent with its correlation id before.
    """
    client, console = await connect(settings.encryption.decoded_keys), standard_output()
    job_id = await send_command(client, command, settings.worker.task_queue, settings.jobs.job_id_prefix)
    sent = await command_sent(client, job_id)
    # The API sets the device's tenant in a command, this command line does not.
    if sent is None or sent.model_copy(update={"tenant_id": command.tenant_id}) != command:
        raise CorrelationIdTakenError(job_id)
    console.print(f"job {job_id}")
    console.print(
        f"to follow it: {runnable('temporal')} workflow describe --namespace {client.namespace} "
        f"--workflow-id {job_id}\n"
        f"to cancel it: {runnable('thingbridge')} cancel {job_id}",
        markup=False,
        soft_wrap=True,
    )
    if not wait:
        return 0
    handle = client.get_workflow_handle(job_id, result_type=DeviceCommandStatus)
    with Progress(
        SpinnerColumn(),
        TextColumn("waiting for the end; Ctrl-C stops the waiting, not the command"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        progress.add_task("", total=None)
        try:
            ended = await handle.result()
        except WorkflowFailureError as error:
            console.print(
                f"its workflow was closed from outside: {error.cause}", markup=False, soft_wrap=True
            )
            return 1
    _print_end(console, ended)
    return 0 if ended.outcome else 1


async def cancel(settings: ClientSettings, job_id: str) -> None:
    """Cancel a command by its job's id.

    Raises:
        UnknownCommandError: there is no command with that id.
    """
    client = await connect(settings.encryption.decoded_keys)
    running = await cancel_command(client, await describe_command(client, job_id))
    standard_output().print(
        f"{job_id} is being cancelled, in AWS too" if running else f"{job_id} has ended before",
        markup=False,
        soft_wrap=True,
    )


def _read_parameters(text: str) -> dict[str, Any]:
    hint = "--parameters"
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise typer.BadParameter(f"cannot read {text[1:]}: {reason}", param_hint=hint) from None
    try:
        parameters = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint=hint) from None
    if not isinstance(parameters, dict):
        raise typer.BadParameter("must be a JSON object", param_hint=hint)
    return parameters


def _print_end(console: Console, ended: DeviceCommandStatus) -> None:
    lines = [" ".join(filter(None, [ended.status, ended.outcome and f"({ended.outcome})"]))]
    if ended.reason:
        lines.append(ended.reason)
    lines += [f"  {name}: {value}" for name, value in ended.status_details.items()]
    lines += [f"  {status}: {count}" for status, count in (ended.counts or {}).items()]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)

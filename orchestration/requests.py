"""The requests that clients send to workflows: signal a device, start or cancel a command."""

from contextlib import suppress
from typing import Final
from uuid import UUID

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import (
    RawValue,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from domain.command import Command, InvalidCommandError, job_id
from domain.lifecycle_event import LifecycleEvent
from domain.names import (
    CANCEL_SIGNAL,
    DEVICE_COMMAND,
    DEVICE_EVENT_SIGNAL,
    DEVICE_LIFECYCLE,
    OUTBOX_PUBLISHER,
    RETRY_SIGNAL,
    device_workflow_id,
    event_queue,
    outbox_publisher_id,
    tenant_key,
    thing_name,
)
from domain.operator_error import OperatorError
from domain.outbox import OUTBOX_SHARDS, OutboxShard
from orchestration.search_attributes import TENANT_ID, THING_NAME

# Temporal allows 200 bytes.
_SUMMARY_BYTES: Final = 200


class UnknownCommandError(OperatorError):
    """There is no workflow of a command with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no command {job_id} in this namespace: its id is that of its job")


async def send_event(client: Client, event: LifecycleEvent, task_queue: str) -> str:
    """Signal a lifecycle event to its device's workflow, and return the workflow id."""
    summary = thing_name(event.tenant_id, event.serial_number) if event.serial_number else None
    return await _signal(client, event.device_id, task_queue, DEVICE_EVENT_SIGNAL, [event], summary)


async def send_retry(client: Client, device_id: UUID, task_queue: str) -> str:
    """Signal a retry to a device's workflow, started if it is not running, and return the workflow id."""
    return await _signal(client, device_id, task_queue, RETRY_SIGNAL, [])


async def send_command(
    client: Client, command: Command, task_queue: str, job_id_prefix: str, thing_name: str | None = None
) -> str:
    """Start the workflow of a command, and return its id, which is also the id of the AWS job.

    A command that was sent before, running or ended, is not started again.

    Args:
        client: the Temporal client.
        command: the command.
        task_queue: the bridge's task queue.
        job_id_prefix: the first part of the job id.
        thing_name: the Thing if the caller has its name; it becomes a search attribute at the start.
    """
    workflow_id = job_id(job_id_prefix, command.correlation_id)
    summary = f"{command.operation} for {thing_name or f'{command.target.kind} {command.target.value}'}"
    # Set at the start, because the tenant decides who may see the command.
    attributes = [SearchAttributePair(TENANT_ID, tenant_key(command.tenant_id))]
    if thing_name is not None:
        attributes.append(SearchAttributePair(THING_NAME, thing_name))
    with suppress(WorkflowAlreadyStartedError):
        await client.start_workflow(
            DEVICE_COMMAND,
            command,
            id=workflow_id,
            task_queue=task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=summary.encode()[:_SUMMARY_BYTES].decode(errors="ignore"),
            search_attributes=TypedSearchAttributes(attributes),
        )
    return workflow_id


async def command_sent(client: Client, job_id: str) -> Command | None:
    """Return the command that a workflow was started with; None if its argument is not a command.

    Raises:
        RPCError: there is no such workflow, or Temporal does not answer.
    """
    handle = client.get_workflow_handle(job_id)
    started = await anext(handle.fetch_history_events(page_size=1))
    arguments = started.workflow_execution_started_event_attributes.input.payloads
    for argument in await client.data_converter.decode(arguments, [RawValue] * len(arguments)):
        with suppress(InvalidCommandError):
            return Command.from_json(argument.payload.data)
    return None


async def describe_command(client: Client, job_id: str) -> WorkflowExecutionDescription:
    """Return the description of a command's workflow, running or ended.

    Raises:
        UnknownCommandError: there is no such command.
    """
    try:
        described = await client.get_workflow_handle(job_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise UnknownCommandError(job_id) from None
        raise
    if described.workflow_type != DEVICE_COMMAND:
        raise UnknownCommandError(job_id)
    return described


async def cancel_command(client: Client, described: WorkflowExecutionDescription) -> bool:
    """Signal a cancellation to a command's workflow, and return whether it was running."""
    if described.status is not WorkflowExecutionStatus.RUNNING:
        return False
    try:
        await client.get_workflow_handle(described.id).signal(CANCEL_SIGNAL)
    except RPCError as error:
        # It has ended since it was described.
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True


async def start_publishers(client: Client, task_queue: str) -> None:
    """Start the publisher of each shard of the outbox that has none running."""
    for number in range(OUTBOX_SHARDS):
        await client.start_workflow(
            OUTBOX_PUBLISHER,
            OutboxShard(number=number),
            id=outbox_publisher_id(task_queue, number),
            task_queue=event_queue(task_queue),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Events of shard {number}",
        )


async def _signal(
    client: Client,
    device_id: UUID,
    task_queue: str,
    signal: str,
    arguments: list[LifecycleEvent],
    summary: str | None = None,
) -> str:
    handle = await client.start_workflow(
        DEVICE_LIFECYCLE,
        id=device_workflow_id(device_id),
        task_queue=task_queue,
        start_signal=signal,
        start_signal_args=arguments,
        static_summary=summary,
    )
    return handle.id

"""How clients ask for things: a device's workflow is signalled, and started where it does not run."""

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
    """Temporal knows no command of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no command {job_id} in this namespace: its id is that of its job")


async def send_event(client: Client, event: LifecycleEvent, task_queue: str) -> str:
    """Hand a lifecycle event to its device's workflow, and return the workflow's id once Temporal has it."""
    summary = thing_name(event.tenant_id, event.serial_number) if event.serial_number else None
    return await _signal(client, event.device_id, task_queue, DEVICE_EVENT_SIGNAL, [event], summary)


async def send_retry(client: Client, device_id: UUID, task_queue: str) -> str:
    """Have a device's saga go on from where it stands, also where its workflow was ended by hand."""
    return await _signal(client, device_id, task_queue, RETRY_SIGNAL, [])


async def send_command(
    client: Client, command: Command, task_queue: str, job_id_prefix: str, thing_name: str | None = None
) -> str:
    """Have a command carried out, and return the id of its job, which is its workflow's.

    A command that was sent before, whether it is at work or has ended, is not sent again. Where the Thing is
    known, the workflow is found by it from its first moment on.
    """
    workflow_id = job_id(job_id_prefix, command.correlation_id)
    summary = f"{command.operation} for {thing_name or f'{command.target.kind} {command.target.value}'}"
    # From its first moment on, for who may see it is told by the tenant.
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
    """The command as it was sent under this id; None where what was sent is none.

    Raises:
        RPCError: there is none, or Temporal does not answer.
    """
    handle = client.get_workflow_handle(job_id)
    begun = await anext(handle.fetch_history_events(page_size=1))
    sent = begun.workflow_execution_started_event_attributes.input.payloads
    for argument in await client.data_converter.decode(sent, [RawValue] * len(sent)):
        with suppress(InvalidCommandError):
            return Command.from_json(argument.payload.data)
    return None


async def describe_command(client: Client, job_id: str) -> WorkflowExecutionDescription:
    """A command's workflow, at work or ended.

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
    """Have a command cancelled, in AWS too; whether it was at work."""
    if described.status is not WorkflowExecutionStatus.RUNNING:
        return False
    try:
        await client.get_workflow_handle(described.id).signal(CANCEL_SIGNAL)
    except RPCError as error:
        # It has ended since.
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True


async def start_publishers(client: Client, task_queue: str) -> None:
    """See to it that every shard of the outbox has its publisher; one that runs is left alone."""
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

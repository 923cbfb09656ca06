"""The doors by which commands are sent, looked at and cancelled."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from sqlmodel import Session
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from api.auth import Caller
from api.database import Database
from api.endpoints import Answer, Call, Door, Promise, Wire
from api.errors import RULE, Refused, not_found, not_valid
from api.fields import HyphenatedUuid, TenantId
from api.temporal import Temporal
from db.bindings import newest_binding
from domain.command import Command, CommandTarget, TargetKind, is_job_id
from domain.names import STATUS_QUERY, tenant_key
from orchestration.requests import (
    UnknownCommandError,
    cancel_command,
    command_sent,
    describe_command,
    send_command,
)
from orchestration.search_attributes import TENANT_ID


def _job_id(value: str) -> str:
    if not is_job_id(value):
        raise PydanticCustomError(RULE, "must be a job's id, as PREFIX-UUID")
    return value


class DeviceTarget(Wire):
    """One device."""

    kind: Literal[TargetKind.DEVICE]
    value: HyphenatedUuid = Field(description="The device's id.")


class GroupTarget(Wire):
    """The devices of a thing group, as they are now. An operator's alone."""

    kind: Literal[TargetKind.GROUP]
    value: str = Field(pattern=r"^[A-Za-z0-9:_-]{1,128}$", description="The thing group's name.")


class QueryTarget(Wire):
    """The devices that a query finds, now and later. An operator's alone."""

    kind: Literal[TargetKind.QUERY]
    value: str = Field(
        pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=1000, description="A fleet-indexing query."
    )


class NewCommand(Wire):
    """One operation for one target."""

    target: Annotated[DeviceTarget | GroupTarget | QueryTarget, Field(discriminator="kind")]
    operation: str = Field(
        pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=256, description="What the device is to do."
    )
    parameters: dict[str, Any] = Field(
        {}, description="What the operation needs; the job's document may have 32 KB."
    )
    correlation_id: HyphenatedUuid | None = Field(
        None, description="By which a repeat is the same command; else each call is another."
    )
    tenant_id: TenantId | None = Field(None, description="A tenant's key has it be the tenant.")


class Sent(Wire):
    """The command is Temporal's now, and will not be lost."""

    job_id: str = Field(description="The id of the job in AWS, and of the command here.")


class CommandPath(Wire):
    """Which command."""

    command_id: Annotated[
        str,
        AfterValidator(_job_id),
        WithJsonSchema(
            {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,27}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
        ),
    ] = Field(description="Its job's id.")


class CommandState(Wire):
    """Where a command stands."""

    model_config = ConfigDict(extra="ignore")

    job_id: str
    operation: str | None
    target: CommandTarget | None
    thing_name: str | None
    job_arn: str | None = Field(description="Null until there is a job in AWS.")
    step: str = Field(description="What is being done about it, in words.")
    status: str | None = Field(description="AWS's status or a code of the bridge; null until it has ended.")
    outcome: Literal["succeeded", "windowClosed"] | None
    reason: str | None = Field(description="Why it was not carried out.")
    status_details: dict[str, str] = Field(description="What the device said of it.")
    counts: dict[str, int] | None = Field(description="The executions of a group's job by their status.")


class Commands:
    """Sends commands, and finds them again.

    Args:
        database: where it is known whose a device is.
        temporal: where the commands' workflows are.
        task_queue: that of the workflows.
        job_id_prefix: how the ids of jobs begin.
    """

    def __init__(
        self, database: Database, temporal: Temporal, *, task_queue: str, job_id_prefix: str
    ) -> None:
        self._database = database
        self._temporal = temporal
        self._task_queue = task_queue
        self._job_id_prefix = job_id_prefix

    async def send(self, call: Call[NewCommand]) -> Answer:
        """Start the command's workflow; where it was started before, it must have been for the same."""
        given, caller = call.input, call.caller
        tenant_id = caller.tenant_for(given.tenant_id)
        if isinstance(given.target, DeviceTarget):
            device_id = given.target.value
            tenant_id = await self._database(
                lambda session: _tenant_of(session, device_id, caller, given.tenant_id)
            )
        else:
            caller.require_operator("commands to groups and queries are sent")
        command = Command(
            correlation_id=given.correlation_id or uuid4(),
            target=CommandTarget(kind=given.target.kind, value=str(given.target.value)),
            operation=given.operation,
            parameters=given.parameters,
            tenant_id=tenant_id,
        )
        if fault := command.fault():
            raise not_valid([fault])
        client = await self._temporal()
        job_id = await send_command(client, command, self._task_queue, self._job_id_prefix)
        if given.correlation_id and await command_sent(client, job_id) != command:
            raise Refused(HTTPStatus.CONFLICT, "the correlationId is another command's")
        return Answer(Sent(job_id=job_id), HTTPStatus.ACCEPTED)

    async def state(self, call: Call[CommandPath]) -> Answer:
        """What the command's workflow says of it, and once it has ended what it said at last."""
        job_id, client = call.input.command_id, await self._temporal()
        described = await self._described(client, job_id, call.caller)
        handle = client.get_workflow_handle(job_id, run_id=described.run_id, result_type=CommandState)
        if described.status is WorkflowExecutionStatus.COMPLETED:
            return Answer(await handle.result())
        return Answer(await handle.query(STATUS_QUERY, result_type=CommandState))

    async def cancel(self, call: Call[CommandPath]) -> Answer:
        """Have the command cancelled, in AWS too; its state tells when that is done."""
        job_id, client = call.input.command_id, await self._temporal()
        if not await cancel_command(client, await self._described(client, job_id, call.caller)):
            raise Refused(HTTPStatus.CONFLICT, "the command has ended before")
        return Answer(Sent(job_id=job_id), HTTPStatus.ACCEPTED)

    async def _described(self, client: Client, job_id: str, caller: Caller) -> WorkflowExecutionDescription:
        """The command's workflow.

        Raises:
            Refused: 404, there is none, or it is of a tenant that is not the caller's.
        """
        try:
            described = await describe_command(client, job_id)
        except UnknownCommandError:
            raise not_found("command") from None
        tenant = described.typed_search_attributes.get(TENANT_ID)
        if not caller.is_operator and tenant != tenant_key(caller.tenant_id):
            raise not_found("command")
        return described


def _tenant_of(session: Session, device_id: UUID, caller: Caller, asked: UUID | None) -> UUID | None:
    binding = newest_binding(session, device_id)
    if (
        binding is None
        or not caller.sees(binding.tenant_id)
        or (asked is not None and asked != binding.tenant_id)
    ):
        raise not_found("device")
    return binding.tenant_id


def command_doors(commands: Commands) -> Sequence[Door[Any]]:
    """`POST /api/iot/commands`, `GET` and `DELETE /api/iot/commands/{commandId}`."""
    one, no_such = "/api/iot/commands/{commandId}", "There is none, or it is another tenant's."
    return [
        Door(
            method="POST",
            path="/api/iot/commands",
            summary="Send a command",
            tag="commands",
            takes=NewCommand,
            answers={202: Promise("Temporal has it; its job is made next.", Sent)},
            refuses={
                403: "The key is another tenant's, or no operator's where the target is a group or a query.",
                404: "There is no such device, or it is another tenant's.",
                409: "The correlationId is another command's.",
            },
            handle=commands.send,
        ),
        Door(
            method="GET",
            path=one,
            summary="Look at a command",
            tag="commands",
            takes=CommandPath,
            answers={200: Promise("Where it stands.", CommandState)},
            refuses={404: no_such},
            handle=commands.state,
        ),
        Door(
            method="DELETE",
            path=one,
            summary="Cancel a command",
            tag="commands",
            takes=CommandPath,
            answers={202: Promise("It is being cancelled, in AWS too; its state stays to be seen.", Sent)},
            refuses={404: no_such, 409: "It has ended before."},
            handle=commands.cancel,
        ),
    ]

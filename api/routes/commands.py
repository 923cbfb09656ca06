"""The endpoints that send, return and cancel commands."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from sqlmodel import Session
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from api.auth import Caller
from api.database import Database
from api.endpoints import ApiModel, ApiRequest, ApiResponse, Endpoint, ResponseSpec
from api.errors import ApiError, not_found, not_valid
from api.fields import HyphenatedTenantId, HyphenatedUuid
from api.temporal import Temporal
from db.bindings import newest_binding
from domain.command import Command, CommandTarget, TargetKind, is_job_id
from domain.fields import rule_error
from domain.names import STATUS_QUERY, tenant_key
from orchestration.requests import (
    UnknownCommandError,
    cancel_command,
    command_sent,
    describe_command,
    send_command,
)
from orchestration.search_attributes import TENANT_ID


def _require_job_id(value: str) -> str:
    if not is_job_id(value):
        raise rule_error("must be the id of a job, as PREFIX-UUID")
    return value


class DeviceTarget(ApiModel):
    """One device."""

    kind: Literal[TargetKind.DEVICE]
    value: HyphenatedUuid = Field(description="The device's id.")


class GroupTarget(ApiModel):
    """The present members of a thing group. Requires an operator's key."""

    kind: Literal[TargetKind.GROUP]
    value: str = Field(pattern=r"^[A-Za-z0-9:_-]{1,128}$", description="The thing group's name.")


class QueryTarget(ApiModel):
    """The devices that match a query, now and later. Requires an operator's key."""

    kind: Literal[TargetKind.QUERY]
    value: str = Field(
        pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=1000, description="A fleet-indexing query."
    )


class NewCommand(ApiModel):
    """One operation for one target."""

    target: Annotated[DeviceTarget | GroupTarget | QueryTarget, Field(discriminator="kind")]
    operation: str = Field(
        pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=256, description="The operation that the device runs."
    )
    parameters: dict[str, Any] = Field(
        {}, description="The operation's parameters; the job document may have 32 KB."
    )
    correlation_id: HyphenatedUuid | None = Field(
        None, description="Makes a repeat the same command. Without it, each request sends a new command."
    )
    tenant_id: HyphenatedTenantId | None = Field(
        None, description="Supplied by a tenant's key if it is missing."
    )


class AcceptedCommand(ApiModel):
    """The command is stored in Temporal, and will not be lost."""

    job_id: str = Field(description="The id of the job in AWS, which is also the command's id.")


class CommandPath(ApiModel):
    """The command in the path."""

    command_id: Annotated[
        str,
        AfterValidator(_require_job_id),
        WithJsonSchema(
            {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,27}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
        ),
    ] = Field(description="The command's job id.")


class CommandState(ApiModel):
    """The state of a command."""

    model_config = ConfigDict(extra="ignore")

    job_id: str
    operation: str | None
    target: CommandTarget | None
    thing_name: str | None
    job_arn: str | None = Field(description="Null until the job exists in AWS.")
    step: str = Field(description="The present step, in words.")
    status: str | None = Field(
        description="AWS's status or a failure code of the bridge; null until the command has ended."
    )
    outcome: Literal["succeeded", "windowClosed"] | None
    reason: str | None = Field(description="The reason for a failure.")
    status_details: dict[str, str] = Field(description="The details that the device reported.")
    counts: dict[str, int] | None = Field(description="The executions of a group's job, counted by status.")


class Commands:
    """The handlers that send commands, and return and cancel those that were sent.

    Args:
        database: stores the owner of each device.
        temporal: runs the commands' workflows.
        task_queue: the task queue of these workflows.
        job_id_prefix: the beginning of every job id.
    """

    def __init__(
        self, database: Database, temporal: Temporal, *, task_queue: str, job_id_prefix: str
    ) -> None:
        self._database = database
        self._temporal = temporal
        self._task_queue = task_queue
        self._job_id_prefix = job_id_prefix

    async def send(self, request: ApiRequest[NewCommand]) -> ApiResponse:
        """Start the command's workflow. A repeat must be the same command as the first request."""
        new, caller = request.input, request.caller
        tenant_id = caller.tenant_for(new.tenant_id)
        if isinstance(new.target, DeviceTarget):
            device_id = new.target.value
            tenant_id = await self._database(
                lambda session: _tenant_of(session, device_id, caller, new.tenant_id)
            )
        else:
            caller.require_operator("a command to a group or query")
        command = Command(
            correlation_id=new.correlation_id or uuid4(),
            target=CommandTarget(kind=new.target.kind, value=str(new.target.value)),
            operation=new.operation,
            parameters=new.parameters,
            tenant_id=tenant_id,
        )
        if fault := command.fault():
            raise not_valid([fault])
        client = await self._temporal()
        job_id = await send_command(client, command, self._task_queue, self._job_id_prefix)
        if new.correlation_id and await command_sent(client, job_id) != command:
            raise ApiError(HTTPStatus.CONFLICT, "the correlationId belongs to another command")
        return ApiResponse(AcceptedCommand(job_id=job_id), HTTPStatus.ACCEPTED)

    async def state(self, request: ApiRequest[CommandPath]) -> ApiResponse:
        """Return the state of the command's workflow, or its result once it has ended."""
        job_id, client = request.input.command_id, await self._temporal()
        described = await self._describe(client, job_id, request.caller)
        handle = client.get_workflow_handle(job_id, run_id=described.run_id, result_type=CommandState)
        if described.status is WorkflowExecutionStatus.COMPLETED:
            return ApiResponse(await handle.result())
        return ApiResponse(await handle.query(STATUS_QUERY, result_type=CommandState))

    async def cancel(self, request: ApiRequest[CommandPath]) -> ApiResponse:
        """Start to cancel the command, in AWS too. Its state shows when that is completed."""
        job_id, client = request.input.command_id, await self._temporal()
        if not await cancel_command(client, await self._describe(client, job_id, request.caller)):
            raise ApiError(HTTPStatus.CONFLICT, "the command has already ended")
        return ApiResponse(AcceptedCommand(job_id=job_id), HTTPStatus.ACCEPTED)

    async def _describe(self, client: Client, job_id: str, caller: Caller) -> WorkflowExecutionDescription:
        """Return the command's workflow.

        Raises:
            ApiError: 404, there is no such command, or it belongs to another tenant.
        """
        try:
            described = await describe_command(client, job_id)
        except UnknownCommandError:
            raise not_found("command") from None
        tenant = described.typed_search_attributes.get(TENANT_ID)
        if not caller.is_operator and tenant != tenant_key(caller.tenant_id):
            raise not_found("command")
        return described


def _tenant_of(session: Session, device_id: UUID, caller: Caller, requested: UUID | None) -> UUID | None:
    binding = newest_binding(session, device_id)
    if (
        binding is None
        or not caller.may_see(binding.tenant_id)
        or (requested is not None and requested != binding.tenant_id)
    ):
        raise not_found("device")
    return binding.tenant_id


def command_endpoints(commands: Commands) -> Sequence[Endpoint[Any]]:
    """Return the endpoints `POST /api/iot/commands`, `GET` and `DELETE /api/iot/commands/{commandId}`."""
    path, not_found_text = (
        "/api/iot/commands/{commandId}",
        "There is no such command, or it is another tenant's.",
    )
    return [
        Endpoint(
            method="POST",
            path="/api/iot/commands",
            summary="Send a command",
            tag="commands",
            request_model=NewCommand,
            responses={
                202: ResponseSpec("Temporal has the command; its job is created next.", AcceptedCommand)
            },
            problems={
                403: "The key belongs to another tenant, or the target is a group or a query and the key is "
                "a tenant's.",
                404: "There is no such device, or it belongs to another tenant.",
                409: "The correlationId belongs to another command.",
            },
            handle=commands.send,
        ),
        Endpoint(
            method="GET",
            path=path,
            summary="Return the state of a command",
            tag="commands",
            request_model=CommandPath,
            responses={200: ResponseSpec("The state of the command.", CommandState)},
            problems={404: not_found_text},
            handle=commands.state,
        ),
        Endpoint(
            method="DELETE",
            path=path,
            summary="Cancel a command",
            tag="commands",
            request_model=CommandPath,
            responses={
                202: ResponseSpec(
                    "The command is being cancelled, in AWS too; it can still be read.", AcceptedCommand
                )
            },
            problems={404: not_found_text, 409: "The command has already ended."},
            handle=commands.cancel,
        ),
    ]

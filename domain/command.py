"""A command to a device or a group, and its ids and names, which other systems can compute as well."""

import json
import re
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Self
from uuid import UUID

from pydantic import Field, ValidationError

from domain.fault import Fault
from domain.model import CamelModel
from domain.names import NO_TENANT

APPLY_DESIRED_STATE: Final = "shadow.applyDesiredState"
"""The operation of a command that applies the delta of a shadow."""

DOCUMENT_LIMIT_BYTES: Final = 32 * 1024
"""AWS's limit for a job document."""

_OPERATION_LIMIT: Final = 256
# AWS limits shadows to 8 levels; JSON parsers fail only far beyond this limit.
_NESTING_LIMIT: Final = 64

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9:_-]{1,128}")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,27}-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


class InvalidCommandError(ValueError):
    """A document is not a command; `fault` names the field and never quotes its value."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class TargetKind(StrEnum):
    """The kinds of targets of a command."""

    DEVICE = "device"
    GROUP = "group"
    QUERY = "query"


class CommandTarget(CamelModel):
    """The target of a command: a device's id, a thing group's name, or a fleet-indexing query."""

    kind: TargetKind
    value: str

    def fault(self) -> Fault | None:
        """Return what is wrong with the value, or None if it is valid for this kind of target."""
        if self.kind is TargetKind.DEVICE and not _is_uuid(self.value):
            return Fault(field="target", reason="must be a device's UUID")
        if self.kind is TargetKind.GROUP and not _GROUP_NAME.fullmatch(self.value):
            return Fault(
                field="target",
                reason="must be a thing group's name, of 1 to 128 letters, digits, ':', '_' and '-'",
            )
        if not (self.value.strip() and self.value.isprintable()):
            return Fault(field="target", reason="must be a fleet-indexing query, without control characters")
        return None


class Command(CamelModel):
    """One operation for one target. Two commands with the same correlation id are the same command."""

    correlation_id: UUID
    target: CommandTarget
    operation: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    tenant_id: UUID | None = None

    @classmethod
    def from_json(cls, document: bytes) -> Self:
        """Return the command that a JSON document contains.

        Raises:
            InvalidCommandError: the document is not a command.
        """
        try:
            return cls.model_validate_json(document)
        except ValidationError as error:
            # Without input and context: the value can be a secret and must not reach logs or histories.
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(map(str, first["loc"])) or "command"
            reason = "is missing" if first["type"] == "missing" else f"is not valid ({first['type']})"
            raise InvalidCommandError(Fault(field=field, reason=reason)) from None

    def document(self) -> dict[str, Any]:
        """Return the job document that the device reads."""
        return {
            "operation": self.operation,
            "correlationId": str(self.correlation_id),
            "parameters": self.parameters,
        }

    def document_json(self) -> str:
        """Return the job document as the JSON text that AWS stores.

        Raises:
            ValueError: the parameters contain a value that JSON cannot represent.
        """
        return json.dumps(self.document(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def fault(self) -> Fault | None:
        """Return the first invalid field of the command, or None if all are valid."""
        if not (self.operation.strip() and self.operation.isprintable()):
            return Fault(field="operation", reason="must be printable text and not blank")
        if len(self.operation) > _OPERATION_LIMIT:
            return Fault(
                field="operation",
                reason=f"has {len(self.operation)} characters, at most {_OPERATION_LIMIT} are allowed",
            )
        if self.tenant_id == NO_TENANT:
            return Fault(field="tenantId", reason="must not be the zero UUID, the null tenant is null")
        return self._parameters_fault() or self.target.fault()

    def _parameters_fault(self) -> Fault | None:
        if _is_nested_deeper(self.parameters, _NESTING_LIMIT):
            return Fault(field="parameters", reason=f"nest deeper than {_NESTING_LIMIT} levels")
        try:
            size = len(self.document_json().encode())
        except ValueError:
            return Fault(field="parameters", reason="contain a value that JSON cannot represent")
        if size > DOCUMENT_LIMIT_BYTES:
            return Fault(
                field="parameters",
                reason=f"make a job document of {size} bytes, AWS allows {DOCUMENT_LIMIT_BYTES}",
            )
        return None


def delta_correlation_id(device_id: UUID, shadow_version: int) -> UUID:
    """Return the correlation id of the command for a delta first seen at this version of the shadow.

    Both UUIDs use the byte order of .NET's Guid, since the earlier implementation hashed them so.
    """
    version = shadow_version.to_bytes(8, "little", signed=True)
    return UUID(bytes_le=sha256(device_id.bytes_le + version).digest()[:16])


def job_id(prefix: str, correlation_id: UUID) -> str:
    """Return the id of a command's job, which is also the id of its workflow."""
    return f"{prefix}-{correlation_id}"


def is_job_id(name: str) -> bool:
    """Return whether a command's job can have this id."""
    return _JOB_ID.fullmatch(name) is not None


def is_job_id_of(correlation_id: UUID, name: str) -> bool:
    """Return whether this is the id of the command's job, with any prefix."""
    match = _JOB_ID.fullmatch(name)
    return match is not None and match[1] == str(correlation_id)


def dynamic_group_name(prefix: str, query: str) -> str:
    """Return the name of the dynamic thing group of a query."""
    return f"{prefix}-dynamic-{sha256(query.encode()).hexdigest()[:16]}"


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _is_nested_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    members = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_nested_deeper(member, levels - 1) for member in members)

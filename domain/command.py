"""A command to a device or a group, and the ids and names that other systems can work out for themselves."""

import json
import re
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from domain.names import NO_TENANT

APPLY_DESIRED_STATE: Final = "shadow.applyDesiredState"
"""The operation of the command that a shadow's delta becomes."""

DOCUMENT_LIMIT_BYTES: Final = 32 * 1024
"""AWS's limit for a job document."""

_OPERATION_LIMIT: Final = 256
# A shadow's own limit is 8; far below the depth at which JSON parsers give up.
_NESTING_LIMIT: Final = 64

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9:_-]{1,128}")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,27}-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


class InvalidCommandError(ValueError):
    """What was sent is no command; says the field at fault, never its value."""


class TargetKind(StrEnum):
    """How a command's target is named."""

    DEVICE = "device"
    GROUP = "group"
    QUERY = "query"


class CommandTarget(BaseModel):
    """Whom a command is for: a device's id, a thing group's name, or a fleet-indexing query."""

    model_config = ConfigDict(frozen=True)

    kind: TargetKind
    value: str

    def fault(self) -> str | None:
        """Why nothing can bear this name, if so."""
        if self.kind is TargetKind.DEVICE and not _is_uuid(self.value):
            return "target: must be a device's UUID"
        if self.kind is TargetKind.GROUP and not _GROUP_NAME.fullmatch(self.value):
            return "target: must be a thing group's name, of 1 to 128 letters, digits, ':', '_' and '-'"
        if not (self.value.strip() and self.value.isprintable()):
            return "target: must be a fleet-indexing query, without control characters"
        return None


class Command(BaseModel):
    """One operation for one target, by the correlation id that makes a repeat of it the same command."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True)

    correlation_id: UUID
    target: CommandTarget
    operation: str
    parameters: dict[str, Any] = {}
    tenant_id: UUID | None = None

    @classmethod
    def from_json(cls, document: bytes) -> Self:
        """Read a command.

        Raises:
            InvalidCommandError: it is none; names the first field at fault.
        """
        try:
            return cls.model_validate_json(document)
        except ValidationError as error:
            # Input and context are left out: the value must not travel any further.
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(map(str, fault["loc"])) or "command"
            what = "is missing" if fault["type"] == "missing" else f"is not what it must be ({fault['type']})"
            raise InvalidCommandError(f"{field}: {what}") from None

    def document(self) -> dict[str, Any]:
        """The job document, as the device reads it."""
        return {
            "operation": self.operation,
            "correlationId": str(self.correlation_id),
            "parameters": self.parameters,
        }

    def document_json(self) -> str:
        """The job document as it is sent.

        Raises:
            ValueError: it holds what JSON cannot.
        """
        return json.dumps(self.document(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def fault(self) -> str | None:
        """What keeps this from being carried out whoever it is for: the field and the reason."""
        if not (self.operation.strip() and self.operation.isprintable()):
            return "operation: must be a word or more, without control characters"
        if len(self.operation) > _OPERATION_LIMIT:
            return f"operation: has {len(self.operation)} characters, at most {_OPERATION_LIMIT} are allowed"
        if self.tenant_id == NO_TENANT:
            return "tenantId: must not be the zero UUID, the null tenant is null"
        if _is_nested_deeper(self.parameters, _NESTING_LIMIT):
            return f"parameters: nest deeper than {_NESTING_LIMIT} levels"
        try:
            size = len(self.document_json().encode())
        except ValueError:
            return "parameters: hold a number or a letter that JSON cannot"
        if size > DOCUMENT_LIMIT_BYTES:
            return f"parameters: make a job document of {size} bytes, AWS allows {DOCUMENT_LIMIT_BYTES}"
        return self.target.fault()


def delta_correlation_id(device_id: UUID, shadow_version: int) -> UUID:
    """The correlation id of the command for a delta first seen at that version of the shadow.

    Both ids are in the byte order of .NET's Guid, in which the earlier implementation hashed them.
    """
    version = shadow_version.to_bytes(8, "little", signed=True)
    return UUID(bytes_le=sha256(device_id.bytes_le + version).digest()[:16])


def job_id(prefix: str, correlation_id: UUID) -> str:
    """The id of a command's job, which is also its workflow's."""
    return f"{prefix}-{correlation_id}"


def is_job_id(name: str) -> bool:
    """Whether a command's job may have that id."""
    return _JOB_ID.fullmatch(name) is not None


def is_job_id_of(correlation_id: UUID, name: str) -> bool:
    """Whether that is the id of the command's job under any prefix there may be."""
    match = _JOB_ID.fullmatch(name)
    return match is not None and match[1] == str(correlation_id)


def dynamic_group_name(prefix: str, query: str) -> str:
    """The name of the dynamic thing group that stands for a query."""
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
    held = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_nested_deeper(each, levels - 1) for each in held)

"""Failure codes with their remedies, and the exceptions of workflow steps.

StepError
├── PermanentError     an operator has to act; has a FailureCode
├── RetryLaterError    something else has to complete first; has a delay
└── AwsError           an error response of AWS: see aws.errors
"""

from enum import StrEnum
from typing import Final

CREDENTIALS_NOT_READY: Final = "CredentialsNotReady"
"""The error type of a step while the bridge has no AWS credentials. It never makes a device Failed."""


class FailureCode(StrEnum):
    """The reason why a saga or a command stopped. The value is the code, `remedy` an operator's action."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> "FailureCode":
        """Create a code with its remedy."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.remedy = remedy
        return member

    POLICY_NOT_FOUND = (
        "PolicyNotFound",
        "Create the policy, or name another in IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME, then retry.",
    )
    ACCESS_DENIED = (
        "AccessDenied",
        "Grant the bridge's role the action named, then retry.",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "Raise the quota in AWS or free some of it, then retry.",
    )
    REFUSED_BY_AWS = (
        "RefusedByAws",
        "AWS will refuse the same call again: fix what its message names, then retry.",
    )
    THING_OF_ANOTHER_DEVICE = (
        "ThingOfAnotherDevice",
        "Find out who owns the Thing; delete it or correct its attributes deviceId and tenantId, then retry.",
    )
    UNKNOWN_CERTIFICATE = (
        "UnknownCertificate",
        "Find out who owns the certificate; detach it from the Thing, then retry.",
    )
    NO_ROOM_FOR_ATTRIBUTES = (
        "NoRoomForAttributes",
        "A Thing without a type holds 3 attributes: remove one of its own or give it a type, then retry.",
    )
    CERTIFICATE_GONE = (
        "CertificateGone",
        "Someone deleted the certificate in AWS: decommission the device and provision it under a new id.",
    )
    THING_GONE = (
        "ThingGone",
        "Someone deleted the Thing in AWS: decommission the device and provision it under a new id.",
    )
    SERIAL_BOUND_TO_ANOTHER_DEVICE = (
        "SerialBoundToAnotherDevice",
        "Decommission the device that holds the serial number, then retry; or decommission this one.",
    )
    NO_SUCH_TARGET = (
        "NoSuchTarget",
        "Name a device whose binding is Active, or an existing thing group, and send the command again.",
    )
    INVALID_COMMAND = (
        "InvalidCommand",
        "Correct the command as the reason describes, and send it under a new correlation id.",
    )
    JOB_ID_TAKEN = (
        "JobIdTaken",
        "A job of that id does something else: send the command under another correlation id.",
    )
    RETRIES_EXHAUSTED = (
        "RetriesExhausted",
        "Fix what the last error names, then retry.",
    )
    UNEXPECTED = (
        "Unexpected",
        "This is probably a fault of the bridge: read the worker's log for the run, then retry.",
    )


class StepError(Exception):
    """An operation that a step of a workflow attempts did not succeed."""


class PermanentError(StepError):
    """A failure that no retry fixes.

    Args:
        code: the reason why the step stopped.
        detail: a sentence about the cause, without its full stop.
    """

    def __init__(self, code: FailureCode, detail: str) -> None:
        super().__init__(f"{detail}. {code.remedy}")
        self.code = code
        self.detail = detail


class RetryLaterError(StepError):
    """A failure that needs no operator: AWS or another device has not completed something yet.

    Args:
        kind: the error type that Temporal's UI shows.
        detail: a sentence about what is not complete.
        seconds: the delay before the next attempt.
    """

    def __init__(self, kind: str, detail: str, seconds: float) -> None:
        super().__init__(detail)
        self.kind = kind
        self.seconds = seconds

"""What can stop a saga, each with what an operator does about it."""

from enum import StrEnum
from typing import Final

CREDENTIALS_NOT_READY: Final = "CredentialsNotReady"
"""An activity's error while the bridge has no keys for AWS: no device's fault, so it fails none."""


class FailureCode(StrEnum):
    """The first word of a `failure_reason`. The value of a member is its code, `remedy` the way out."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> "FailureCode":
        """A code that bears its remedy."""
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
        "AWS will refuse the same call again: mend what its message names, then retry.",
    )
    THING_OF_ANOTHER_DEVICE = (
        "ThingOfAnotherDevice",
        "Find out whose Thing it is; delete it or mend its attributes deviceId and tenantId, then retry.",
    )
    UNKNOWN_CERTIFICATE = (
        "UnknownCertificate",
        "Find out whose certificate it is; detach it from the Thing, then retry.",
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
        "Name a device whose binding is Active, or a thing group there is, and send the command again.",
    )
    INVALID_COMMAND = (
        "InvalidCommand",
        "Mend the command as the reason says, and send it under a new correlation id.",
    )
    JOB_ID_TAKEN = (
        "JobIdTaken",
        "A job of that id does something else: send the command under another correlation id.",
    )
    RETRIES_EXHAUSTED = (
        "RetriesExhausted",
        "See to what the last error names, then retry.",
    )
    UNEXPECTED = (
        "Unexpected",
        "This is likely a fault of the bridge: read the worker's log for the run, then retry.",
    )

"""The provisioning statuses of a binding, and the transitions allowed between them."""

from enum import StrEnum
from typing import Final


class ProvisioningStatus(StrEnum):
    """The progress of a binding. Each status is committed before the next step begins."""

    PENDING = "Pending"
    THING_CREATED = "ThingCreated"
    CERT_ISSUED = "CertIssued"
    SECRET_STORED = "SecretStored"
    ACTIVE = "Active"
    DECOMMISSIONED = "Decommissioned"
    FAILED = "Failed"

    @property
    def in_progress(self) -> bool:
        """Return whether provisioning has begun, and has neither completed nor failed."""
        return self in _PATH[:-1]

    def is_past(self, status: "ProvisioningStatus") -> bool:
        """Return whether this is `status` or a later one. False for Failed and Decommissioned."""
        return self in _PATH and _PATH.index(self) >= _PATH.index(status)

    def may_become(self, following: "ProvisioningStatus") -> bool:
        """Return whether a binding in this status may change to `following`."""
        return following in _TRANSITIONS[self]


_S = ProvisioningStatus
_PATH: Final = (_S.PENDING, _S.THING_CREATED, _S.CERT_ISSUED, _S.SECRET_STORED, _S.ACTIVE)
_TRANSITIONS: Final[dict[ProvisioningStatus, frozenset[ProvisioningStatus]]] = {
    _S.PENDING: frozenset({_S.THING_CREATED, _S.FAILED, _S.DECOMMISSIONED}),
    _S.THING_CREATED: frozenset({_S.CERT_ISSUED, _S.FAILED, _S.DECOMMISSIONED}),
    # Back to ThingCreated if the key of the issued certificate is lost.
    _S.CERT_ISSUED: frozenset({_S.SECRET_STORED, _S.THING_CREATED, _S.FAILED, _S.DECOMMISSIONED}),
    _S.SECRET_STORED: frozenset({_S.ACTIVE, _S.FAILED, _S.DECOMMISSIONED}),
    _S.ACTIVE: frozenset({_S.DECOMMISSIONED}),
    # A retry returns to the status in which the step failed.
    _S.FAILED: frozenset({*_PATH[:-1], _S.DECOMMISSIONED}),
    _S.DECOMMISSIONED: frozenset(),
}

"""The stations of a binding, and which may follow which."""

from enum import StrEnum
from typing import Final


class ProvisioningStatus(StrEnum):
    """Where a binding stands; each station is committed before the next step begins."""

    PENDING = "Pending"
    THING_CREATED = "ThingCreated"
    CERT_ISSUED = "CertIssued"
    SECRET_STORED = "SecretStored"
    ACTIVE = "Active"
    DECOMMISSIONED = "Decommissioned"
    FAILED = "Failed"

    @property
    def in_progress(self) -> bool:
        """Whether provisioning has begun and neither ended nor failed."""
        return self in _PATH[:-1]

    def is_past(self, station: "ProvisioningStatus") -> bool:
        """Whether `station` was reached on the straight path. Failed and Decommissioned are past nothing."""
        return self in _PATH and _PATH.index(self) >= _PATH.index(station)

    def may_become(self, following: "ProvisioningStatus") -> bool:
        """Whether a binding in this status may be given the `following` one."""
        return following in _FOLLOWING[self]


_S = ProvisioningStatus
_PATH: Final = (_S.PENDING, _S.THING_CREATED, _S.CERT_ISSUED, _S.SECRET_STORED, _S.ACTIVE)
_FOLLOWING: Final[dict[ProvisioningStatus, frozenset[ProvisioningStatus]]] = {
    _S.PENDING: frozenset({_S.THING_CREATED, _S.FAILED, _S.DECOMMISSIONED}),
    _S.THING_CREATED: frozenset({_S.CERT_ISSUED, _S.FAILED, _S.DECOMMISSIONED}),
    # Back to ThingCreated where the issued certificate's key is lost.
    _S.CERT_ISSUED: frozenset({_S.SECRET_STORED, _S.THING_CREATED, _S.FAILED, _S.DECOMMISSIONED}),
    _S.SECRET_STORED: frozenset({_S.ACTIVE, _S.FAILED, _S.DECOMMISSIONED}),
    _S.ACTIVE: frozenset({_S.DECOMMISSIONED}),
    # A retry goes back to the station it failed at.
    _S.FAILED: frozenset({*_PATH[:-1], _S.DECOMMISSIONED}),
    _S.DECOMMISSIONED: frozenset(),
}

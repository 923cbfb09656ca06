"""The provisioning statuses of a binding and the transitions between them, as in docs/reference.md."""

from itertools import pairwise, product

from domain.provisioning_status import ProvisioningStatus as Status

PATH = [Status.PENDING, Status.THING_CREATED, Status.CERT_ISSUED, Status.SECRET_STORED, Status.ACTIVE]
ALLOWED = {
    *pairwise(PATH),
    *((status, Status.DECOMMISSIONED) for status in [*PATH, Status.FAILED]),
    *((status, Status.FAILED) for status in PATH[:-1]),
    *((Status.FAILED, status) for status in PATH[:-1]),
    (Status.CERT_ISSUED, Status.THING_CREATED),
}


def test_only_the_documented_transitions_are_allowed() -> None:
    """Each pair of statuses is allowed or not as docs/reference.md describes."""
    assert {pair for pair in product(Status, Status) if pair[0].may_become(pair[1])} == ALLOWED


def test_failed_and_decommissioned_are_past_no_status() -> None:
    """A step of a Failed or Decommissioned binding is not skipped as already done."""
    assert not [
        (ended, status)
        for ended in (Status.FAILED, Status.DECOMMISSIONED)
        for status in PATH
        if ended.is_past(status)
    ]

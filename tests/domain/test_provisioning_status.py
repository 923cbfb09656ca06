"""The stations of a binding and the ways between them, as the contract draws them."""

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


def test_just_the_contracts_ways_are_open() -> None:
    """Every pair of statuses is allowed or refused as the contract says."""
    assert {pair for pair in product(Status, Status) if pair[0].may_become(pair[1])} == ALLOWED


def test_failed_and_decommissioned_are_past_nothing() -> None:
    """A step asked of a failed or ended binding must not take itself for done."""
    assert not [
        (ended, station)
        for ended in (Status.FAILED, Status.DECOMMISSIONED)
        for station in PATH
        if ended.is_past(station)
    ]

"""Thing names: built from tenant and serial number, and parsed back."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.names import NO_TENANT, SERIAL_NUMBER_LIMIT, owner_of_thing, serial_number_fault, thing_name

SERIALS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,93}", fullmatch=True)
TENANTS = st.none() | st.uuids().filter(lambda tenant: tenant != NO_TENANT)


@given(TENANTS, SERIALS)
def test_thing_name_contains_tenant_and_serial_number(tenant: UUID | None, serial: str) -> None:
    """The name is parsed back to its tenant and serial number, and is within AWS's 128 characters."""
    name = thing_name(tenant, serial)
    assert len(name) <= 128
    assert owner_of_thing(name) == (tenant, serial)


@given(st.text())
def test_other_names_have_no_owner(name: str) -> None:
    """Only the whole of a name that the bridge builds is parsed."""
    owner = owner_of_thing(name)
    assert owner is None or thing_name(*owner) == name


@given(st.text())
def test_serial_number_is_valid_if_and_only_if_it_makes_a_thing_name(serial: str) -> None:
    """An invalid serial number makes no Thing name, and a valid one always does."""
    if serial_number_fault(serial):
        with pytest.raises(ValueError, match="serial number"):
            thing_name(None, serial)
    else:
        assert owner_of_thing(thing_name(None, serial)) == (None, serial)


def test_too_long_serial_number_is_rejected_with_the_limit() -> None:
    """A serial number of 95 characters is rejected with the limit of 94."""
    assert serial_number_fault("S" * SERIAL_NUMBER_LIMIT) is None
    assert "94" in (serial_number_fault("S" * (SERIAL_NUMBER_LIMIT + 1)) or "")


@pytest.mark.parametrize("name", ["t1-SN", f"t{'A' * 32}-SN", f"t{'0' * 32}-", f"t{'0' * 32}-SN\n", "SN-1"])
def test_similar_names_are_not_parsed(name: str) -> None:
    """The bridge builds no name with upper-case hex, an empty serial number or a line break."""
    assert owner_of_thing(name) is None

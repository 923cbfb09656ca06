"""The Thing name keeps tenants apart, and nothing else builds it."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.names import NO_TENANT, SERIAL_NUMBER_LIMIT, owner_of_thing, serial_number_fault, thing_name

SERIALS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,93}", fullmatch=True)
TENANTS = st.none() | st.uuids().filter(lambda tenant: tenant != NO_TENANT)


@given(TENANTS, SERIALS)
def test_a_thing_name_tells_tenant_and_serial(tenant: UUID | None, serial: str) -> None:
    """Name and owner are one to one, within AWS's 128 characters."""
    name = thing_name(tenant, serial)
    assert len(name) <= 128
    assert owner_of_thing(name) == (tenant, serial)


@given(st.text())
def test_what_the_bridge_did_not_build_has_no_owner(name: str) -> None:
    """A name is parsed whole or not at all."""
    owner = owner_of_thing(name)
    assert owner is None or thing_name(*owner) == name


@given(st.text())
def test_a_serial_is_accepted_just_where_it_makes_a_name(serial: str) -> None:
    """What is refused as a serial number makes no Thing name, and the other way round."""
    if serial_number_fault(serial):
        with pytest.raises(ValueError, match="serial number"):
            thing_name(None, serial)
    else:
        assert owner_of_thing(thing_name(None, serial)) == (None, serial)


def test_the_limit_is_named_to_who_exceeds_it() -> None:
    """A serial of 95 characters is refused with the limit."""
    assert serial_number_fault("S" * SERIAL_NUMBER_LIMIT) is None
    assert "94" in (serial_number_fault("S" * (SERIAL_NUMBER_LIMIT + 1)) or "")


@pytest.mark.parametrize("name", ["t1-SN", f"t{'A' * 32}-SN", f"t{'0' * 32}-", f"t{'0' * 32}-SN\n", "SN-1"])
def test_near_misses_are_no_names_of_ours(name: str) -> None:
    """Upper-case hex, an empty serial, a line break: none of the bridge's."""
    assert owner_of_thing(name) is None

"""Required names of a binding: a step that needs a missing one fails permanently."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from activities.bindings import certificate_arn_of, thing_name_of
from db.models import AwsThingBinding
from domain.failure import FailureCode, PermanentError
from domain.saga import Device


def test_a_required_name_that_is_null_is_reported_by_its_column() -> None:
    """The error names the column and the device."""
    device_id = uuid4()
    binding = AwsThingBinding(device_id=device_id, tenant_id=None, thing_name=None, created_by="test")
    device = Device(device_id=device_id, tenant_id=None, thing_name=None)
    reads: tuple[tuple[Callable[[], str], str], ...] = (
        (lambda: thing_name_of(binding), "thing_name"),
        (lambda: thing_name_of(device), "thing_name"),
        (lambda: certificate_arn_of(binding), "certificate_arn"),
    )
    for read, column in reads:
        with pytest.raises(PermanentError) as raised:
            read()
        assert raised.value.code is FailureCode.UNEXPECTED
        assert raised.value.detail == f"{column} of device {device_id} is null"

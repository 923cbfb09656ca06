"""docs/reference.md names the public surface of the code."""

import re
from typing import Final
from uuid import UUID

import pytest

from db.models import AwsThingBinding, BindingTransition, DeviceRow
from domain import names
from domain.command import Command, delta_correlation_id
from domain.failure import FailureCode
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.outgoing_event import SOURCE, OutgoingEventType
from domain.provisioning_status import ProvisioningStatus
from tests import ROOT

REFERENCE: Final = (ROOT / "docs" / "reference.md").read_text()
NAMED: Final = set(re.findall(r"[\w.-]+", REFERENCE))

CONSTANTS: Final = [
    value
    for name, value in vars(names).items()
    if name.isupper()
    and not name.startswith("_")
    and isinstance(value, str)
    and name != "SERIAL_NUMBER_PATTERN"
]
COLUMNS: Final = [
    column for table in (AwsThingBinding, BindingTransition, DeviceRow) for column in table.model_fields
]
FIELDS: Final = [
    field.alias or name for model in (LifecycleEvent, Command) for name, field in model.model_fields.items()
]


@pytest.mark.parametrize(
    "name",
    sorted({*CONSTANTS, *COLUMNS, *FIELDS, *LifecycleEventType, *OutgoingEventType, *ProvisioningStatus}),
)
def test_reference_names_the_public_surface(name: str) -> None:
    """Names of workflows, schedules, columns, fields, events and statuses are in the reference."""
    assert name in NAMED


def test_reference_has_the_test_vector_of_the_correlation_id() -> None:
    """The test vector is computed by the code."""
    found = re.search(r"Test vector: device `(\S+)`, version (\d+)\s+gives\s+`(\S+)`", REFERENCE)
    assert found is not None
    device, version, correlation_id = found.groups()
    assert str(delta_correlation_id(UUID(device), int(version))) == correlation_id


def test_reference_has_source_and_patterns() -> None:
    """The source of events and the pattern of serial numbers are those of the code."""
    assert f"`{SOURCE}`" in REFERENCE
    assert f"`{names.SERIAL_NUMBER_PATTERN}`" in REFERENCE
    assert FailureCode.JOB_ID_TAKEN in REFERENCE

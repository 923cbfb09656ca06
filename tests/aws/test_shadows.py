"""Shadows: read and report in the classic one, and delete all of a Thing, where each call can be repeated.

They run on moto in this process.
"""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from aws.clients import AwsClients
from aws.errors import NotFoundError
from aws.shadows import Shadows

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def aws(moto_aws: AwsClients) -> AwsClients:
    return moto_aws


@pytest.fixture
def shadows(aws: AwsClients) -> Shadows:
    return Shadows(aws)


@pytest.fixture
def thing_name(aws: AwsClients) -> str:
    name = f"thing-{uuid4().hex}"
    aws.iot.create_thing(thingName=name)
    return name


def write(aws: AwsClients, thing_name: str, state: dict[str, Any], **shadow: str) -> None:
    payload = json.dumps({"state": state})
    aws.iot_data.update_thing_shadow(thingName=thing_name, payload=payload, **shadow)


def test_a_missing_shadow_is_read_as_none(shadows: Shadows, thing_name: str) -> None:
    """Neither a Thing without a shadow nor a missing Thing is an error."""
    assert shadows.read(thing_name) is None
    assert shadows.read("missing") is None


def test_a_reported_status_keeps_the_rest_of_the_shadow(
    shadows: Shadows, aws: AwsClients, thing_name: str
) -> None:
    """The status is added to what the device reports, and the desired state is not changed."""
    write(aws, thing_name, {"desired": {"interval": 60}, "reported": {"firmware": "1.0"}})
    shadows.report_status(thing_name, "Suspended", NOON)
    shadows.report_status(thing_name, "Active", NOON)
    document = shadows.read(thing_name)
    assert document is not None
    state = json.loads(document)["state"]
    assert state["desired"] == {"interval": 60}
    assert state["reported"] == {"firmware": "1.0", "status": "Active", "updatedAt": "2026-11-23T12:00:00Z"}


def test_all_shadows_of_a_thing_are_deleted(shadows: Shadows, aws: AwsClients, thing_name: str) -> None:
    """The classic shadow and each named one are deleted, and a repeated deletion has no effect."""
    write(aws, thing_name, {"reported": {"a": 1}})
    for name in ("config", "firmware"):
        write(aws, thing_name, {"reported": {"a": 1}}, shadowName=name)
    for _ in range(2):
        shadows.delete_all(thing_name)
    assert shadows.read(thing_name) is None
    for name in ("config", "firmware"):
        with pytest.raises(NotFoundError):
            aws.call(aws.iot_data.get_thing_shadow, thingName=thing_name, shadowName=name)

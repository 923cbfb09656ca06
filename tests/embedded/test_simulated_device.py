"""The simulated device: it uses the same device APIs of AWS as a real device."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from embedded.simulated_device import SimulatedDevice
from tests.embedded.test_emulator import emulator, get_shadow, update_shadow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.embedded.test_emulator import AwsClients

THING = "pump-1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsClients]:
    """Run one emulator for all tests of this file."""
    with emulator(tmp_path_factory.mktemp("aws") / "aws.state") as (_, aws):
        yield aws


@pytest.fixture
def aws(shared: AwsClients) -> AwsClients:
    """Return the emulator with one Thing, whose shadow has a delta."""
    shared.control.reset()
    shared.iot.create_thing(thingName=THING)
    update_shadow(shared, THING, {"state": {"desired": {"net": {"port": 1}}, "reported": {"on": True}}})
    return shared


def send(aws: AwsClients, job_id: str, operation: str) -> dict[str, Any]:
    """Create a job for the Thing and return its document."""
    document = {"operation": operation, "correlationId": "c", "parameters": {"net": {"port": 1}}}
    arn = aws.iot.describe_thing(thingName=THING)["thingArn"]
    aws.iot.create_job(jobId=job_id, targets=[arn], document=json.dumps(document))
    return document


def test_simulated_device_applies_a_desired_state(aws: AwsClients) -> None:
    """It reports the desired state and ends the job with its details. Then no job is left."""
    document = send(aws, "job-1", "shadow.applyDesiredState")
    device = SimulatedDevice(aws.url, THING)
    assert device.execute_next_job(status_details={"took": "1s"}) == document
    state = get_shadow(aws, THING)["state"]
    assert (state["reported"], state.get("delta")) == ({"on": True, "net": {"port": 1}}, None)
    execution = aws.iot.describe_job_execution(jobId="job-1", thingName=THING)["execution"]
    assert (execution["status"], execution["statusDetails"]) == ("SUCCEEDED", {"detailsMap": {"took": "1s"}})
    assert aws.iot.describe_job(jobId="job-1")["job"]["status"] == "COMPLETED"
    assert device.execute_next_job() is None


@pytest.mark.parametrize(
    ("operation", "outcome"),
    [
        ("shadow.applyDesiredState", "FAILED"),
        ("shadow.applyDesiredState", "REJECTED"),
        ("reboot", "SUCCEEDED"),
    ],
)
def test_simulated_device_applies_no_other_job(aws: AwsClients, operation: str, outcome: str) -> None:
    """A job that fails, is rejected, or is not a desired state does not change the shadow."""
    before = get_shadow(aws, THING)["state"]
    send(aws, "job-1", operation)
    SimulatedDevice(aws.url, THING).execute_next_job(outcome)
    assert get_shadow(aws, THING)["state"] == before
    execution = aws.iot.describe_job_execution(jobId="job-1", thingName=THING)["execution"]
    assert execution["status"] == outcome

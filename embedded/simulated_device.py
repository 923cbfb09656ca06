"""A simulated device that uses the device APIs of AWS: it executes its jobs and reports its shadow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from embedded.aws_client import aws_client

if TYPE_CHECKING:
    from collections.abc import Mapping

_APPLY_DESIRED_STATE = "shadow.applyDesiredState"


class SimulatedDevice:
    """The device of one Thing, connected to the emulator at an endpoint."""

    def __init__(self, endpoint_url: str, thing_name: str) -> None:
        self._thing_name = thing_name
        self._jobs = aws_client("iot-jobs-data", endpoint_url)
        self._data = aws_client("iot-data", endpoint_url)

    def execute_next_job(
        self, outcome: str = "SUCCEEDED", status_details: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """Execute the next job with this outcome and return its document, or None if there is no job.

        A desired state is reported only if the outcome is SUCCEEDED.
        """
        started = self._jobs.start_next_pending_job_execution(thingName=self._thing_name)
        execution = started.get("execution")
        if not execution:
            return None
        document: dict[str, Any] = json.loads(execution["jobDocument"])
        if outcome == "SUCCEEDED" and document.get("operation") == _APPLY_DESIRED_STATE:
            self.report(document["parameters"])
        self._jobs.update_job_execution(
            thingName=self._thing_name,
            jobId=execution["jobId"],
            status=outcome,
            statusDetails=dict(status_details or {}),
            expectedVersion=execution["versionNumber"],
        )
        return document

    def report(self, state: Mapping[str, Any]) -> None:
        """Report a state in the classic shadow."""
        payload = json.dumps({"state": {"reported": state}})
        self._data.update_thing_shadow(thingName=self._thing_name, payload=payload)


def desire(endpoint_url: str, thing_name: str, state: Mapping[str, Any]) -> None:
    """Set the desired state in the classic shadow of a Thing, as an application of the platform does."""
    payload = json.dumps({"state": {"desired": state}})
    aws_client("iot-data", endpoint_url).update_thing_shadow(thingName=thing_name, payload=payload)

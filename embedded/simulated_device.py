"""A device without hardware, on AWS's own device APIs: it takes its jobs, and reports its shadow."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

_REGION = "eu-west-1"
_APPLY_DESIRED_STATE = "shadow.applyDesiredState"


class SimulatedDevice:
    """One Thing's device, at the endpoint of an emulator."""

    def __init__(self, endpoint_url: str, thing_name: str) -> None:
        self._thing_name = thing_name
        self._jobs = _client("iot-jobs-data", endpoint_url)
        self._data = _client("iot-data", endpoint_url)

    def take_one(
        self, outcome: str = "SUCCEEDED", status_details: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """Do the next job to that outcome, and answer with its document; with nothing where there is none.

        The desired state is applied, that is, reported, only by a device that succeeds.
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
        """Tell the classic shadow what is so on the device."""
        payload = json.dumps({"state": {"reported": state}})
        self._data.update_thing_shadow(thingName=self._thing_name, payload=payload)


def desire(endpoint_url: str, thing_name: str, state: Mapping[str, Any]) -> None:
    """Ask another state of a device, as an application of the platform's does in its classic shadow."""
    payload = json.dumps({"state": {"desired": state}})
    _client("iot-data", endpoint_url).update_thing_shadow(thingName=thing_name, payload=payload)


@cache
def _client(service: str, endpoint_url: str) -> Any:
    """One for all devices of the process: a client costs as much as dozens of calls."""
    # A session of its own, since two threads may not make clients from one.
    session = boto3.Session("embedded", "embedded", region_name=_REGION)
    return session.client(
        service,  # type: ignore[call-overload] # there are no types of the device's side of jobs
        endpoint_url=endpoint_url,
        config=Config(proxies={}, max_pool_connections=32),
    )

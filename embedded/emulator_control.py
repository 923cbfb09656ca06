"""The client of the control endpoint of the emulator: faults, quotas, call counts, settings and reset."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.request import ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_AWS_QUOTAS = {
    350: "iot:DescribeThing",
    100: "iot:CreateThing iot:UpdateThing iot:DeleteThing iot:AttachThingPrincipal iot:DetachThingPrincipal"
    " iot:AddThingToThingGroup iot-data:DeleteConnection",
    50: "secretsmanager:CreateSecret secretsmanager:DeleteSecret secretsmanager:PutSecretValue"
    " secretsmanager:TagResource",
    20: "iot:ListThingPrincipals",
    15: "iot:CreateCertificateFromCsr iot:AttachPolicy iot:DetachPolicy iot:ListAttachedPolicies"
    " iot:SearchIndex",
    10: "iot:CreateKeysAndCertificate iot:UpdateCertificate iot:DeleteCertificate iot:DescribeCertificate"
    " iot:ListCertificates iot:ListPrincipalThings iot:ListThings iot:GetPolicy iot:CreateJob iot:DescribeJob"
    " iot:CancelJob iot:DeleteJob iot:DescribeJobExecution iot:ListJobExecutionsForThing",
    5: "iot:CreateDynamicThingGroup iot:DeleteDynamicThingGroup",
}
AWS_QUOTAS: Mapping[str, float] = {
    name: rate for rate, names in _AWS_QUOTAS.items() for name in names.split()
}
"""The default quotas of AWS in calls per second, for each account and region.

Source: the pages "endpoints and quotas" of AWS IoT Core, AWS IoT Device Management and AWS Secrets Manager.
"""


def ca_file(state: Path) -> Path:
    """Return the file where the emulator of a state file writes the certificate of its authority."""
    return state.with_name(state.name + ".ca.pem")


@dataclass
class Settings:
    """The delays of AWS's asynchronous operations in seconds, and a quota."""

    detach_seconds: float = 2.0
    """A Thing and a certificate cannot be deleted so long after the two were detached."""
    secret_deletion_seconds: float = 1.0
    """The name of a secret cannot be used again so long after a forced deletion."""
    disconnect_seconds: float = 60.0
    """A connection ends so long after its certificate was deactivated."""
    group_build_seconds: float = 1.0
    """A new dynamic group is BUILDING so long: without Things, and not usable as a job's target."""
    job_rollout_seconds: float = 0.0
    """A job has no executions so long."""
    dynamic_groups_at_most: int = 100


class EmulatorControl:
    """Controls the emulator at an endpoint, for tests and benchmarks."""

    def __init__(self, endpoint_url: str) -> None:
        self._base = f"{endpoint_url}/_emulator"
        self._opener = build_opener(ProxyHandler({}))  # the emulator is local: no proxy of the environment

    def add_fault(
        self,
        *operations: str,
        resource: str | None = None,
        code: str | None = None,
        payload: bytes | None = None,
        status: int | None = None,
        times: int | None = None,
        when: Literal["before", "after"] = "before",
        delay_seconds: float = 0.0,
    ) -> str:
        """Make calls fail, be slow, or return something else, and return the id of the fault.

        Args:
            operations: names such as `iot:CreateThing`; `"*"` matches every operation.
            resource: limits the fault to requests that contain this text.
            code: the AWS error code; None only delays the call.
            payload: the body that is returned without making the call.
            status: the HTTP status; by default 400 with a code, and 200 with a payload.
            times: the number of calls that fail; None for all calls until `clear_faults`.
            when: "before" prevents the call; "after" makes the call and then returns the error.
            delay_seconds: the delay before the response.
        """
        return str(
            self._send(
                "add_fault",
                operations=operations,
                resource=resource,
                code=code,
                payload=None if payload is None else b64encode(payload).decode(),
                status=status or (200 if code is None else 400),
                times=times,
                when=when,
                delay_seconds=delay_seconds,
            )
        )

    def is_fault_active(self, fault: str) -> bool:
        """Return whether a fault is still active. A fault with `times` ends with the last of them."""
        return fault in self._send("active_faults")

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._send("clear_faults")

    def calls(self) -> dict[str, int]:
        """Return the number of calls of each operation since the start or the last `forget_calls`."""
        return dict(self._send("calls"))

    def forget_calls(self) -> None:
        """Reset the call counts to zero."""
        self._send("forget_calls")

    def limit(self, quotas: Mapping[str, float]) -> None:
        """Throttle the calls of each operation above its quota in calls per second; {} ends all limits."""
        self._send("limit", quotas=quotas)

    def revoke_key(self, access_key_id: str, *, grace_seconds: float = 0.0) -> None:
        """Refuse every call signed with this key, after the grace period."""
        self._send("revoke_key", access_key_id=access_key_id, grace_seconds=grace_seconds)

    def refused_keys(self) -> dict[str, int]:
        """Return the number of refused calls of each revoked key, by key id."""
        return dict(self._send("refused_keys"))

    def restore_keys(self) -> None:
        """Accept every key again."""
        self._send("restore_keys")

    def settings(self, **changes: float) -> None:
        """Change some of the `Settings`, also for operations in progress."""
        self._send("settings", **changes)

    def default_settings(self) -> None:
        """Restore the default settings."""
        self._send("default_settings")

    def forget_shadow(self, thing_name: str) -> None:
        """Delete the classic shadow of a Thing and its version, so that the next one starts at version 1."""
        self._send("forget_shadow", thing_name=thing_name)

    def time_out_execution(self, job_id: str, thing_name: str) -> None:
        """Set an execution to TIMED_OUT, as the timer of AWS does. That timer counts in minutes."""
        self._send("time_out_execution", job_id=job_id, thing_name=thing_name)

    def reset(self) -> None:
        """Delete all resources, faults, quotas, call counts and revoked keys. Settings are kept."""
        self._send("reset")

    def _send(self, control: str, **arguments: Any) -> Any:
        body = json.dumps(arguments).encode()
        request = Request(f"{self._base}/{control}", data=body)  # noqa: S310 - the caller's own URL
        with self._opener.open(request, timeout=10) as response:
            return json.load(response)["result"]

"""The client of the control endpoint of the emulator: faults, call counts, settings and reset."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Literal
from urllib.request import ProxyHandler, Request, build_opener

from embedded import REGION

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        status: int = 400,
        times: int | None = None,
        when: Literal["before", "after"] = "before",
        delay_seconds: float = 0.0,
    ) -> str:
        """Make calls fail or be slow, and return the id of the fault.

        Args:
            operations: names such as `iot:CreateThing`; `"*"` matches every operation.
            resource: limits the fault to requests that contain this text.
            code: the AWS error code; None only delays the call.
            status: the HTTP status of the error.
            times: the number of calls that fail; None for all calls until `clear_faults`.
            when: "before" prevents the call; "after" makes the call and then returns the error.
            delay_seconds: the delay before the response.
        """
        fault = {
            "operations": list(operations),
            "resource": resource,
            "code": code,
            "status": status,
            "times": times,
            "when": when,
            "delay_seconds": delay_seconds,
        }
        return str(self._send("POST", "faults", fault)["id"])

    def is_fault_active(self, fault: str) -> bool:
        """Return whether a fault is still active. A fault with `times` ends with the last of them."""
        return fault in self._send("GET", "faults")["ids"]

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._send("DELETE", "faults")

    def calls(self) -> dict[str, int]:
        """Return the number of calls of each operation since the start or the last `forget_calls`."""
        return {str(operation): int(count) for operation, count in self._send("GET", "calls").items()}

    def forget_calls(self) -> None:
        """Reset the call counts to zero."""
        self._send("DELETE", "calls")

    def revoke_key(self, access_key_id: str, *, grace_seconds: float = 0.0) -> None:
        """Refuse every call signed with this key, after the grace period."""
        self._send("POST", "revoked-keys", {"access_key_id": access_key_id, "grace_seconds": grace_seconds})

    def refused_keys(self) -> dict[str, int]:
        """Return the number of refused calls of each revoked key, by key id."""
        return {str(key): int(count) for key, count in self._send("GET", "revoked-keys").items()}

    def restore_keys(self) -> None:
        """Accept every key again."""
        self._send("DELETE", "revoked-keys")

    def settings(
        self,
        *,
        detach_seconds: float | None = None,
        secret_deletion_seconds: float | None = None,
        disconnect_seconds: float | None = None,
        group_build_seconds: float | None = None,
        job_rollout_seconds: float | None = None,
        dynamic_groups_at_most: int | None = None,
        active_jobs_at_most: int | None = None,
    ) -> None:
        """Change the given settings, also for operations in progress. `account.Settings` describes each."""
        given = {
            "detach_seconds": detach_seconds,
            "secret_deletion_seconds": secret_deletion_seconds,
            "disconnect_seconds": disconnect_seconds,
            "group_build_seconds": group_build_seconds,
            "job_rollout_seconds": job_rollout_seconds,
            "dynamic_groups_at_most": dynamic_groups_at_most,
            "active_jobs_at_most": active_jobs_at_most,
        }
        self._send("POST", "settings", {name: value for name, value in given.items() if value is not None})

    def default_settings(self) -> None:
        """Restore the default settings."""
        self._send("DELETE", "settings")

    def put_raw_shadow(self, thing_name: str, payload: bytes, *, region: str = REGION) -> None:
        """Set the bytes returned as the classic shadow of a Thing until its next update, valid or not."""
        content = {"region": region, "thing_name": thing_name, "payload": b64encode(payload).decode()}
        self._send("POST", "shadow", content)

    def forget_shadow(self, thing_name: str, *, region: str = REGION) -> None:
        """Delete the classic shadow of a Thing and its version, so that the next one starts at version 1."""
        self._send("DELETE", "shadow", {"region": region, "thing_name": thing_name})

    def time_out_execution(self, job_id: str, thing_name: str, *, region: str = REGION) -> None:
        """Set an execution to TIMED_OUT, as the timer of AWS does. That timer counts in minutes."""
        self._send("POST", "timeout", {"region": region, "job_id": job_id, "thing_name": thing_name})

    def reset(self) -> None:
        """Delete all resources, faults, call counts and revoked keys. Settings are kept."""
        self._send("POST", "reset")

    def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps(content or {}).encode()
        request = Request(f"{self._base}/{path}", data=body, method=method)  # noqa: S310 - the caller's own URL
        with self._opener.open(request, timeout=10) as response:
            response_body: dict[str, Any] = json.load(response)
            return response_body

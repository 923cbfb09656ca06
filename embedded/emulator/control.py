"""The hand of tests and benchmarks on the AWS emulator: faults, counts, settings and a fresh start."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Literal
from urllib.request import ProxyHandler, Request, build_opener

from embedded import REGION

if TYPE_CHECKING:
    from collections.abc import Mapping


class EmulatorControl:
    """Speaks to the control door of the emulator at an endpoint."""

    def __init__(self, endpoint_url: str) -> None:
        self._base = f"{endpoint_url}/_emulator"
        self._opener = build_opener(ProxyHandler({}))  # no proxy of the environment's: it is on this machine

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
        """Make calls fail or dawdle, `times` times or until cleared, and answer with the fault's id.

        Operations are named as in `iot:CreateThing`, `"*"` is all of them; `resource` narrows them to the
        requests that mention it. A fault "before" keeps the call from having an effect; one "after" lets
        it, and hides that from the caller. Without a code the call is only delayed.
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

    def awaits(self, fault: str) -> bool:
        """Whether a fault is still in force: one for a number of times is over with the last of them."""
        return fault in self._send("GET", "faults")["ids"]

    def clear_faults(self) -> None:
        """Let every call pass again."""
        self._send("DELETE", "faults")

    def calls(self) -> dict[str, int]:
        """How often each operation was called since the start or the last `forget_calls`."""
        return {str(operation): int(count) for operation, count in self._send("GET", "calls").items()}

    def forget_calls(self) -> None:
        """Count calls from zero again."""
        self._send("DELETE", "calls")

    def revoke_key(self, access_key_id: str, *, grace_seconds: float = 0.0) -> None:
        """Refuse every call that this key signs, once some seconds have passed."""
        self._send("POST", "revoked-keys", {"access_key_id": access_key_id, "grace_seconds": grace_seconds})

    def refused_keys(self) -> dict[str, int]:
        """How many calls were refused for their key, by its id."""
        return {str(key): int(count) for key, count in self._send("GET", "revoked-keys").items()}

    def restore_keys(self) -> None:
        """Take every key again."""
        self._send("DELETE", "revoked-keys")

    def settings(
        self,
        *,
        detach_settles_seconds: float | None = None,
        group_builds_seconds: float | None = None,
        job_rolls_out_seconds: float | None = None,
        dynamic_groups_at_most: int | None = None,
        active_jobs_at_most: int | None = None,
    ) -> None:
        """Set what is given, from now on and for what is already under way; `Settings` says what each is."""
        given = {
            "detach_settles_seconds": detach_settles_seconds,
            "group_builds_seconds": group_builds_seconds,
            "job_rolls_out_seconds": job_rolls_out_seconds,
            "dynamic_groups_at_most": dynamic_groups_at_most,
            "active_jobs_at_most": active_jobs_at_most,
        }
        self._send("POST", "settings", {name: value for name, value in given.items() if value is not None})

    def default_settings(self) -> None:
        """Set everything as it is at the start."""
        self._send("DELETE", "settings")

    def put_raw_shadow(self, thing_name: str, payload: bytes, *, region: str = REGION) -> None:
        """Have a Thing's classic shadow read as these bytes, whatever they are, until it is next updated."""
        content = {"region": region, "thing_name": thing_name, "payload": b64encode(payload).decode()}
        self._send("POST", "shadow", content)

    def forget_shadow(self, thing_name: str, *, region: str = REGION) -> None:
        """Drop a Thing's classic shadow with its version, so that the next one starts at 1."""
        self._send("DELETE", "shadow", {"region": region, "thing_name": thing_name})

    def time_out_execution(self, job_id: str, thing_name: str, *, region: str = REGION) -> None:
        """End an execution as AWS's timer does, which counts in minutes; no device can report that."""
        self._send("POST", "timeout", {"region": region, "job_id": job_id, "thing_name": thing_name})

    def reset(self) -> None:
        """Empty the emulated account, and forget faults, counts and revoked keys; settings stay."""
        self._send("POST", "reset")

    def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps(content or {}).encode()
        request = Request(f"{self._base}/{path}", data=body, method=method)  # noqa: S310 - the caller's own URL
        with self._opener.open(request, timeout=10) as response:
            answered: dict[str, Any] = json.load(response)
            return answered

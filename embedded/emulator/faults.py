"""What tests make of correct calls: errors and delays on demand, quotas, and revoked access keys."""

import asyncio
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any
from uuid import uuid4

from embedded.emulator.calls import AwsError, Call, Response


@dataclass
class Fault:
    """An error, response or delay, and the calls it applies to. `EmulatorControl.add_fault` describes it."""

    operations: list[str]
    resource: str | None = None
    code: str | None = None
    payload: bytes | None = None
    status: int = 400
    times: int | None = None
    when: str = "before"
    delay_seconds: float = 0.0
    id: str = field(default_factory=lambda: uuid4().hex)

    def matches(self, call: Call) -> bool:
        """Return whether this fault applies to the call."""
        named = "*" in self.operations or call.operation in self.operations
        return named and (self.resource is None or call.mentions(self.resource))


@dataclass
class _TokenBucket:
    """The calls of one operation that AWS accepts now: one second's worth, refilled continuously."""

    per_second: float
    tokens: float = inf
    filled_at: float = 0.0

    def take(self) -> bool:
        """Take the token of a call, and return whether there was one."""
        now = time.monotonic()
        refilled = self.tokens + (now - self.filled_at) * self.per_second
        self.tokens, self.filled_at = min(max(self.per_second, 1.0), refilled), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Faults:
    """The active faults, quotas and revoked keys, and the number of calls of each operation."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.calls: Counter[str] = Counter()
        """Counts every call, including those that a fault, a quota or a revoked key made fail."""
        self.refused_keys: Counter[str] = Counter()
        self._revoked_at: dict[str, float] = {}
        self._buckets: dict[str, _TokenBucket] = {}

    def add(self, *, payload: str | None = None, **fault: Any) -> str:
        """Add a fault, whose payload is encoded in base64, and return its id."""
        added = Fault(payload=None if payload is None else b64decode(payload), **fault)
        if added.when not in {"before", "after"}:
            raise ValueError(f'"when" must be "before" or "after", not {added.when!r}')
        self.faults.append(added)
        return added.id

    def limit(self, quotas: Mapping[str, float]) -> None:
        """Enforce these quotas, in calls per second by operation, instead of the present ones."""
        if min(quotas.values(), default=1) <= 0:
            raise ValueError(f"every quota must be positive: {quotas}")
        self._buckets = {operation: _TokenBucket(per_second) for operation, per_second in quotas.items()}

    def revoke(self, access_key_id: str, grace_seconds: float) -> None:
        """Refuse a key after a grace period. On AWS, too, a revocation needs time to reach every service."""
        self._revoked_at[access_key_id] = time.monotonic() + grace_seconds

    def restore_keys(self) -> None:
        """Accept every key again."""
        self._revoked_at.clear()
        self.refused_keys.clear()

    def reset(self) -> None:
        """Forget all of it."""
        self.faults.clear()
        self.calls.clear()
        self._buckets.clear()
        self.restore_keys()

    async def around(self, call: Call, respond: Callable[[Call], Awaitable[Response]]) -> Response:
        """Handle a call with `respond`, unless a revoked key, a quota or a fault prevents it."""
        self.calls[call.operation] += 1
        if time.monotonic() >= self._revoked_at.get(call.access_key_id, inf):
            self.refused_keys[call.access_key_id] += 1
            code = "InvalidClientTokenId" if call.service == "sts" else "UnrecognizedClientException"
            message = "The security token included in the request is invalid."
            return AwsError(403, code, message).response(call)
        bucket = self._buckets.get(call.operation)
        if bucket is not None and not bucket.take():
            status = 429 if call.service in {"iot-data", "iot-jobs-data"} else 400
            return AwsError(status, "ThrottlingException", "Rate exceeded").response(call)
        fault = self._next_fault(call)
        if fault is None:
            return await respond(call)
        await asyncio.sleep(fault.delay_seconds)
        if fault.payload is not None:
            return Response(fault.status, fault.payload)
        if fault.code is None:
            return await respond(call)
        if fault.when == "after":
            await respond(call)
        return AwsError(fault.status, fault.code, "an injected fault").response(call)

    def _next_fault(self, call: Call) -> Fault | None:
        fault = next((each for each in self.faults if each.matches(call)), None)
        if fault is not None and fault.times is not None:
            fault.times -= 1
            if fault.times == 0:
                self.faults.remove(fault)
        return fault

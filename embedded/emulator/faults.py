"""Faults that tests inject into the emulator, and the number of calls per operation."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from embedded.emulator.calls import AwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embedded.emulator.calls import Call, Response


@dataclass
class Fault:
    """An error or delay, with the calls it applies to. `EmulatorControl.add_fault` describes the fields."""

    operations: list[str]
    resource: str | None = None
    code: str | None = None
    status: int = 400
    times: int | None = None
    when: str = "before"
    delay_seconds: float = 0.0
    id: str = field(default_factory=lambda: uuid4().hex)

    def matches(self, call: Call) -> bool:
        """Return whether this fault applies to the call."""
        named = "*" in self.operations or call.operation in self.operations
        return named and (self.resource is None or call.mentions(self.resource))


class Faults:
    """The active faults, and the number of calls of each operation."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._faults: list[Fault] = []
        self._calls: Counter[str] = Counter()

    def add(self, fault: Mapping[str, Any]) -> str:
        """Add a fault and return its id."""
        added = Fault(**fault)
        if added.when not in {"before", "after"}:
            raise ValueError(f'"when" must be "before" or "after", not {added.when!r}')
        with self._guard:
            self._faults.append(added)
        return added.id

    def ids(self) -> list[str]:
        """Return the ids of the active faults."""
        with self._guard:
            return [fault.id for fault in self._faults]

    def clear(self) -> None:
        """Remove all faults."""
        with self._guard:
            self._faults.clear()

    def calls(self) -> dict[str, int]:
        """Return the number of calls of each operation, including the calls that a fault made fail."""
        with self._guard:
            return dict(self._calls)

    def forget_calls(self) -> None:
        """Reset the counts to zero."""
        with self._guard:
            self._calls.clear()

    def around(self, call: Call, respond: Callable[[Call], Response]) -> Response:
        """Handle a call with `respond`, or return the error of a matching fault before or after it."""
        fault = self._next_fault(call)
        if fault is None:
            return respond(call)
        time.sleep(fault.delay_seconds)
        if fault.code is None:
            return respond(call)
        if fault.when == "after":
            respond(call)
        return AwsError(fault.status, fault.code, "an injected fault").response(call)

    def _next_fault(self, call: Call) -> Fault | None:
        with self._guard:
            self._calls[call.operation] += 1
            fault = next((each for each in self._faults if each.matches(call)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
            return fault

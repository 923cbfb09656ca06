"""Faults that a test asks the emulator for, and the count of the calls it made."""

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

    from embedded.emulator.calls import Answer, Call


@dataclass
class Fault:
    """What goes wrong, with which calls, and how often."""

    operations: list[str]
    resource: str | None = None
    code: str | None = None
    status: int = 400
    times: int | None = None
    when: str = "before"
    delay_seconds: float = 0.0
    id: str = field(default_factory=lambda: uuid4().hex)

    def concerns(self, call: Call) -> bool:
        """Whether this fault is for that call."""
        named = "*" in self.operations or call.operation in self.operations
        return named and (self.resource is None or call.mentions(self.resource))


class Faults:
    """The faults in force, and how often each operation was called."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._faults: list[Fault] = []
        self._calls: Counter[str] = Counter()

    def add(self, fault: Mapping[str, Any]) -> str:
        """Put a fault in force, and answer with its id."""
        added = Fault(**fault)
        if added.when not in {"before", "after"}:
            raise ValueError(f'"when" is "before" or "after", not {added.when!r}')
        with self._guard:
            self._faults.append(added)
        return added.id

    def ids(self) -> list[str]:
        """The faults that calls can still meet."""
        with self._guard:
            return [fault.id for fault in self._faults]

    def clear(self) -> None:
        """Let every call pass again."""
        with self._guard:
            self._faults.clear()

    def calls(self) -> dict[str, int]:
        """How often each operation was called, faulty calls included."""
        with self._guard:
            return dict(self._calls)

    def forget_calls(self) -> None:
        """Count from zero again."""
        with self._guard:
            self._calls.clear()

    def around(self, call: Call, answer: Callable[[Call], Answer]) -> Answer:
        """Answer a call, or fail as asked: before it has had any effect, or after it has had all of it."""
        fault = self._meet(call)
        if fault is None:
            return answer(call)
        time.sleep(fault.delay_seconds)
        if fault.code is None:
            return answer(call)
        if fault.when == "after":
            answer(call)
        return AwsError(fault.status, fault.code, "a fault that was asked for").answer(call)

    def _meet(self, call: Call) -> Fault | None:
        with self._guard:
            self._calls[call.operation] += 1
            fault = next((each for each in self._faults if each.concerns(call)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
            return fault

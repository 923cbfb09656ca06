"""The document of a device shadow: its state, metadata, version and delta, as AWS computes them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS = ("desired", "reported")
"""The parts of the `state` that a client may write."""


@dataclass
class Shadow:
    """One shadow. A deleted shadow is kept because its version continues when it is created again."""

    version: int = 0
    timestamp: int = 0
    deleted: bool = False
    state: dict[str, dict[str, Any]] = field(default_factory=lambda: {section: {} for section in SECTIONS})
    metadata: dict[str, dict[str, Any]] = field(default_factory=lambda: {section: {} for section in SECTIONS})
    raw: bytes | None = None
    """The bytes that a test has set as the document."""

    def update(self, state: Mapping[str, Any] | None) -> None:
        """Merge the `state` of a document. Null removes a value, a section or the whole state."""
        self._count_version()
        for section in SECTIONS:
            change = None if state is None else state.get(section, {})
            if change is None:
                self.state[section], self.metadata[section] = {}, {}
            else:
                _merge(self.state[section], self.metadata[section], change, self.timestamp)

    def delete(self) -> None:
        """Delete the state and keep the version."""
        self._count_version()
        self.deleted = True
        self.state = {section: {} for section in SECTIONS}
        self.metadata = {section: {} for section in SECTIONS}

    def document(self) -> dict[str, Any]:
        """Return the document of GetThingShadow."""
        state = {section: content for section, content in self.state.items() if content}
        delta = _difference(self.state["desired"], self.state["reported"])
        metadata = {section: content for section, content in self.metadata.items() if content}
        return {
            "state": {**state, **({"delta": delta} if delta else {})},
            "metadata": metadata,
            "version": self.version,
            "timestamp": self.timestamp,
        }

    def _count_version(self) -> None:
        self.version += 1
        self.timestamp = int(time.time())
        self.deleted = False
        self.raw = None


def _merge(target: dict[str, Any], metadata: dict[str, Any], change: Mapping[str, Any], now: int) -> None:
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
            metadata.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(target.get(key), dict):
                target[key], metadata[key] = {}, {}
            _merge(target[key], metadata[key], value, now)
        else:
            target[key], metadata[key] = value, _stamp(value, now)


def _stamp(value: Any, now: int) -> Any:
    return [_stamp(each, now) for each in value] if isinstance(value, list) else {"timestamp": now}


def _difference(desired: Mapping[str, Any], reported: Mapping[str, Any]) -> dict[str, Any]:
    """Return the desired values that are not reported. Objects are compared member by member."""
    delta = {}
    for key, wanted in desired.items():
        held = reported.get(key)
        if isinstance(wanted, dict) and isinstance(held, dict):
            nested = _difference(wanted, held)
            if nested:
                delta[key] = nested
        elif wanted != held:
            delta[key] = wanted
    return delta

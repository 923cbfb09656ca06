"""Device shadows, which moto keeps in the Thing and loses with it.

On AWS a shadow belongs to a Thing's name: it survives the Thing, is read, written and deleted without one,
and is there again when the Thing is. Moto's documents differ too: `null` for a section does not clear it, and
equal nested objects leave an empty one in the delta. So shadows are kept and answered here.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from embedded.emulator.calls import Answer, AwsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_SECTIONS = ("desired", "reported")
_DOCUMENT_LIMIT_BYTES = 8 * 1024
_NAMES_PER_PAGE = 25


@dataclass
class Shadow:
    """One shadow; a deleted one stays for its version, which goes on where it ended."""

    version: int = 0
    timestamp: int = 0
    deleted: bool = False
    state: dict[str, dict[str, Any]] = field(default_factory=lambda: {section: {} for section in _SECTIONS})
    metadata: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {section: {} for section in _SECTIONS}
    )
    raw: bytes | None = None
    """What a test would have it read as."""

    def update(self, state: Mapping[str, Any] | None) -> None:
        """Merge a document's `state`: null takes a value, a section or all of it away."""
        self._pass()
        for section in _SECTIONS:
            change = None if state is None else state.get(section, {})
            if change is None:
                self.state[section], self.metadata[section] = {}, {}
            else:
                _merge(self.state[section], self.metadata[section], change, self.timestamp)

    def delete(self) -> None:
        """Be gone."""
        self._pass()
        self.deleted = True
        self.state = {section: {} for section in _SECTIONS}
        self.metadata = {section: {} for section in _SECTIONS}

    def document(self) -> dict[str, Any]:
        """What GetThingShadow answers with."""
        state = {section: content for section, content in self.state.items() if content}
        delta = _difference(self.state["desired"], self.state["reported"])
        metadata = {section: content for section, content in self.metadata.items() if content}
        return {
            "state": {**state, **({"delta": delta} if delta else {})},
            "metadata": metadata,
            "version": self.version,
            "timestamp": self.timestamp,
        }

    def _pass(self) -> None:
        self.version += 1
        self.timestamp = int(time.time())
        self.deleted = False
        self.raw = None


def get_thing_shadow(call: Call, account: Account, _forward: Forward) -> Answer:
    """A shadow is there whether its Thing is or not."""
    shadow = _existing(call, account)
    return Answer.of(shadow.document()) if shadow.raw is None else Answer(HTTPStatus.OK, shadow.raw)


def update_thing_shadow(call: Call, account: Account, _forward: Forward) -> Answer:
    """A shadow comes into being whether its Thing is there or not: a connected device recreates its own."""
    if len(call.parameters["payload"]) > _DOCUMENT_LIMIT_BYTES:
        message = "The payload exceeds the maximum size allowed"
        raise AwsError(413, "RequestEntityTooLargeException", message)
    request = _read(call.parameters["payload"])
    shadows = account.shadows(call.region, call.parameters["thingName"])
    name = call.parameters.get("shadowName", "")
    current = shadows.get(name, Shadow(deleted=True))
    expected = request.get("version")
    if expected is not None and expected != (0 if current.deleted else current.version):
        raise AwsError(409, "ConflictException", "Version conflict")
    shadows[name] = current
    current.update(request["state"])
    sections = [section for section in _SECTIONS if (request["state"] or {}).get(section) is not None]
    told = {
        "state": request["state"],
        "metadata": {section: current.metadata[section] for section in sections},
        "version": current.version,
        "timestamp": current.timestamp,
    }
    return Answer.of(told | ({"clientToken": request["clientToken"]} if "clientToken" in request else {}))


def delete_thing_shadow(call: Call, account: Account, _forward: Forward) -> Answer:
    """AWS answers 404 the second time; moto deletes again."""
    shadow = _existing(call, account)
    shadow.delete()
    return Answer.of({"version": shadow.version, "timestamp": shadow.timestamp})


def list_named_shadows_for_thing(call: Call, account: Account, _forward: Forward) -> Answer:
    """AWS answers in pages, and with those that exist; moto with all at once, the deleted ones among them."""
    shadows = account.shadows(call.region, call.parameters["thingName"])
    size = call.parameters.get("pageSize", _NAMES_PER_PAGE)
    after = call.parameters.get("nextToken", "")
    names = [name for name in sorted(shadows) if name > after and not shadows[name].deleted]
    page = names[:size]
    next_token = {"nextToken": page[-1]} if len(names) > size else {}
    return Answer.of({"results": page, "timestamp": int(time.time()), **next_token})


def put_raw(account: Account, region: str, thing_name: str, payload: bytes) -> None:
    """Have the classic shadow read as these bytes."""
    with account.lock:
        shadow = account.shadows(region, thing_name).setdefault("", Shadow(version=1))
        shadow.raw, shadow.deleted = payload, False


def forget(account: Account, region: str, thing_name: str) -> None:
    """Drop the classic shadow with its version."""
    with account.lock:
        account.shadows(region, thing_name).pop("", None)


def _existing(call: Call, account: Account) -> Shadow:
    thing_name, name = call.parameters["thingName"], call.parameters.get("shadowName", "")
    shadow = account.shadows(call.region, thing_name).get(name)
    if shadow is None or shadow.deleted:
        full_name = f"{thing_name}~{name}" if name else thing_name
        raise AwsError(404, "ResourceNotFoundException", f"No shadow exists with name: '{full_name}'")
    return shadow


def _read(payload: bytes) -> dict[str, Any]:
    try:
        request = json.loads(payload)
    except ValueError:
        raise AwsError(400, "InvalidRequestException", "Payload contains invalid json") from None
    if not isinstance(request, dict) or "state" not in request:
        raise AwsError(400, "InvalidRequestException", "Missing required node: state")
    state = request["state"]
    if state is not None:
        if not isinstance(state, dict):
            raise AwsError(400, "InvalidRequestException", "State node must be an object")
        for section, content in state.items():
            if section not in _SECTIONS:
                raise AwsError(400, "InvalidRequestException", f"State contains an invalid node: '{section}'")
            if not isinstance(content, dict | None):
                raise AwsError(400, "InvalidRequestException", f"{section} node must be an object")
    return request


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
    """What is desired and not reported so; objects are compared by their members."""
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


DIFFERENCES: Mapping[str, Difference] = {
    "iot-data:GetThingShadow": get_thing_shadow,
    "iot-data:UpdateThingShadow": update_thing_shadow,
    "iot-data:DeleteThingShadow": delete_thing_shadow,
    "iot-data:ListNamedShadowsForThing": list_named_shadows_for_thing,
}

"""The delta of a Device Shadow: the desired state that the device has not reported yet."""

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn


class InvalidShadowError(ValueError):
    """A shadow document is not valid; the message names the fault and quotes no content."""


@dataclass(frozen=True)
class Delta:
    """A shadow's `state.delta` as JSON values, and the version of the shadow that it was read from."""

    version: int
    state: dict[str, Any]

    @property
    def digest(self) -> str:
        """Return a hash in hex that is equal for equal deltas, whatever the order of their members."""
        canonical = json.dumps(self.state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return sha256(canonical.encode()).hexdigest()


def read_delta(payload: bytes) -> Delta:
    """Return the delta of a document that GetThingShadow returned; it is empty if the shadow has none.

    Raises:
        InvalidShadowError: the document is not a shadow, or contains text that PostgreSQL cannot store.
    """
    try:
        document = json.loads(payload, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise InvalidShadowError("the shadow is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("state"), dict):
        raise InvalidShadowError("the shadow has no `state`, or one that is not an object")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidShadowError("the shadow's `version` is not a whole number")
    delta = document["state"].get("delta", {})
    if not isinstance(delta, dict):
        raise InvalidShadowError("the shadow's `delta` is not an object")
    if not _storable(delta):
        raise InvalidShadowError(
            "the shadow's `delta` contains a character that is not text (U+0000 or a surrogate)"
        )
    return Delta(version=version, state=delta)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_storable(key) and _storable(member) for key, member in value.items())
    if isinstance(value, list):
        return all(map(_storable, value))
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return True

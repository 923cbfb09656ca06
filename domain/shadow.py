"""The delta of a Device Shadow: what is desired of a device and not yet reported by it."""

import json
import math
from hashlib import sha256
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict


class InvalidShadowError(ValueError):
    """A shadow document that is not one; says what is wrong with it, and quotes nothing of it."""


class Delta(BaseModel):
    """A shadow's `state.delta`, nested values kept as JSON, and the shadow's version it was read at."""

    model_config = ConfigDict(frozen=True)

    version: int
    state: dict[str, Any]

    @property
    def digest(self) -> str:
        """The same for the same delta, whatever the order of its members; hex."""
        canonical = json.dumps(self.state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return sha256(canonical.encode()).hexdigest()


def read_delta(payload: bytes) -> Delta:
    """Read what GetThingShadow answered; the delta is empty where there is none.

    Raises:
        InvalidShadowError: it is no shadow document, or holds what PostgreSQL's JSON cannot.
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
            "the shadow's `delta` holds a character that is no text (U+0000, a surrogate)"
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

"""The operations that AWS implements differently from moto, each with one function that acts as AWS does.

Production code is written for AWS. Without this layer it would be tested against the behaviour of moto.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from botocore.model import ListShape, MapShape, StringShape, StructureShape

from embedded.emulator import groups, jobs, secrets, shadows, things
from embedded.emulator.calls import AwsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.model import Shape

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call, Response

_DIFFERENCES: Mapping[str, Difference] = {
    **things.DIFFERENCES,
    **shadows.DIFFERENCES,
    **groups.DIFFERENCES,
    **jobs.DIFFERENCES,
    **secrets.DIFFERENCES,
}


_CLASSES_OF_JAVA = {r"\p{Upper}": "A-Z", r"\p{Digit}": "0-9", r"\p{C}": r"\x00-\x1f\x7f"}


def respond_as_aws(call: Call, account: Account, forward: Forward) -> Response:
    """Handle a call as AWS does, with moto for everything that moto implements correctly."""
    try:
        _validate_parameters(call)
        if call.operation == "iot:CreateKeysAndCertificate":
            return things.create_keys_and_certificate(call, account, forward)
        with account.lock:
            difference = _DIFFERENCES.get(call.operation)
            return forward() if difference is None else difference(call, account, forward)
    except AwsError as error:
        return error.response(call)


def _validate_parameters(call: Call) -> None:
    """Refuse a text that violates the length or pattern in its model.

    AWS checks these for every text, such as a Thing name or the value of an attribute. boto and moto do not.
    """
    if call.model is None or call.model.input_shape is None:
        return
    for location, text, shape in _texts("", call.parameters, call.model.input_shape):
        limits = shape.metadata
        pattern = _pattern(limits["pattern"]) if "pattern" in limits else None
        fits = limits.get("min", 0) <= len(text) <= limits.get("max", len(text))
        if not fits or (pattern and not pattern.fullmatch(text)):
            code = "ValidationException" if call.service == "secretsmanager" else "InvalidRequestException"
            message = f"1 validation error detected: Value at '{location}' does not satisfy {dict(limits)}"
            raise AwsError(400, code, message)


def _texts(location: str, value: Any, shape: Shape) -> Iterator[tuple[str, str, Shape]]:
    match shape, value:
        case StringShape(), str():
            yield location, value, shape
        case StructureShape(), dict():
            for name in value.keys() & shape.members.keys():
                yield from _texts(f"{location}.{name}".lstrip("."), value[name], shape.members[name])
        case ListShape(), list():
            for member in value:
                yield from _texts(location, member, shape.member)
        case MapShape(), dict():
            for key, member in value.items():
                yield from _texts(location, key, shape.key)
                yield from _texts(location, member, shape.value)


@cache
def _pattern(text: str) -> re.Pattern[str] | None:
    """Compile a pattern of the model. Return None for the few patterns that only Java supports."""
    for java, python in _CLASSES_OF_JAVA.items():
        text = text.replace(java, python)
    try:
        return re.compile(text)
    except re.error:
        return None

"""A request's body as JSON: bounded, and read in one way only."""

import json
import math
import re
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request

from api.errors import Refused

BODY_LIMIT: Final = 256 * 1024
"""Bytes."""
DEPTH_LIMIT: Final = 32
"""Objects and arrays within each other."""

_JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.ASCII)
# Half of a pair, which no UTF-8 can write.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


async def read_json(request: Request) -> bytes:
    """The body, once it is known to be JSON that every reader takes alike.

    Raises:
        Refused: it is too large, or not such JSON.
    """
    if not _JSON_TYPE.fullmatch(request.headers.get("content-type", "")):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON, and its Content-Type application/json",
            headers={"Accept": "application/json"},
        )
    body = await read_bounded(request, BODY_LIMIT)
    if not body.strip():
        raise _malformed("is missing")
    require_plain_json(body)
    return body


async def read_bounded(request: Request, limit: int) -> bytes:
    """The body, of so many bytes at most.

    Raises:
        Refused: it is larger.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def require_plain_json(body: bytes) -> None:
    """Refuse what is no JSON, and what two readers may take for different things.

    Raises:
        Refused: with the reason.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except Refused:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise _malformed("is not JSON in UTF-8") from None
    _look_through(value, 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _malformed("names a field twice")
    return found


def _no_constant(_: str) -> None:
    raise _malformed("holds NaN or Infinity, which is no JSON")


def _look_through(value: Any, depth: int) -> None:
    match value:
        case dict() | list():
            if depth > DEPTH_LIMIT:
                raise _too_deep()
            # Names and values alike.
            for each in value:
                _look_through(each, depth + 1)
            if isinstance(value, dict):
                for each in value.values():
                    _look_through(each, depth + 1)
        case str() if _SURROGATE.search(value):
            raise _malformed("holds half of a surrogate pair")
        case float() if not math.isfinite(value):
            raise _malformed("holds a number beyond all range")


def _malformed(what: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"the body {what}")


def _too_deep() -> Refused:
    return _malformed(f"nests deeper than {DEPTH_LIMIT} objects and arrays")


def _too_large(limit: int) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {limit} bytes",
        headers={"Connection": "close"},
    )

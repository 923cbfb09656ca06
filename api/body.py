"""Request bodies: limited in size, and JSON that every parser reads alike."""

import json
import math
import re
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request

from api.errors import ApiError

BODY_LIMIT: Final = 256 * 1024
"""Bytes."""
DEPTH_LIMIT: Final = 32
"""The number of objects and arrays nested in each other."""

_JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.ASCII)
# One half of a surrogate pair, which cannot be encoded in UTF-8.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


async def read_json(request: Request) -> bytes:
    """Return the body of a request, once it is known to be unambiguous JSON.

    Raises:
        ApiError: the body is too large, missing, of another media type, or not unambiguous JSON.
    """
    if not _JSON_TYPE.fullmatch(request.headers.get("content-type", "")):
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON, and its Content-Type application/json",
            headers={"Accept": "application/json"},
        )
    body = await read_limited(request, BODY_LIMIT)
    if not body.strip():
        raise _malformed("is missing")
    require_unambiguous_json(body)
    return body


async def read_limited(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Args:
        request: the request; its body is read no further than the limit.
        limit: the largest size, in bytes.

    Raises:
        ApiError: 413, the body is larger.
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


def require_unambiguous_json(body: bytes) -> None:
    """Check that a body is JSON that every parser reads alike.

    Raises:
        ApiError: 400, with the reason.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ApiError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise _malformed("is not JSON in UTF-8") from None
    _check_values(value, 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _malformed("names a field twice")
    return found


def _refuse_constant(_: str) -> None:
    raise _malformed("contains NaN or Infinity, which is not JSON")


def _check_values(value: Any, depth: int) -> None:
    match value:
        case dict() | list():
            if depth > DEPTH_LIMIT:
                raise _too_deep()
            # The keys of an object, or the elements of an array.
            for each in value:
                _check_values(each, depth + 1)
            if isinstance(value, dict):
                for each in value.values():
                    _check_values(each, depth + 1)
        case str() if _SURROGATE.search(value):
            raise _malformed("contains half of a surrogate pair")
        case float() if not math.isfinite(value):
            raise _malformed("contains a number that is out of range")


def _malformed(reason: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"the body {reason}")


def _too_deep() -> ApiError:
    return _malformed(f"nests deeper than {DEPTH_LIMIT} objects and arrays")


def _too_large(limit: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {limit} bytes",
        headers={"Connection": "close"},
    )

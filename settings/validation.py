"""Checks of single settings that no bound or pattern can express.

Each raises a ValueError that completes the sentence "SETTING …". It never repeats a value that may be secret.
Slow imports are inside the functions: the command line describes the settings without checking one.
"""

import binascii
import json
import re
from base64 import b64decode
from ipaddress import ip_address
from typing import Any, Final

from pydantic import AfterValidator, SecretStr, ValidationInfo

from domain.area import ALL_AREAS, Area
from domain.encryption import ENCRYPTION_KEY_BYTES, KEY_ID_PATTERN
from domain.serial_policy import SerialPatterns

_SECRET_NAME_LIMIT: Final = 512
_LONGEST_THING_NAME: Final = 128 * "x"
# The form of a secret in the Standard Webhooks specification.
_WEBHOOK_SECRET: Final = re.compile(r"whsec_([A-Za-z0-9+/]+={0,2})")


def database_url(value: SecretStr) -> SecretStr:
    """Accept a PostgreSQL URL that libpq parses into the host that its author meant."""
    url = value.get_secret_value()
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://, as libpq reads it")
    if not _is_parsed_as_meant(url):
        raise ValueError(
            "cannot be parsed by libpq; write a special character of a password as %XX, for example @ as %40"
        )
    return value


def _is_parsed_as_meant(url: str) -> bool:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return False
    # With a bare @ or / in a password, libpq reads the rest of the password as the host or the port, and a
    # connection error would print it.
    host, port = str(parts.get("host", "")), str(parts.get("port", ""))
    return "@" not in host and re.fullmatch(r"[\d,]*", port) is not None


def secret_name_template(value: str) -> str:
    """Accept a template that gives every Thing a secret name of its own that AWS allows."""
    if "{thingName}" not in value:
        raise ValueError("must contain {thingName}, else all devices would share one secret")
    rest = value.replace("{thingName}", "")
    if not all(letter.isascii() and (letter.isalnum() or letter in "/_+=.@-") for letter in rest):
        raise ValueError("may contain, beside {thingName}, only ASCII letters, digits and /_+=.@-")
    longest = len(value.replace("{thingName}", _LONGEST_THING_NAME))
    if longest > _SECRET_NAME_LIMIT:
        raise ValueError(
            f"gives names of up to {longest} characters, AWS allows {_SECRET_NAME_LIMIT}: "
            f"{len(_LONGEST_THING_NAME)} for each {{thingName}}, and the rest"
        )
    return value


def required_for_retention(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Refuse None where `retention_days` is set."""
    if value is None and info.data.get("retention_days") is not None:
        raise ValueError("is required where IOT_AWS_ERASURE__RETENTION_DAYS is set")
    return value


def required_by_sink(sink: str) -> AfterValidator:
    """Return a validator that refuses None where `sink` is the chosen one."""

    def refuse_none(value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("sink") == sink:
            raise ValueError(f"is required where IOT_AWS_EVENTS__SINK is {sink}")
        return value

    return AfterValidator(refuse_none)


def webhook_url(value: SecretStr) -> SecretStr:
    """Accept an https:// URL, or an http:// URL of this machine."""
    import httpx2

    try:
        url = httpx2.URL(value.get_secret_value())
    except httpx2.InvalidURL:
        raise ValueError("is not a URL") from None
    if not url.host or (url.port or 0) > 65_535:
        raise ValueError("is not a URL with a host")
    if url.scheme != "https" and not (url.scheme == "http" and _is_this_machine(url.host)):
        raise ValueError("must begin with https://, since events name devices; http:// only to this machine")
    return value


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def webhook_secrets(value: SecretStr) -> SecretStr:
    """Accept one or more secrets of the Standard Webhooks specification, separated by spaces."""
    secrets = value.get_secret_value().split()
    if not secrets or not all(map(_is_webhook_secret, secrets)):
        raise ValueError("each secret must be whsec_ and the base64 of 24 to 64 bytes")
    return value


def _is_webhook_secret(secret: str) -> bool:
    match = _WEBHOOK_SECRET.fullmatch(secret)
    try:
        return match is not None and 24 <= len(b64decode(match[1], validate=True)) <= 64
    except binascii.Error:
        return False


def serial_patterns(value: object) -> object:
    """Accept valid patterns, as JSON text from the environment or as a table of the TOML file."""
    value = _parsed_if_text(value)
    if isinstance(value, dict) and all(isinstance(pattern, str) for pattern in value.values()):
        SerialPatterns(value)
        return value
    raise ValueError("must be a JSON object of strings")


def encryption_keys(value: object) -> object:
    """Accept valid keys by their ids, as JSON text from the environment or as a table of the TOML file."""
    value = _parsed_if_text(value)
    if not isinstance(value, dict) or not value:
        raise ValueError("must be a JSON object of at least one key by its id")
    if not all(re.fullmatch(KEY_ID_PATTERN, key_id) for key_id in value):
        raise ValueError("an id must be 1 to 32 of ASCII letters, digits, . _ and -")
    for key_id, key in value.items():
        if not isinstance(key, str) or len(_decoded_key(key)) != ENCRYPTION_KEY_BYTES:
            raise ValueError(f"the key {key_id} must be {ENCRYPTION_KEY_BYTES} bytes in base64")
    return value


def _decoded_key(key: str) -> bytes:
    try:
        return b64decode(key, validate=True)
    except ValueError:
        return b""


def encrypting_key_id(value: str | None, info: ValidationInfo) -> str | None:
    """Accept the id of one of the encryption keys."""
    # `keys` is absent where it was refused itself: that error is enough.
    if value is not None and "keys" in info.data:
        keys = info.data["keys"]
        if keys is None:
            raise ValueError("must be one of the ids in IOT_AWS_ENCRYPTION__KEYS, which is not set")
        if value not in keys:
            raise ValueError(f"must be one of the ids in IOT_AWS_ENCRYPTION__KEYS: {', '.join(keys)}")
    return value


def areas(value: object) -> tuple[Area, ...]:
    """Accept areas, as JSON text from the environment or as a list of the TOML file."""
    value = _parsed_if_text(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a JSON list of at least one area")
    if any(each not in ALL_AREAS for each in value):
        raise ValueError("contains an unknown area")
    return tuple(area for area in ALL_AREAS if area in value)


def _parsed_if_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value)
    except ValueError:
        raise ValueError("is not JSON") from None
    return parsed

"""The description of every setting, for `thingbridge --help`."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from settings.sections import DATABASE_URL_FORM, DATABASE_VARIABLE, SECTIONS, variable_name


class SettingDescription(NamedTuple):
    """The environment variable of a setting, its default and its allowed values."""

    variable: str
    default: str | None
    """None if the setting is required."""
    allowed: str


def describe() -> Iterator[tuple[str, list[SettingDescription]]]:
    """Yield each section's title and its settings."""
    yield (
        "The database, PostgreSQL 15 or later.",
        [SettingDescription(DATABASE_VARIABLE, None, DATABASE_URL_FORM)],
    )
    for section, model in SECTIONS.items():
        yield (
            model.__doc__ or "",
            [
                SettingDescription(
                    variable_name(section, name),
                    None if field.is_required() else _as_text(field.default),
                    field.description or "",
                )
                for name, field in model.model_fields.items()
            ],
        )


def _as_text(default: object) -> str:
    """Return a default as an operator would set it, or "none"."""
    if default is None:
        return "none"
    return json.dumps(default) if isinstance(default, bool | tuple) else str(default)

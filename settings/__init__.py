"""The settings of every process, read once at start; an error names the wrong setting.

`sections` defines them, `loading` reads them, `validation` has the checks, `description` prints them.
"""

from typing import TYPE_CHECKING, Any

from settings.description import SettingDescription, describe
from settings.errors import InvalidSettingsError
from settings.sections import (
    CONFIG_FILE_VARIABLE,
    DATABASE_VARIABLE,
    PREFIX,
    Api,
    Credentials,
    Encryption,
    Events,
    Jobs,
    SecretNames,
    Worker,
)

if TYPE_CHECKING:
    from settings.loading import (
        ApiSettings,
        ClientSettings,
        CodecSettings,
        CommandSettings,
        DatabaseSettings,
        Settings,
    )

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "DATABASE_VARIABLE",
    "PREFIX",
    "Api",
    "ApiSettings",
    "ClientSettings",
    "CodecSettings",
    "CommandSettings",
    "Credentials",
    "DatabaseSettings",
    "Encryption",
    "Events",
    "InvalidSettingsError",
    "Jobs",
    "SecretNames",
    "SettingDescription",
    "Settings",
    "Worker",
    "describe",
]


def __getattr__(name: str) -> Any:
    """Import the classes that read settings at their first use.

    pydantic-settings takes a quarter of a second to import, and `thingbridge --help` reads no setting.
    """
    if name in __all__:
        from settings import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

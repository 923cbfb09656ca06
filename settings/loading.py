"""Reading the settings: the environment first, then the TOML file that IOT_AWS_CONFIG_FILE names.

Each class is the set of settings that one kind of process requires.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from settings import validation
from settings.errors import InvalidSettingsError
from settings.sections import (
    CONFIG_FILE_VARIABLE,
    DATABASE_URL_FORM,
    DATABASE_VARIABLE,
    PREFIX,
    SECTIONS,
    Api,
    Credentials,
    Encryption,
    Erasure,
    Events,
    FleetProvisioning,
    Jobs,
    Log,
    Provisioning,
    SecretNames,
    Shadow,
    Telemetry,
    Worker,
    variable_name,
)


class _ConfigFile(TomlConfigSettingsSource):
    """The TOML file that the environment names, with sections as tables and names in any case.

    Raises:
        InvalidSettingsError: the file cannot be read, or is not TOML.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        self.file = os.environ.get(CONFIG_FILE_VARIABLE) or None
        try:
            # pydantic-settings treats a file that is not there like an empty one.
            if self.file is not None:
                Path(self.file).open("rb").close()
            super().__init__(settings_cls, toml_file=self.file)
        except OSError as error:
            raise InvalidSettingsError(
                f"{CONFIG_FILE_VARIABLE}: cannot read {self.file}: {error.strerror} (allowed: a TOML file)"
            ) from None
        except ValueError as error:
            raise InvalidSettingsError(f"{CONFIG_FILE_VARIABLE}: {self.file} is not TOML: {error}") from None

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return {
            name.lower(): {key.lower(): given for key, given in value.items()}
            if isinstance(value, Mapping)
            else value
            for name, value in super()._read_file(file_path).items()
        }

    def variables(self) -> Iterator[str]:
        """Yield the environment variable of each entry of the file."""
        for name, value in self.toml_data.items():
            if isinstance(value, Mapping):
                yield from (variable_name(name, key) for key in value)
            else:
                yield name.upper() if name.upper() == DATABASE_VARIABLE else f"{PREFIX}{name}".upper()


class ClientSettings(BaseSettings):
    """The settings of a client of the workflows."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        # The validators decode JSON: pydantic-settings' own error lacks the name of the setting.
        enable_decoding=False,
    )

    log: Log = Log()
    worker: Worker = Worker()
    encryption: Encryption = Encryption()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources; a setting comes from the first source that has it."""
        return env_settings, _ConfigFile(settings_cls)

    @classmethod
    def load(cls) -> Self:
        """Read the settings.

        Raises:
            InvalidSettingsError: the message has a line for each that is missing, wrong or unknown.
        """
        in_environment = {name.upper() for name in os.environ} - {CONFIG_FILE_VARIABLE}
        config_file = _ConfigFile(cls)
        in_file = set(config_file.variables())
        # The environment overrides the file, so the file is the origin of the other variables only.
        origins = dict.fromkeys(in_file - in_environment, f" (in {config_file.file})")
        prefixed = {name for name in in_environment if name.startswith(PREFIX)}
        if unknown := list(_unknown(prefixed | in_file, origins)):
            raise InvalidSettingsError("\n".join(unknown))
        try:
            return cls()
        except ValidationError as error:
            # Neither input nor context: a value may be a secret.
            found = error.errors(include_url=False, include_input=False, include_context=False)
            raise InvalidSettingsError("\n".join(_line(each, origins) for each in found)) from None


class CommandSettings(ClientSettings):
    """The settings for sending commands."""

    jobs: Jobs = Jobs()


class DatabaseSettings(ClientSettings):
    """The settings for reading and migrating the database."""

    database_url: Annotated[SecretStr, AfterValidator(validation.database_url)] = Field(
        validation_alias=DATABASE_VARIABLE
    )
    erasure: Erasure = Erasure()


class CodecSettings(DatabaseSettings):
    """The settings of the codec server."""

    api: Api = Api()


class ApiSettings(DatabaseSettings):
    """The settings of the HTTP API."""

    api: Api = Api()
    credentials: Credentials = Credentials()
    provisioning: SecretNames = SecretNames()
    jobs: Jobs = Jobs()
    fleet_provisioning: FleetProvisioning = FleetProvisioning()


class Settings(DatabaseSettings):
    """The settings of a worker."""

    credentials: Credentials = Credentials()
    provisioning: Provisioning
    shadow: Shadow = Shadow()
    jobs: Jobs = Jobs()
    fleet_provisioning: FleetProvisioning = FleetProvisioning()
    events: Events = Events()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="before")
    @classmethod
    def _add_required_section(cls, given: dict[str, Any]) -> dict[str, Any]:
        # Where the whole section is missing, pydantic would name the section and not the required setting.
        return {"provisioning": {}} | given


def _unknown(variables: Iterable[str], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that is not a setting, with the settings of its section."""
    known = {
        section: [variable_name(section, name) for name in model.model_fields]
        for section, model in SECTIONS.items()
    }
    names = {DATABASE_VARIABLE, *(variable for section in known.values() for variable in section)}
    for variable in sorted(set(variables) - names):
        section = variable.removeprefix(PREFIX).partition("__")[0].lower()
        existing = known.get(section) or [f"{PREFIX}{each}__…".upper() for each in known]
        yield f"{variable}{origins.get(variable, '')}: no such setting; there are {', '.join(existing)}"


def _line(error: ErrorDetails, origins: Mapping[str, str]) -> str:
    """Return the line for a setting that is missing or wrong."""
    section, name = (*map(str, error["loc"]), "")[:2]
    if name:
        variable, allowed = variable_name(section, name), SECTIONS[section].model_fields[name].description
    else:
        variable, allowed = DATABASE_VARIABLE, DATABASE_URL_FORM
    fault = "is required" if error["type"] == "missing" else error["msg"].removeprefix("Value error, ")
    return f"{variable}{origins.get(variable, '')}: {fault} (allowed: {allowed})"

"""Migration of the database to the schema of this version."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from domain.operator_error import OperatorError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
# Not Alembic's default table name, which the platform may use in the same database.
VERSION_TABLE: Final = "iotaws_alembic_version"
# The id of an advisory lock: any number, but the same in every version.
_MIGRATION_LOCK: Final = 0x7468696E67


class SchemaOutdatedError(OperatorError):
    """The schema of the database is older than this version needs."""


def configuration(connection: Connection) -> Config:
    """Return Alembic's configuration for an open connection."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def upgrade(engine: Engine) -> str:
    """Apply the missing migrations, and return the resulting revision. A lock serialises concurrent calls."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config = configuration(connection)
        command.upgrade(config, "head")
        return _head(config)


def require_current(engine: Engine) -> None:
    """Check that the schema is not older than the one this version needs.

    A newer schema is accepted: while an upgrade is rolled out, workers of the previous version may restart.

    Raises:
        SchemaOutdatedError: the schema is older; the message has the command to run.
    """
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        found = context.get_current_revision()
        config = configuration(connection)
    needed = _head(config)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is None or (found in known and found != needed):
        raise SchemaOutdatedError(
            f"the database is at schema {found or 'none'}, this version needs {needed}: "
            "run `thingbridge migrate`"
        )


def _head(config: Config) -> str:
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None  # noqa: S101  # the first revision ships with the package
    return head

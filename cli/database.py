"""The bridge's database, for the duration of one command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlmodel import Session

    from settings import DatabaseSettings


@contextmanager
def open_database(settings: "DatabaseSettings") -> Iterator["Engine"]:
    """Open the database, and close it at the end.

    Raises:
        SchemaOutdatedError: the database does not have this version's schema.
    """
    from db.engine import open_engine
    from db.migrate import require_current

    engine = open_engine(settings.database_url.get_secret_value())
    try:
        require_current(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def transaction() -> Iterator["Session"]:
    """Open one transaction in the database of the settings; its rows may be read afterwards.

    Raises:
        InvalidSettingsError: a setting is missing or wrong.
        SchemaOutdatedError: the database does not have this version's schema.
    """
    from settings import DatabaseSettings

    settings = DatabaseSettings.load()

    from sqlmodel import Session

    with (
        open_database(settings) as engine,
        Session(engine, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session

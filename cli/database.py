"""The bridge's database, as a single command uses it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlmodel import Session

from db.engine import open_engine
from db.migrate import require_current
from settings import DatabaseSettings


@contextmanager
def open_database(settings: DatabaseSettings) -> Iterator[Engine]:
    """The database for as long as the command takes.

    Raises:
        SchemaOutdatedError: it is not at this version's schema.
    """
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        require_current(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def transaction() -> Iterator[Session]:
    """One transaction in the database that the settings name; its rows may be read afterwards.

    Raises:
        InvalidSettingsError, SchemaOutdatedError: what must be done before.
    """
    with (
        open_database(DatabaseSettings.load()) as engine,
        Session(engine, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session

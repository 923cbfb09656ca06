"""Connections to the bridge's PostgreSQL."""

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Engine, create_engine


def open_engine(database_url: str, *, pool_size: int = 5, statement_seconds: float | None = None) -> Engine:
    """A pool of connections; opens none until one is asked for.

    Args:
        database_url: as libpq writes it, unix-socket and multi-host forms too. libpq itself reads it, since
            SQLAlchemy's own reading of such addresses differs.
        pool_size: as many as there are activities at work at once.
        statement_seconds: how long one statement may take, its wait for locks included; None: for ever, or as
            the URL says.

    Raises:
        psycopg.ProgrammingError: libpq cannot read the URL.
    """
    given = conninfo_to_dict(database_url)
    bound = f"-c statement_timeout={statement_seconds * 1000:.0f}" if statement_seconds else ""
    address = make_conninfo(
        database_url,
        connect_timeout=given.get("connect_timeout", 5),
        application_name=given.get("application_name", "thingbridge"),
        # Times come back in UTC, whatever the server's own zone.
        options=f"{given.get('options', '')} {bound} -c timezone=UTC".strip(),
    )

    def connect() -> psycopg.Connection:
        return psycopg.connect(address)

    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        # What a device is called has no place in an error that travels into logs and histories.
        hide_parameters=True,
    )

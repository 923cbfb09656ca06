"""Connections to PostgreSQL."""

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Engine, create_engine


def open_engine(database_url: str, *, pool_size: int = 5, statement_seconds: float | None = None) -> Engine:
    """Return a pool of connections. It connects when the first connection is used.

    Args:
        database_url: a URL in libpq's format, including unix sockets and several hosts. libpq parses it,
            because SQLAlchemy interprets such URLs differently.
        pool_size: the largest number of connections; a worker needs one per concurrent activity.
        statement_seconds: timeout of a statement, waiting for locks included. None: no timeout, or the one
            that the URL sets.

    Raises:
        psycopg.ProgrammingError: libpq cannot read the URL.
    """
    given = conninfo_to_dict(database_url)
    timeout = f"-c statement_timeout={statement_seconds * 1000:.0f}" if statement_seconds else ""
    address = make_conninfo(
        database_url,
        connect_timeout=given.get("connect_timeout", 5),
        application_name=given.get("application_name", "thingbridge"),
        # PostgreSQL returns times in the session's time zone, which must not depend on the server.
        options=f"{given.get('options', '')} {timeout} -c timezone=UTC".strip(),
    )

    def connect() -> psycopg.Connection:
        return psycopg.connect(address)

    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        # Errors reach logs and histories, and parameters contain serial numbers and Thing names.
        hide_parameters=True,
    )

"""Entry point of Alembic, which `db.migrate` calls with an open connection."""

from alembic import context
from sqlalchemy import Connection

from db.migrate import VERSION_TABLE
from db.models import Table

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    version_table=VERSION_TABLE,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()

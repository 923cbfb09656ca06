"""Waiting events found in an order of their own, for which no other index will do"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_WAITING = sa.text("published_at IS NULL AND parked_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_iotaws_outbox_waiting",
        "iotaws_outbox",
        ["shard", sa.text("(id + 0)")],
        unique=False,
        postgresql_where=_WAITING,
    )
    op.drop_index("ix_iotaws_outbox_unpublished", "iotaws_outbox")

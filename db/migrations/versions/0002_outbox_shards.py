"""Shards of the outbox, and events of no one device"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("iotaws_outbox", "device_id", nullable=True)
    op.alter_column("iotaws_outbox", "sequence", nullable=True)
    op.create_check_constraint(
        op.f("ck_iotaws_outbox_numbered_for_a_device"),
        "iotaws_outbox",
        "(device_id IS NULL) = (sequence IS NULL)",
    )
    op.add_column(
        "iotaws_outbox",
        sa.Column(
            "shard",
            sa.SmallInteger(),
            sa.Computed(
                "(get_byte(uuid_send(coalesce(device_id, event_id)), 15) % 4)::smallint", persisted=True
            ),
        ),
    )
    op.drop_index("ix_iotaws_outbox_unpublished", "iotaws_outbox")
    op.create_index(
        "ix_iotaws_outbox_unpublished",
        "iotaws_outbox",
        ["shard", "id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
    )

"""Events that a sink refuses, sinks that are gone, and what old events are found by"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, kind in (
        ("first_refused_at", sa.DateTime(timezone=True)),
        ("refused_because", sa.Text()),
        ("send_again_at", sa.DateTime(timezone=True)),
        ("parked_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("iotaws_outbox", sa.Column(name, kind, nullable=True))
    op.drop_index("ix_iotaws_outbox_unpublished", "iotaws_outbox")
    op.create_index(
        "ix_iotaws_outbox_unpublished",
        "iotaws_outbox",
        ["shard", "id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND parked_at IS NULL"),
    )
    op.create_index(
        "ix_iotaws_outbox_refused",
        "iotaws_outbox",
        ["shard", "id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND first_refused_at IS NOT NULL"),
    )
    op.create_index(
        "ix_iotaws_outbox_published",
        "iotaws_outbox",
        ["shard", "published_at"],
        unique=False,
        postgresql_where=sa.text("published_at IS NOT NULL"),
    )
    op.create_table(
        "iotaws_event_sinks",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_iotaws_event_sinks")),
    )

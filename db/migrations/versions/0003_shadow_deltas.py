"""The deltas seen in shadows, and the dynamic groups made for commands"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iotaws_shadow_deltas",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("delta_hash", sa.String(length=64), nullable=False),
        sa.Column("delta", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("shadow_version", sa.BigInteger(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column(
            "first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("found_by", sa.Text(), nullable=False),
        sa.Column("command_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_iotaws_shadow_deltas")),
    )
    op.create_index(
        "ix_iotaws_shadow_deltas_uncommanded",
        "iotaws_shadow_deltas",
        ["device_id"],
        unique=False,
        postgresql_where=sa.text("command_started_at IS NULL"),
    )
    op.create_table(
        "iotaws_command_groups",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_iotaws_command_groups")),
    )
    op.create_index(
        "ix_iotaws_command_groups_last_used_at", "iotaws_command_groups", ["last_used_at"], unique=False
    )

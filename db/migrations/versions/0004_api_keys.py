"""The keys of the HTTP doors, and what their lists of bindings are read by"""

import sqlalchemy as sa
from alembic import op

# Forward only: what an upgrade adds, a restored backup takes back.
revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iotaws_api_keys",
        sa.Column("id", sa.String(length=8), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_api_keys_tenant_is_not_zero"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_api_keys")),
    )
    op.create_index(
        "ix_iotaws_thing_bindings_tenant_id_id", "iotaws_thing_bindings", ["tenant_id", "id"], unique=False
    )
    op.create_index(
        "ix_iotaws_thing_bindings_serial_number_id",
        "iotaws_thing_bindings",
        [sa.literal_column("substr(thing_name, 35)"), "id"],
        unique=False,
    )

"""Retired certificates, the bridge's place in AWS, and the order in which claim certificates expire"""

import sqlalchemy as sa
from alembic import op

# Forward only: what an upgrade adds, a restored backup takes back.
revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iotaws_retired_certificates",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("binding_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("certificate_arn", sa.Text(), nullable=False),
        sa.Column("secret_arn", sa.Text(), nullable=True),
        sa.Column("provisioned_via_jitp", sa.Boolean(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("kept_reason", sa.Text(), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_retired_certificates_tenant_is_not_zero"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_retired_certificates")),
    )
    op.create_index(
        "ix_iotaws_retired_certificates_pending",
        "iotaws_retired_certificates",
        ["device_id"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_index(
        "ix_iotaws_retired_certificates_certificate_arn",
        "iotaws_retired_certificates",
        ["certificate_arn"],
        unique=False,
    )
    op.create_table(
        "iotaws_aws_location",
        sa.Column("id", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("partition", sa.Text(), nullable=False),
        sa.Column("account_id", sa.String(length=12), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_iotaws_aws_place_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_aws_place")),
    )
    op.create_index(
        "ix_iotaws_thing_bindings_claim_certificate_expires_at",
        "iotaws_thing_bindings",
        ["claim_certificate_expires_at", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL AND claim_certificate_expires_at IS NOT NULL"),
    )

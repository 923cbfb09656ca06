"""The bindings, their audit, device states, outbox and devices"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

# Forward only: what an upgrade adds, a restored backup takes back.
revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iot_devices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("serial_number", sa.String(length=94), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("firmware_version", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iot_devices_tenant_is_not_zero"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iot_devices")),
    )
    op.create_index(
        "ix_iot_devices_tenant_id_serial_number", "iot_devices", ["tenant_id", "serial_number"], unique=False
    )
    op.create_table(
        "iotaws_binding_transitions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("binding_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("from_status", sa.String(length=32), nullable=True),
        sa.Column("to_status", sa.String(length=32), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_binding_transitions")),
    )
    op.create_index(
        "ix_iotaws_binding_transitions_binding_id_id",
        "iotaws_binding_transitions",
        ["binding_id", "id"],
        unique=False,
    )
    op.create_table(
        "iotaws_device_states",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("serial_number", sa.String(length=94), nullable=True),
        sa.Column("desired_status", sa.String(length=32), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("decommissioned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported_event_id", sa.Uuid(), nullable=True),
        sa.Column("outbox_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_device_states_tenant_is_not_zero"),
        ),
        sa.CheckConstraint(
            "desired_status IN ('Active', 'Suspended', 'Decommissioned')",
            name=op.f("ck_iotaws_device_states_wanted_status"),
        ),
        sa.CheckConstraint(
            "(desired_status IS NULL) = (occurred_at IS NULL) AND (occurred_at IS NULL) = (event_id IS NULL)",
            name=op.f("ck_iotaws_device_states_wish_is_whole"),
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_iotaws_device_states")),
    )
    op.create_table(
        "iotaws_outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_outbox")),
        sa.UniqueConstraint("device_id", "sequence", name=op.f("uq_iotaws_outbox_device_id_sequence")),
        sa.UniqueConstraint("event_id", name=op.f("uq_iotaws_outbox_event_id")),
    )
    op.create_index(
        "ix_iotaws_outbox_unpublished",
        "iotaws_outbox",
        ["id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_table(
        "iotaws_thing_bindings",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("thing_name", sa.String(length=128), nullable=True),
        sa.Column("thing_arn", sa.Text(), nullable=True),
        sa.Column("certificate_arn", sa.Text(), nullable=True),
        sa.Column("certificate_secret_arn", sa.Text(), nullable=True),
        sa.Column("provisioning_status", sa.String(length=32), server_default="Pending", nullable=False),
        sa.Column("failure_code", sa.String(length=64), nullable=True),
        sa.Column("failure_reason", sa.Text(), nullable=True),
        sa.Column("last_shadow_reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claim_certificate_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("provisioned_via_jitp", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("modified_by", sa.Text(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint(
            "provisioning_status IN ('Pending', 'ThingCreated', 'CertIssued', 'SecretStored', 'Active',"
            " 'Decommissioned', 'Failed')",
            name=op.f("ck_iotaws_thing_bindings_provisioning_status"),
        ),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_thing_bindings_tenant_is_not_zero"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_thing_bindings")),
    )
    op.create_index(
        "ix_iotaws_thing_bindings_device_id", "iotaws_thing_bindings", ["device_id"], unique=False
    )
    op.create_index(
        "ix_iotaws_thing_bindings_provisioning_status_id",
        "iotaws_thing_bindings",
        ["provisioning_status", "id"],
        unique=False,
    )
    op.create_index(
        "ix_iotaws_thing_bindings_thing_name_created_at",
        "iotaws_thing_bindings",
        ["thing_name", "created_at"],
        unique=False,
    )
    op.create_index(
        "uq_iotaws_thing_bindings_certificate",
        "iotaws_thing_bindings",
        ["certificate_arn"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_iotaws_thing_bindings_device",
        "iotaws_thing_bindings",
        ["tenant_id", "device_id"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_index(
        "uq_iotaws_thing_bindings_secret",
        "iotaws_thing_bindings",
        ["certificate_secret_arn"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_iotaws_thing_bindings_thing_name",
        "iotaws_thing_bindings",
        ["thing_name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )

    # The audit is worth what it withstands: not even the bridge's own role may change what it has written.
    op.execute("""
        CREATE FUNCTION iotaws_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only, % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON iotaws_binding_transitions
            FOR EACH STATEMENT EXECUTE FUNCTION iotaws_refuse_change()
    """)

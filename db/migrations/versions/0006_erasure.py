"""Erasure: what stands for an erased serial number, and who erased"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iotaws_erasures",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_erasures_tenant_is_not_zero"),
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_iotaws_erasures")),
    )
    op.add_column("iotaws_device_states", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_iotaws_device_states_to_erase",
        "iotaws_device_states",
        ["decommissioned_at", "device_id"],
        unique=False,
        postgresql_where=sa.text("decommissioned_at IS NOT NULL AND erased_at IS NULL"),
    )
    op.add_column("iotaws_thing_bindings", sa.Column("serial_hash", sa.String(length=80), nullable=True))
    op.create_index(
        "ix_iotaws_thing_bindings_serial_hash_created_at",
        "iotaws_thing_bindings",
        ["serial_hash", "created_at"],
        unique=False,
        postgresql_where=sa.text("serial_hash IS NOT NULL"),
    )
    op.alter_column("iot_devices", "serial_number", nullable=True)

    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON iotaws_erasures
            FOR EACH STATEMENT EXECUTE FUNCTION iotaws_refuse_change()
    """)
    # A reason names Things and ARNs. It alone may go, and only where the erasure stands recorded, for good.
    op.execute("""
        CREATE FUNCTION iotaws_refuse_change_but_erasure() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.reason IS NULL AND to_jsonb(NEW) - 'reason' = to_jsonb(OLD) - 'reason'
                AND EXISTS (SELECT FROM iotaws_erasures WHERE device_id = OLD.device_id)
            THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% is append-only, % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("DROP TRIGGER append_only ON iotaws_binding_transitions")
    op.execute("""
        CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON iotaws_binding_transitions
            FOR EACH STATEMENT EXECUTE FUNCTION iotaws_refuse_change()
    """)
    op.execute("""
        CREATE TRIGGER only_erased BEFORE UPDATE ON iotaws_binding_transitions
            FOR EACH ROW EXECUTE FUNCTION iotaws_refuse_change_but_erasure()
    """)

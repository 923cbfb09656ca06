"""Create the tables, indexes and triggers"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
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
        sa.Column("serial_hash", sa.String(length=80), nullable=True),
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
        "ix_iotaws_thing_bindings_claim_certificate_expires_at",
        "iotaws_thing_bindings",
        ["claim_certificate_expires_at", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL AND claim_certificate_expires_at IS NOT NULL"),
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
        "ix_iotaws_thing_bindings_serial_hash_created_at",
        "iotaws_thing_bindings",
        ["serial_hash", "created_at"],
        unique=False,
        postgresql_where=sa.text("serial_hash IS NOT NULL"),
    )
    op.create_index(
        "ix_iotaws_thing_bindings_serial_number_id",
        "iotaws_thing_bindings",
        [sa.literal_column("substr(thing_name, 35)"), "id"],
        unique=False,
    )
    op.create_index(
        "ix_iotaws_thing_bindings_tenant_id_id", "iotaws_thing_bindings", ["tenant_id", "id"], unique=False
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
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported_event_id", sa.Uuid(), nullable=True),
        sa.Column("outbox_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "desired_status IN ('Active', 'Suspended', 'Decommissioned')",
            name=op.f("ck_iotaws_device_states_desired_status"),
        ),
        sa.CheckConstraint(
            "tenant_id <> '00000000-0000-0000-0000-000000000000'",
            name=op.f("ck_iotaws_device_states_tenant_is_not_zero"),
        ),
        sa.CheckConstraint(
            "(desired_status IS NULL) = (occurred_at IS NULL) AND (occurred_at IS NULL) = (event_id IS NULL)",
            name=op.f("ck_iotaws_device_states_desired_status_is_complete"),
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_iotaws_device_states")),
    )
    op.create_index(
        "ix_iotaws_device_states_to_erase",
        "iotaws_device_states",
        ["decommissioned_at", "device_id"],
        unique=False,
        postgresql_where=sa.text("decommissioned_at IS NOT NULL AND erased_at IS NULL"),
    )
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
    op.create_table(
        "iotaws_outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_refused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refused_because", sa.Text(), nullable=True),
        sa.Column("send_again_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("parked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "shard",
            sa.SmallInteger(),
            sa.Computed(
                "(get_byte(uuid_send(coalesce(device_id, event_id)), 15) % 4)::smallint", persisted=True
            ),
            nullable=True,
        ),
        sa.CheckConstraint(
            "(device_id IS NULL) = (sequence IS NULL)", name=op.f("ck_iotaws_outbox_numbered_for_a_device")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_outbox")),
        sa.UniqueConstraint("device_id", "sequence", name=op.f("uq_iotaws_outbox_device_id_sequence")),
        sa.UniqueConstraint("event_id", name=op.f("uq_iotaws_outbox_event_id")),
    )
    op.create_index(
        "ix_iotaws_outbox_published",
        "iotaws_outbox",
        ["shard", "published_at"],
        unique=False,
        postgresql_where=sa.text("published_at IS NOT NULL"),
    )
    op.create_index(
        "ix_iotaws_outbox_refused",
        "iotaws_outbox",
        ["shard", "id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND first_refused_at IS NOT NULL"),
    )
    op.create_index(
        "ix_iotaws_outbox_waiting",
        "iotaws_outbox",
        ["shard", sa.literal_column("(id + 0)")],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND parked_at IS NULL"),
    )
    op.create_table(
        "iotaws_event_sinks",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_iotaws_event_sinks")),
    )
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
    op.create_table(
        "iot_devices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("serial_number", sa.String(length=94), nullable=True),
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
        "ix_iotaws_retired_certificates_certificate_arn",
        "iotaws_retired_certificates",
        ["certificate_arn"],
        unique=False,
    )
    op.create_index(
        "ix_iotaws_retired_certificates_pending",
        "iotaws_retired_certificates",
        ["device_id"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_table(
        "iotaws_aws_location",
        sa.Column("id", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("partition", sa.Text(), nullable=False),
        sa.Column("account_id", sa.String(length=12), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_iotaws_aws_location_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iotaws_aws_location")),
    )
    op.create_table(
        "iotaws_aws_credentials",
        sa.Column("secret_arn", sa.Text(), nullable=False),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("secret_arn", name=op.f("pk_iotaws_aws_credentials")),
    )
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

    # Triggers enforce the append-only tables against every role, the bridge's own included.
    op.execute("""
        CREATE FUNCTION iotaws_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only, % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON iotaws_erasures
            FOR EACH STATEMENT EXECUTE FUNCTION iotaws_refuse_change()
    """)
    op.execute("""
        CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON iotaws_binding_transitions
            FOR EACH STATEMENT EXECUTE FUNCTION iotaws_refuse_change()
    """)
    # The reason of a transition contains Thing names and ARNs. The trigger allows only its removal, and only
    # after the erasure of the device has been recorded.
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
    op.execute("""
        CREATE TRIGGER only_erased BEFORE UPDATE ON iotaws_binding_transitions
            FOR EACH ROW EXECUTE FUNCTION iotaws_refuse_change_but_erasure()
    """)

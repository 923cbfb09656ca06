"""Fleet provisioning in tests: the AWS resources of a device, and the request that registers it."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from db.bindings import DECIDING_BINDING, deciding_names
from db.models import AwsThingBinding, DeviceRow, RetiredCertificate
from domain.enrolment import AwsLocation
from tests.harness.bridge import POLICY, Bridge, Device

TABLES = (
    "iot_devices",
    "iotaws_thing_bindings",
    "iotaws_binding_transitions",
    "iotaws_device_states",
    "iotaws_retired_certificates",
    "iotaws_outbox",
)
VERIFY = "/api/iot/fleet-provisioning/verify"
REGISTERED = "/api/iot/fleet-provisioning/registered"


@dataclass(frozen=True)
class EnrolmentHarness:
    """Devices that enrol themselves in an AWS account and region."""

    location: AwsLocation
    engine: Engine

    def certificate_arn(self) -> str:
        """Return the ARN of a certificate that does not exist."""
        return f"{self.location.arn_prefix('iot')}cert/{secrets.token_hex(32)}"

    def secret_arn(self, device: Device, suffix: str = "AbCd12") -> str:
        """Return the ARN that a device's secret has in AWS, whether the secret exists or not."""
        return (
            f"{self.location.arn_prefix('secretsmanager')}secret:iot/devices/{device.thing_name}/key-{suffix}"
        )

    def body(self, device: Device, **changes: Any) -> dict[str, Any]:
        """Return the body that registers a device, by default with a new certificate and without a secret."""
        registration = {
            "serialNumber": device.serial_number,
            "tenantId": str(device.tenant_id) if device.tenant_id else None,
            "thingName": device.thing_name,
            "thingArn": f"{self.location.arn_prefix('iot')}thing/{device.thing_name}",
            "certificateArn": self.certificate_arn(),
            "model": "MX-3",
            "firmwareVersion": "1.0",
        }
        return registration | changes

    def create_aws_resources(self, bridge: Bridge, device: Device) -> dict[str, Any]:
        """Create the resources of fleet provisioning, and return the body that registers the device.

        A device has one secret, also if it enrols several times.
        """
        bridge.iot.create_thing(thingName=device.thing_name)
        certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
        bridge.iot.attach_policy(policyName=POLICY, target=certificate)
        bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
        name = f"iot/devices/{device.thing_name}/key"
        try:
            secret = bridge.secrets.create_secret(Name=name, SecretString="device key")["ARN"]
        except bridge.secrets.exceptions.ResourceExistsException:
            secret = bridge.secrets.describe_secret(SecretId=name)["ARN"]
        return self.body(device, certificateArn=certificate, certificateSecretArn=secret)

    def binding(self, device: Device) -> AwsThingBinding | None:
        """Return the binding that decides on the serial number. The bridge chooses its device id."""
        with Session(self.engine) as session:
            return session.exec(DECIDING_BINDING, params=deciding_names(device.thing_name, None)).first()

    def require_binding(self, device: Device) -> AwsThingBinding:
        binding = self.binding(device)
        assert binding is not None
        return binding

    def with_assigned_id(self, device: Device) -> Device:
        """Return the device with the id that the bridge has given it."""
        return Device(device.serial_number, device.tenant_id, self.require_binding(device).device_id)

    def device_rows(self, device: Device) -> Sequence[DeviceRow]:
        with Session(self.engine) as session:
            return session.exec(
                select(DeviceRow).where(
                    DeviceRow.serial_number == device.serial_number, DeviceRow.tenant_id == device.tenant_id
                )
            ).all()

    def retired_certificates(self, device_id: UUID) -> Sequence[RetiredCertificate]:
        with Session(self.engine) as session:
            return session.exec(
                select(RetiredCertificate)
                .where(RetiredCertificate.device_id == device_id)
                .order_by(col(RetiredCertificate.id))
            ).all()

    def update_binding_row(self, device: Device, **columns: Any) -> None:
        """Change columns of the binding directly in the database."""
        with Session(self.engine) as session, session.begin():
            binding = session.exec(DECIDING_BINDING, params=deciding_names(device.thing_name, None)).one()
            for name, value in columns.items():
                setattr(binding, name, value)

    @contextmanager
    def no_rows_written(self, device: Device) -> Iterator[None]:
        """Check that the block changes no row of the device's tenant in any table."""
        before = self.rows_of(device.tenant_id)
        yield
        assert self.rows_of(device.tenant_id) == before

    def rows_of(self, tenant_id: UUID | None) -> list[str]:
        """Return the rows of a tenant in all tables, as text."""
        query = " UNION ALL ".join(
            f"SELECT t::text FROM {table} t WHERE tenant_id IS NOT DISTINCT FROM %(tenant)s"  # noqa: S608
            for table in TABLES
        )
        with self.engine.connect() as connection:
            return sorted(connection.exec_driver_sql(query, {"tenant": tenant_id}).scalars())


async def enrol(http: httpx2.AsyncClient, body: dict[str, Any], *, already_provisioned: bool = False) -> UUID:
    """Register a device, and return the id that the bridge has given it."""
    response = await http.post(REGISTERED, json=body)
    assert response.status_code == 200, response.text
    assert response.json()["alreadyProvisioned"] is already_provisioned
    return UUID(response.json()["deviceId"])

"""The tests' side of fleet provisioning: what AWS makes for a device, and what is told of it."""

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
    """Devices that enrol themselves, at a place in AWS."""

    place: AwsLocation
    engine: Engine

    def certificate_arn(self) -> str:
        """The ARN of a certificate that there is not."""
        return f"{self.place.arn_start('iot')}cert/{secrets.token_hex(32)}"

    def secret_arn(self, device: Device, suffix: str = "AbCd12") -> str:
        """What a device's secret is called in AWS, whether there is one or not."""
        return f"{self.place.arn_start('secretsmanager')}secret:iot/devices/{device.thing_name}/key-{suffix}"

    def body(self, device: Device, **changes: Any) -> dict[str, Any]:
        """What is told of a device, by default with a new certificate and no secret."""
        told = {
            "serialNumber": device.serial_number,
            "tenantId": str(device.tenant_id) if device.tenant_id else None,
            "thingName": device.thing_name,
            "thingArn": f"{self.place.arn_start('iot')}thing/{device.thing_name}",
            "certificateArn": self.certificate_arn(),
            "model": "MX-3",
            "firmwareVersion": "1.0",
        }
        return told | changes

    def in_aws(self, bridge: Bridge, device: Device) -> dict[str, Any]:
        """Have AWS do what fleet provisioning does, and say what is told of it; the secret is there once."""
        bridge.iot.create_thing(thingName=device.thing_name)
        certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
        bridge.iot.attach_policy(policyName=POLICY, target=certificate)
        bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
        name = f"iot/devices/{device.thing_name}/key"
        try:
            secret = bridge.secrets.create_secret(Name=name, SecretString="its own")["ARN"]
        except bridge.secrets.exceptions.ResourceExistsException:
            secret = bridge.secrets.describe_secret(SecretId=name)["ARN"]
        return self.body(device, certificateArn=certificate, certificateSecretArn=secret)

    def binding(self, device: Device) -> AwsThingBinding | None:
        """The binding that decides over the serial number; its device id is the bridge's choice."""
        with Session(self.engine) as session:
            return session.exec(DECIDING_BINDING, params=deciding_names(device.thing_name, None)).first()

    def require_binding(self, device: Device) -> AwsThingBinding:
        binding = self.binding(device)
        assert binding is not None
        return binding

    def enrolled(self, device: Device) -> Device:
        """The device under the id that the bridge gave it."""
        return Device(device.serial_number, device.tenant_id, self.require_binding(device).device_id)

    def device_rows(self, device: Device) -> Sequence[DeviceRow]:
        with Session(self.engine) as session:
            return session.exec(
                select(DeviceRow).where(
                    DeviceRow.serial_number == device.serial_number, DeviceRow.tenant_id == device.tenant_id
                )
            ).all()

    def retired(self, device_id: UUID) -> Sequence[RetiredCertificate]:
        with Session(self.engine) as session:
            return session.exec(
                select(RetiredCertificate)
                .where(RetiredCertificate.device_id == device_id)
                .order_by(col(RetiredCertificate.id))
            ).all()

    def alter(self, device: Device, **columns: Any) -> None:
        """Change the row behind the bridge's back."""
        with Session(self.engine) as session, session.begin():
            binding = session.exec(DECIDING_BINDING, params=deciding_names(device.thing_name, None)).one()
            for name, value in columns.items():
                setattr(binding, name, value)

    @contextmanager
    def nothing_written(self, device: Device) -> Iterator[None]:
        """See to it that no row of the device's tenant, in any table, is written meanwhile."""
        before = self.rows_of(device.tenant_id)
        yield
        assert self.rows_of(device.tenant_id) == before

    def rows_of(self, tenant_id: UUID | None) -> list[str]:
        """All that is written of a tenant, as it stands."""
        query = " UNION ALL ".join(
            f"SELECT t::text FROM {table} t WHERE tenant_id IS NOT DISTINCT FROM %(tenant)s"  # noqa: S608
            for table in TABLES
        )
        with self.engine.connect() as connection:
            return sorted(connection.exec_driver_sql(query, {"tenant": tenant_id}).scalars())


async def enrol(http: httpx2.AsyncClient, body: dict[str, Any], *, again: bool = False) -> UUID:
    """Tell of a device, and return the id the bridge knows it by."""
    answer = await http.post(REGISTERED, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["alreadyProvisioned"] is again
    return UUID(answer.json()["deviceId"])

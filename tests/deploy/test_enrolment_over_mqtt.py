"""Devices enrol themselves over MQTT, with the functions of deploy/lambda run by the emulator."""

import asyncio
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from awscrt import mqtt5
from awsiot import mqtt5_client_builder
from sqlmodel import Session
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from api.server import serving_app
from db.api_keys import create_key
from domain.provisioning_status import ProvisioningStatus
from embedded import ACCOUNT, REGION
from embedded.fleet_provisioning import (
    FleetProvisioningError,
    claim_policy,
    prepare_fleet_provisioning,
    registration_sql,
)
from embedded.processes import choose_ports
from embedded.stack import Addresses
from examples.device.device import Endpoint, Identity
from examples.device.enrolment import Claim, Enrolled, EnrolmentError, EnrolmentRefusedError, enrol
from settings import ApiSettings
from tests import ROOT
from tests.deploy.test_terraform import ENROLMENT, document, fixed_statements, source
from tests.harness.bridge import POLICY, Bridge, Device, until
from tests.harness.commands import Commands, command_for
from tests.harness.enrolment import EnrolmentHarness

NAME = "test-acme"
SECONDS = 20.0
NOT_AUTHORIZED = 0x87


class Connection:
    """An MQTT connection of a device, and the messages that it has received."""

    def __init__(self, stack: Addresses, identity: Identity, client_id: str) -> None:
        self.messages: Queue[tuple[str, Any]] = Queue()
        self._connected: Future[None] = Future()
        self._stopped: Future[None] = Future()
        self._client = mqtt5_client_builder.mtls_from_bytes(
            identity.certificate,
            identity.private_key,
            endpoint="localhost",
            port=stack.mqtt_port,
            ca_filepath=stack.ca_file,
            client_id=client_id,
            # Only the first attempt is awaited.
            min_reconnect_delay_ms=60_000,
            on_publish_received=self._on_message,
            on_lifecycle_connection_success=lambda _: self._connected.set_result(None),
            on_lifecycle_connection_failure=lambda failed: self._connected.set_exception(
                PermissionError(str(failed.exception))
            ),
            on_lifecycle_stopped=lambda _: self._stopped.set_result(None),
        )

    def _on_message(self, received: mqtt5.PublishReceivedData) -> None:
        packet = received.publish_packet
        self.messages.put((packet.topic, json.loads(packet.payload)))

    def __enter__(self) -> Self:
        self._client.start()
        try:
            self._connected.result(SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop()
        self._stopped.result(SECONDS)

    def subscribe(self, topic_filter: str) -> int:
        """Subscribe, and return the reason code of the response."""
        wanted = mqtt5.Subscription(topic_filter, mqtt5.QoS.AT_LEAST_ONCE)
        subscribed = self._client.subscribe(mqtt5.SubscribePacket([wanted])).result(SECONDS)
        return int(subscribed.reason_codes[0])

    def publish(self, topic: str, message: dict[str, Any]) -> int:
        """Publish, and return the reason code of the response."""
        packet = mqtt5.PublishPacket(json.dumps(message), mqtt5.QoS.AT_LEAST_ONCE, topic=topic)
        return int(self._client.publish(packet).result(SECONDS).puback.reason_code)


class Either:
    """The API of the bridge, with or without permission for live devices to enrol again."""

    def __init__(self, settings: ApiSettings) -> None:
        self._apps: dict[bool, ASGIApp] = {}
        for allowed in (True, False):
            section = settings.fleet_provisioning.model_copy(update={"allow_reprovision": allowed})
            self._apps[allowed] = create_app(settings.model_copy(update={"fleet_provisioning": section}))
        self.allow_reprovision = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[self.allow_reprovision](scope, receive, send)


@dataclass(frozen=True)
class Site:
    """The devices of one tenant, which enrol with one claim certificate."""

    stack: Addresses
    tenant_id: UUID
    claim: Claim
    api: Either
    bridge: Bridge
    harness: EnrolmentHarness

    def device(self, serial_number: str) -> Device:
        return Device(serial_number, self.tenant_id)

    async def enrol(self, device: Device) -> Enrolled:
        """Enrol a device, and return its certificate."""
        parameters = {"SerialNumber": device.serial_number, "Model": "MX-3", "FirmwareVersion": "1.0"}
        return await asyncio.to_thread(enrol, self.claim, parameters)

    async def enrol_until_active(self, device: Device) -> tuple[Device, Enrolled]:
        """Enrol a device, wait until it is Active with that certificate, and return it with its new id."""
        identity = await self.enrol(device)

        async def active() -> bool:
            binding = self.harness.binding(device)
            return (
                binding is not None
                and binding.provisioning_status is ProvisioningStatus.ACTIVE
                and binding.certificate_arn == self.certificate_arn(identity)
            )

        await until(active, f"{device.thing_name} is Active with the certificate of its enrolment")
        enrolled = self.harness.with_assigned_id(device)

        async def reported() -> bool:
            return "" in self.bridge.shadow_names(enrolled)

        await until(reported, f"{device.thing_name} has a shadow with its status")
        await self.bridge.wait_for_end(enrolled)
        return enrolled, identity

    def certificate_arn(self, identity: Enrolled) -> str:
        return f"{self.harness.location.arn_prefix('iot')}cert/{identity.certificate_id}"

    def connection(self, enrolled: Enrolled) -> Connection:
        """Return a connection of an enrolled device, not yet open."""
        return Connection(self.stack, enrolled.identity, enrolled.thing_name)

    def claim_connection(self, client_id: str) -> Connection:
        """Return a connection with the claim certificate, not yet open."""
        return Connection(self.stack, self.claim.identity, client_id)


@pytest.fixture(scope="session")
def site(stack: Addresses, bridge: Bridge, enrolment: EnrolmentHarness) -> Iterator[Site]:
    """An account in which the devices of a new tenant can enrol."""
    tenant_id, api = uuid4(), Either(ApiSettings.load())
    with Session(bridge.engine) as session, session.begin():
        key = create_key(session, tenant_id, "a test")
    (port,) = choose_ports(0)
    with serving_app(api, port) as url:
        prepared = prepare_fleet_provisioning(
            stack.aws_endpoint_url,
            name=NAME,
            tenant_id=tenant_id,
            api_url=url,
            api_key=key,
            device_policy_name=POLICY,
        )
        claim = Claim(
            Identity(prepared.certificate_pem.encode(), prepared.private_key.encode()),
            prepared.template_name,
            prepared.client_id_prefix,
            Endpoint("localhost", stack.mqtt_port, Path(stack.ca_file).read_bytes()),
        )
        yield Site(stack, tenant_id, claim, api, bridge, enrolment)


@pytest.fixture
def detached_at_once(bridge: Bridge) -> Iterator[None]:
    """Certificates can be deleted at once after they were detached."""
    bridge.emulator.settings(detach_seconds=0)
    yield
    bridge.emulator.default_settings()


@pytest_asyncio.fixture(scope="module")
async def decommissioned(site: Site) -> tuple[Device, Enrolled]:
    """A device that was decommissioned after it had enrolled."""
    device, identity = await site.enrol_until_active(site.device("GONE-1"))
    with site.connection(identity):
        pass
    site.bridge.emulator.settings(detach_seconds=0)
    await site.bridge.send_and_wait(device, device.event("Decommissioned"))
    site.bridge.emulator.default_settings()
    return device, identity


@pytest.fixture
def without_reprovision(site: Site) -> Iterator[None]:
    """ALLOW_REPROVISION is off."""
    site.api.allow_reprovision = False
    yield
    site.api.allow_reprovision = True


# --- The enrolment


async def test_a_device_enrols_itself_and_becomes_active(site: Site) -> None:
    """Its binding is Active with the certificate that it received, and its platform status is reported."""
    device, identity = await site.enrol_until_active(site.device("SELF-1"))
    binding = site.bridge.require_binding(device)
    assert identity.thing_name == device.thing_name == binding.thing_name
    assert binding.provisioned_via_jitp
    (row,) = site.harness.device_rows(device)
    assert (row.model, row.firmware_version) == ("MX-3", "1.0")
    (certificate,) = site.bridge.aws_resources(device).certificates
    assert certificate.arn == binding.certificate_arn
    assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,))


async def test_an_enrolled_device_executes_a_command(site: Site, commands: Commands) -> None:
    """It connects with its certificate and receives the job over MQTT; its report ends the command."""
    device, identity = await site.enrol_until_active(site.device("SELF-2"))
    jobs = f"$aws/things/{device.thing_name}/jobs"
    with site.connection(identity) as connection:
        await asyncio.to_thread(connection.subscribe, f"{jobs}/notify-next")
        command = await commands.send(command_for(device, "reboot"))
        topic, message = await asyncio.to_thread(connection.messages.get, timeout=SECONDS)
        assert topic == f"{jobs}/notify-next"
        assert message["execution"]["jobDocument"]["operation"] == "reboot"
        job_id = message["execution"]["jobId"]
        await asyncio.to_thread(connection.publish, f"{jobs}/{job_id}/update", {"status": "SUCCEEDED"})
        assert (await commands.wait_for_end(command))["status"] == "SUCCEEDED"


async def test_a_device_enrols_from_the_command_line(site: Site, tmp_path: Path) -> None:
    """It prints the Thing name, and stores the certificate and a key that only its owner can read."""
    device = site.device("SELF-3")
    ended = await asyncio.to_thread(run_device, site, device, tmp_path)
    assert ended.stdout == f"{device.thing_name}\n", ended.stderr
    certificate, key = (tmp_path / "device" / f"{device.thing_name}{suffix}" for suffix in (".pem", ".key"))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with Connection(site.stack, Identity.from_files(certificate, key), device.thing_name):
        pass


# --- The denial


async def test_a_decommissioned_device_may_not_enrol_again(
    site: Site, decommissioned: tuple[Device, Enrolled], tmp_path: Path
) -> None:
    """AWS refuses it with AccessDenied; there is no Thing, and nothing is written to the database."""
    device, _ = decommissioned
    with site.harness.no_rows_written(device):
        with pytest.raises(EnrolmentRefusedError) as refused:
            await site.enrol(device)
        ended = await asyncio.to_thread(run_device, site, device, tmp_path)
    assert (refused.value.code, refused.value.reason) == ("AccessDenied", "Access Denied")
    assert (ended.returncode, ended.stderr) == (1, "refused: AccessDenied: Access Denied\n")
    assert site.bridge.aws_resources(device).thing is None


async def test_a_decommissioned_device_cannot_connect(
    site: Site, decommissioned: tuple[Device, Enrolled]
) -> None:
    """Its certificate, with which it connected before, is gone."""
    device, identity = decommissioned
    with pytest.raises(PermissionError), site.connection(identity):
        pass
    assert site.bridge.certificate(site.certificate_arn(identity)) is None
    assert site.bridge.transitions(device)[-1] == ProvisioningStatus.DECOMMISSIONED


async def test_a_claim_certificate_can_do_nothing_but_enrol(site: Site) -> None:
    """It cannot connect as a device, and cannot read or write a device's shadow."""
    device, _ = await site.enrol_until_active(site.device("VICTIM-1"))
    with pytest.raises(PermissionError), site.claim_connection(device.thing_name):
        pass
    shadow = f"$aws/things/{device.thing_name}/shadow"
    before = site.bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"].read()
    with site.claim_connection(f"{site.claim.client_id_prefix}1") as connection:
        assert connection.subscribe(f"{shadow}/update/accepted") == NOT_AUTHORIZED
        report = {"state": {"reported": {"status": "stolen"}}}
        assert connection.publish(f"{shadow}/update", report) == NOT_AUTHORIZED
        other = "$aws/provisioning-templates/another/provision/json"
        assert connection.publish(other, {"certificateOwnershipToken": "x"}) == NOT_AUTHORIZED
    after = site.bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"].read()
    assert json.loads(after)["state"] == json.loads(before)["state"]


async def test_a_deactivated_claim_certificate_cannot_connect(site: Site, bridge: Bridge) -> None:
    """The device reports that it could not connect, which is no refusal of its serial number."""
    created = bridge.iot.create_keys_and_certificate(setAsActive=False)
    identity = Identity(created["certificatePem"].encode(), created["keyPair"]["PrivateKey"].encode())
    claim = replace(site.claim, identity=identity)
    with pytest.raises(EnrolmentError, match="cannot connect") as failed:
        await asyncio.to_thread(enrol, claim, {"SerialNumber": "SELF-4"})
    assert not isinstance(failed.value, EnrolmentRefusedError)


# --- Another enrolment of the same device


@pytest.mark.usefixtures("detached_at_once")
async def test_a_live_device_that_enrols_again_replaces_its_certificate(site: Site) -> None:
    """With ALLOW_REPROVISION it keeps its id, and its first certificate is deleted."""
    device, first = await site.enrol_until_active(site.device("AGAIN-1"))
    again, second = await site.enrol_until_active(device)
    assert again == device

    async def deleted() -> bool:
        return site.bridge.certificate(site.certificate_arn(first)) is None

    await until(deleted, "the first certificate is deleted")
    with pytest.raises(PermissionError), site.connection(first):
        pass
    with site.connection(second):
        pass


@pytest.mark.usefixtures("without_reprovision")
async def test_a_live_device_may_not_enrol_again_without_allow_reprovision(site: Site) -> None:
    """It is refused, and its certificate stays."""
    device, first = await site.enrol_until_active(site.device("ONCE-1"))
    with pytest.raises(EnrolmentRefusedError, match="AccessDenied"):
        await site.enrol(device)
    assert site.bridge.require_binding(device).certificate_arn == site.certificate_arn(first)
    with site.connection(first):
        pass


# --- The prepared account


def test_the_account_is_prepared_as_by_terraform() -> None:
    """The claim certificate has the policy of deploy/terraform, and the rule selects the same events."""
    iot = f"arn:aws:iot:{REGION}:{ACCOUNT}"

    def filled(text: str) -> str:
        return (
            text.replace("${local.iot}", iot)
            .replace("${local.claim_client_id_prefix}", "claim-${var.name}-")
            .replace("${var.name}", NAME)
        )

    of_terraform = [
        {
            "Effect": "Allow",
            "Action": each["actions"],
            "Resource": [filled(text) for text in each["resources"]],
        }
        for each in fixed_statements(document(ENROLMENT, "claim"))
    ]
    assert claim_policy(NAME)["Statement"] == of_terraform
    tenant_id = UUID("01234567-89ab-cdef-0123-456789abcdef")
    (sql,) = re.findall(r"<<-SQL\n(.*?)SQL", source(ENROLMENT), re.DOTALL)
    assert registration_sql(tenant_id) == " ".join(
        sql.replace("${local.thing_prefix}", f"t{tenant_id.hex}-").split()
    )


def test_an_account_without_the_folder_deploy_is_not_prepared(stack: Addresses, tmp_path: Path) -> None:
    """The error names the missing file; an installed package has no such folder."""
    with pytest.raises(FleetProvisioningError, match="needs a clone of the repository"):
        prepare_fleet_provisioning(
            stack.aws_endpoint_url,
            name="other",
            tenant_id=uuid4(),
            api_url="http://localhost",
            api_key="",
            device_policy_name=POLICY,
            deploy=tmp_path,
        )


def run_device(site: Site, device: Device, folder: Path) -> subprocess.CompletedProcess[str]:
    """Enrol a device with the command line of the example, which writes its files to the folder `device`."""
    claim = {"cert": site.claim.identity.certificate, "key": site.claim.identity.private_key}
    for name, content in claim.items():
        (folder / f"claim.{name}").write_bytes(content)
    options = {
        "port": str(site.claim.endpoint.port),
        "ca": site.stack.ca_file,
        "template": site.claim.template_name,
        "client-id-prefix": site.claim.client_id_prefix,
        "claim-cert": str(folder / "claim.cert"),
        "claim-key": str(folder / "claim.key"),
        "serial-number": device.serial_number,
        "save-to": str(folder / "device"),
    }
    return subprocess.run(
        [sys.executable, "-m", "examples.device.enrolment"]
        + [part for name, value in options.items() for part in (f"--{name}", value)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )

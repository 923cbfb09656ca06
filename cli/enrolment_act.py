"""The demo of fleet provisioning: the life of a device that enrols itself over MQTT."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.client import Client

from db.api_keys import create_key
from db.bindings import DECIDING_BINDING, deciding_names
from db.models import AwsThingBinding
from domain.command import Command, CommandTarget, TargetKind
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.names import thing_name
from domain.operator_error import OperatorError
from domain.provisioning_status import ProvisioningStatus
from embedded.fleet_provisioning import (
    ClaimCertificate,
    FleetProvisioningError,
    prepare_fleet_provisioning,
    read_deploy_files,
)
from embedded.stack import Addresses
from examples.device.device import Identity
from orchestration.requests import send_command, send_event
from settings import Settings

_CLONE: Final = Path(__file__).parent.parent
_TEMPLATE: Final = "thingbridge-demo"
_SERIAL_NUMBER: Final = "SELF-0001"
_TIMEOUT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.25


def require_clone() -> None:
    """Check, before anything is started, that the files of fleet provisioning exist.

    Raises:
        OperatorError: they do not: the installed package does not contain them.
    """
    try:
        read_deploy_files()
    except FleetProvisioningError as error:
        raise OperatorError(f"--enrolment: {error}") from None


class EnrolmentAct:
    """The life of one device that enrols itself. The device is a process of its own.

    Args:
        console: prints each step.
        addresses: the embedded servers. The device policy must exist.
        settings: the settings of the running worker.
        client: sends the command, and the event of the decommission.
        engine: the bridge's database.
        api_url: the URL of the HTTP API, which the functions of fleet provisioning call.
        folder: the folder for the files of the device.
    """

    def __init__(
        self,
        console: Console,
        addresses: Addresses,
        settings: Settings,
        client: Client,
        engine: Engine,
        api_url: str,
        folder: Path,
    ) -> None:
        self._console = console
        self._addresses = addresses
        self._settings = settings
        self._client = client
        self._engine = engine
        self._api_url = api_url
        self._folder = folder.absolute()  # the device runs in the clone's folder
        self._tenant_id = uuid4()
        self._thing_name = thing_name(self._tenant_id, _SERIAL_NUMBER)

    async def run(self) -> bool:
        """Run the act, print each step, and return whether each ended as expected.

        Raises:
            OperatorError: fleet provisioning cannot be prepared.
        """
        claim = await asyncio.to_thread(self._prepare)
        self._print(f"fleet provisioning is ready: template {claim.template_name}, one claim certificate")
        enrolled = await asyncio.to_thread(self._enrol, claim)
        if enrolled.returncode:
            return self._fail(f"the device could not enrol: {enrolled.stderr.strip()}")
        self._print(f"a device with the claim certificate enrolled itself over MQTT as {self._thing_name}")
        binding = await self._until(ProvisioningStatus.ACTIVE)
        if binding is None:
            return self._fail("the device was not registered with the bridge")
        self._print(f"the registration function registered it: Active as device {binding.device_id}")
        async with self._device() as wait_for:
            if not await wait_for("connected"):
                return self._fail("the device could not connect with its own certificate")
            await self._command(binding.device_id)
            if not await wait_for("job ended"):
                return self._fail("the device received no job")
            self._print("it connected with its own certificate, and ended the job reboot")
            await self._decommission(binding)
            if await self._until(ProvisioningStatus.DECOMMISSIONED) is None:
                return self._fail("the device was not decommissioned")
            if not await wait_for("refused"):
                return self._fail("the decommissioned device was not refused")
        self._print("it was decommissioned: AWS ended its connection and refused the next")
        again = await asyncio.to_thread(self._enrol, claim)
        refusal = again.stderr.strip()
        if again.returncode != 1 or "AccessDenied" not in refusal:
            return self._fail(f"the decommissioned device must not enrol again: {refusal}")
        self._print(f"it tried to enrol again, and was {refusal}")
        return True

    def _prepare(self) -> ClaimCertificate:
        """Prepare the account for the devices of a new tenant, and install the claim certificate."""
        with Session(self._engine) as session, session.begin():
            key = create_key(session, self._tenant_id, "demo of fleet provisioning")
        try:
            claim = prepare_fleet_provisioning(
                self._addresses.aws_endpoint_url,
                name=_TEMPLATE,
                tenant_id=self._tenant_id,
                api_url=self._api_url,
                api_key=key,
                device_policy_name=self._settings.provisioning.device_policy_name,
            )
        except FleetProvisioningError as error:
            raise OperatorError(str(error)) from None
        identity = Identity(claim.certificate_pem.encode(), claim.private_key.encode())
        identity.write_files(self._folder, "claim")
        return claim

    def _enrol(self, claim: ClaimCertificate) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "examples.device.enrolment", *self._endpoint()]
        command += ["--claim-cert", str(self._folder / "claim.pem")]
        command += ["--claim-key", str(self._folder / "claim.key")]
        command += ["--template", claim.template_name, "--client-id-prefix", claim.client_id_prefix]
        command += ["--serial-number", _SERIAL_NUMBER, "--save-to", str(self._folder)]
        return subprocess.run(  # noqa: S603  # the device of the repository
            command, cwd=_CLONE, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )

    @asynccontextmanager
    async def _device(self) -> AsyncIterator[Callable[[str], Awaitable[bool]]]:
        """Run the device. Yield a function that waits for an event, which the device prints as a line."""
        command = ["-m", "examples.device", *self._endpoint(), "--thing", self._thing_name]
        command += ["--cert", str(self._folder / f"{self._thing_name}.pem")]
        command += ["--key", str(self._folder / f"{self._thing_name}.key")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, cwd=_CLONE, stdout=asyncio.subprocess.PIPE
        )
        output = process.stdout
        assert output is not None  # noqa: S101  # it is a pipe

        async def printed(event: str) -> bool:
            async for line in output:
                if line.startswith(event.encode()):
                    return True
            return False

        async def wait_for(event: str) -> bool:
            try:
                return await asyncio.wait_for(printed(event), _TIMEOUT_SECONDS)
            except TimeoutError:
                return False

        try:
            yield wait_for
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()

    def _endpoint(self) -> list[str]:
        return [
            "--port",
            str(self._addresses.mqtt_port),
            "--ca",
            str(Path(self._addresses.ca_file).absolute()),
        ]

    async def _command(self, device_id: UUID) -> None:
        command = Command(
            correlation_id=uuid4(),
            target=CommandTarget(kind=TargetKind.DEVICE, value=str(device_id)),
            operation="reboot",
            tenant_id=self._tenant_id,
        )
        queue, prefix = self._settings.worker.task_queue, self._settings.jobs.job_id_prefix
        await send_command(self._client, command, queue, prefix, self._thing_name)

    async def _decommission(self, binding: AwsThingBinding) -> None:
        event = LifecycleEvent(
            event_id=uuid4(),
            type=LifecycleEventType.DECOMMISSIONED,
            device_id=binding.device_id,
            tenant_id=self._tenant_id,
            serial_number=_SERIAL_NUMBER,
            occurred_at=datetime.now(UTC),
        )
        await send_event(self._client, event, self._settings.worker.task_queue)

    async def _until(self, status: ProvisioningStatus) -> AwsThingBinding | None:
        """Return the device's binding once it has this status, or None after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while True:
                    binding = await asyncio.to_thread(self._binding)
                    if binding is not None and binding.provisioning_status is status:
                        return binding
                    await asyncio.sleep(_POLL_SECONDS)
        return None

    def _binding(self) -> AwsThingBinding | None:
        with Session(self._engine) as session:
            return session.exec(DECIDING_BINDING, params=deciding_names(self._thing_name, None)).first()

    def _print(self, step: str) -> None:
        self._console.print(escape(step), soft_wrap=True)

    def _fail(self, reason: str) -> bool:
        self._console.print(f"[red]{escape(reason)}[/red]", soft_wrap=True)
        return False

"""The commands on the bindings of devices: `bindings`, `retry`, `erase`."""

from typing import Annotated
from uuid import UUID

import typer

from domain.provisioning_status import ProvisioningStatus


def bindings(
    status: Annotated[
        ProvisioningStatus | None,
        typer.Option(metavar="STATUS", help=f"Only this status: {', '.join(ProvisioningStatus)}."),
    ] = None,
    device: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Only this device, with its transitions.")
    ] = None,
    tenant: Annotated[UUID | None, typer.Option(metavar="UUID", help="Only this tenant's devices.")] = None,
    serial: Annotated[str | None, typer.Option(metavar="SERIAL", help="Only this serial number.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="The number of bindings to list, the newest first.")
    ] = 50,
) -> None:
    """List the bindings of devices, and why they failed.

    A binding is the provisioning status of a device in AWS. Needs DATABASE_URL.
    """
    from settings import DatabaseSettings

    settings = DatabaseSettings.load()

    from cli.binding_records import list_bindings
    from cli.output import standard_output
    from db.bindings import BindingFilter

    matching = BindingFilter(status=status, device_id=device, tenant_id=tenant, serial_number=serial)
    list_bindings(settings, standard_output(), matching, limit=limit)


def retry(
    device_id: Annotated[UUID, typer.Argument(metavar="DEVICE_ID", help="The device that failed.")],
) -> None:
    """Retry the step at which a device failed.

    Fix the cause first: `thingbridge bindings --device DEVICE_ID` shows it, and
    later the progress. Needs DATABASE_URL.
    """
    import asyncio

    from settings import DatabaseSettings

    settings = DatabaseSettings.load()

    from cli.binding_records import retry as send_retry
    from cli.output import standard_output

    asyncio.run(send_retry(settings, standard_output(), device_id))


def erase(
    device_id: Annotated[
        UUID | None, typer.Argument(metavar="DEVICE_ID", help="A device that is Decommissioned.")
    ] = None,
    tenant: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Every decommissioned device of this tenant.")
    ] = None,
) -> None:
    """Erase decommissioned devices from the database.

    This cannot be undone. The serial number stays denied, by its hash under
    IOT_AWS_ERASURE__HASH_KEY. A tenant's devices that are not decommissioned
    are kept, and the exit code is then 1. docs/erasure.md lists what Temporal
    keeps until its retention ends. Needs DATABASE_URL.
    """
    if (device_id is None) == (tenant is None):
        raise typer.BadParameter("name either a device or a --tenant")

    from settings import DatabaseSettings

    settings = DatabaseSettings.load()

    from cli import erasure
    from cli.output import standard_output

    if device_id is not None:
        erasure.erase(settings, standard_output(), device_id)
    elif tenant is not None:
        raise typer.Exit(int(erasure.erase_tenant(settings, standard_output(), tenant) > 0))

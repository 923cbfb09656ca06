"""`thingbridge keys`: who may call the HTTP doors."""

from collections.abc import Iterator, Sequence
from typing import Annotated
from uuid import UUID

import typer

from cli.database import transaction
from cli.output import standard_output
from db.api_keys import create_key, list_keys, revoke_key
from db.models import ApiKeyRow
from domain.names import NO_TENANT


class UnknownKeyError(LookupError):
    """There is no such key."""


app = typer.Typer(
    help="The keys of the HTTP doors: make, list, revoke them. Each command needs DATABASE_URL.",
    no_args_is_help=True,
)


@app.command()
def create(
    tenant: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="The tenant whose devices it is for, and no others.")
    ] = None,
    operator: Annotated[bool, typer.Option("--operator", help="It is for the devices of all.")] = False,
    label: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What `keys list` is to call it by.")
    ] = None,
) -> None:
    """Make a key of a tenant or of an operator, and print it: this once, for only its hash is kept."""
    if (tenant is None) != operator:
        raise typer.BadParameter("either --tenant UUID or --operator is needed")
    if tenant == NO_TENANT:
        raise typer.BadParameter("the zero UUID is no tenant: devices of none are an operator's")
    with transaction() as session:
        key = create_key(session, tenant, label)
    standard_output().print(key, soft_wrap=True, markup=False)


@app.command(name="list")
def list_() -> None:
    """List every key there ever was, the oldest first, by its id and not its text."""
    with transaction() as session:
        lines = list(_listed(list_keys(session)))
    for line in lines or ["there is no key yet: see `thingbridge keys create --help`"]:
        standard_output().print(line, soft_wrap=True, markup=False)


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id, the eight characters after `tb_`.")
    ],
) -> None:
    """Refuse a key from now on; running servers do within IOT_AWS_API__KEY_CACHE_SECONDS."""
    with transaction() as session:
        if revoke_key(session, key_id) is None:
            raise UnknownKeyError(f"there is no key {key_id}: see `thingbridge keys list`")
    standard_output().print(f"{key_id} is revoked", markup=False)


def _listed(keys: Sequence[ApiKeyRow]) -> Iterator[str]:
    if keys:
        yield f"{'id':8}  {'tenant':36}  {'made':10}  {'revoked':10}  label"
    for key in keys:
        whose = str(key.tenant_id or "operator")
        revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else ""
        yield f"{key.id}  {whose:36}  {key.created_at:%Y-%m-%d}  {revoked:10}  {key.label or ''}".rstrip()

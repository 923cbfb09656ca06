"""The commands `keys …`: API keys."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from cli.database import transaction
from cli.output import standard_output
from domain.names import NO_TENANT
from domain.operator_error import OperatorError

if TYPE_CHECKING:
    from db.models import ApiKeyRow


class UnknownKeyError(OperatorError):
    """There is no key with this id."""


app = typer.Typer(
    help="API keys: create, list, revoke. Each command needs DATABASE_URL.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def create(
    tenant: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="A key for the devices of this tenant only.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="An operator's key, for the devices of every tenant.")
    ] = False,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="A name for `keys list`.")] = None,
) -> None:
    """Create a key for a tenant or an operator, and print it.

    It is printed this once: only its hash is stored.
    """
    if (tenant is None) != operator:
        raise typer.BadParameter("either --tenant UUID or --operator is needed")
    if tenant == NO_TENANT:
        raise typer.BadParameter("the zero UUID is not a tenant: devices without one need an --operator key")
    with transaction() as session:
        from db.api_keys import create_key

        key = create_key(session, tenant, label)
    standard_output().print(key, soft_wrap=True, markup=False)


@app.command(name="list")
def list_() -> None:
    """List every key, revoked ones too, the oldest first.

    A key is shown by its id, never by its text.
    """
    with transaction() as session:
        from db.api_keys import list_keys

        lines = list(_lines(list_keys(session)))
    for line in lines or ["there is no key yet: see `thingbridge keys create --help`"]:
        standard_output().print(line, soft_wrap=True, markup=False)


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id, the eight characters after `tb_`.")
    ],
) -> None:
    """Revoke a key.

    Running servers refuse it within IOT_AWS_API__KEY_CACHE_SECONDS.
    """
    with transaction() as session:
        from db.api_keys import revoke_key

        if revoke_key(session, key_id) is None:
            raise UnknownKeyError(f"there is no key {key_id}: see `thingbridge keys list`")
    standard_output().print(f"{key_id} is revoked", markup=False)


def _lines(keys: Sequence["ApiKeyRow"]) -> Iterator[str]:
    if keys:
        yield f"{'id':8}  {'tenant':36}  {'created':10}  {'revoked':10}  label"
    for key in keys:
        tenant = str(key.tenant_id or "operator")
        revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else ""
        yield f"{key.id}  {tenant:36}  {key.created_at:%Y-%m-%d}  {revoked:10}  {key.label or ''}".rstrip()

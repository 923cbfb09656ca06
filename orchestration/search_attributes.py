"""The search attributes of the workflows: an unregistered one would block every workflow."""

from typing import Final

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError

from domain.names import (
    PROVISIONING_STATUS_ATTRIBUTE,
    SEARCH_ATTRIBUTES,
    TENANT_ID_ATTRIBUTE,
    THING_NAME_ATTRIBUTE,
)
from domain.operator_error import OperatorError

TENANT_ID: Final = SearchAttributeKey.for_keyword(TENANT_ID_ATTRIBUTE)
THING_NAME: Final = SearchAttributeKey.for_keyword(THING_NAME_ATTRIBUTE)
PROVISIONING_STATUS: Final = SearchAttributeKey.for_keyword(PROVISIONING_STATUS_ATTRIBUTE)

_KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


class SearchAttributesError(OperatorError):
    """The namespace lacks search attributes; the message holds the command that adds them."""


async def missing_search_attributes(client: Client) -> list[str]:
    """Return the names of the search attributes that are not registered.

    Raises:
        SearchAttributesError: an attribute has another type, or Temporal does not list the attributes.
    """
    try:
        listed = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        raise SearchAttributesError(
            f"Temporal does not list the search attributes of namespace {client.namespace} "
            f"(TEMPORAL_NAMESPACE): {error.message}"
        ) from None
    for name in SEARCH_ATTRIBUTES:
        if listed.custom_attributes.get(name, _KEYWORD) != _KEYWORD:
            found = IndexedValueType.Name(listed.custom_attributes[name])
            raise SearchAttributesError(
                f"search attribute {name} of namespace {client.namespace} is {found}, it must be a Keyword: "
                "remove it with\n"
                f"temporal operator search-attribute remove --namespace {client.namespace} --name {name}\n"
                "then run `thingbridge migrate`"
            )
    return [name for name in SEARCH_ATTRIBUTES if name not in listed.custom_attributes]


async def register_search_attributes(client: Client) -> list[str]:
    """Register the missing search attributes, and return their names.

    Raises:
        SearchAttributesError: this client has no permission; the message has the administrator's command.
    """
    missing = await missing_search_attributes(client)
    if missing:
        try:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(
                    namespace=client.namespace, search_attributes=dict.fromkeys(missing, _KEYWORD)
                )
            )
        except RPCError as error:
            raise SearchAttributesError(
                f"cannot register search attributes ({error.message}); an administrator has to run:\n"
                + registration_command(client, missing)
            ) from None
    return missing


async def require_search_attributes(client: Client) -> None:
    """Check that all search attributes are registered. Without one of them, every workflow would block.

    Raises:
        SearchAttributesError: search attributes are missing; the message has the command to run.
    """
    if missing := await missing_search_attributes(client):
        raise SearchAttributesError(
            f"namespace {client.namespace} lacks search attributes: run `thingbridge migrate`, or\n"
            + registration_command(client, missing)
        )


def registration_command(client: Client, names: list[str]) -> str:
    """Return the commands that register search attributes, on a self-hosted server and on Temporal Cloud."""
    own = " ".join(f"--name {name} --type Keyword" for name in names)
    cloud = " ".join(f"--search-attribute {name}=Keyword" for name in names)
    return (
        f"temporal operator search-attribute create --namespace {client.namespace} {own}\n"
        f"or, at Temporal Cloud, tcld namespace search-attributes add --namespace {client.namespace} {cloud}"
    )

"""Device Shadows: read the classic one, report the status in it, delete all of a Thing."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from aws.clients import AwsClients
from aws.errors import NotFoundError


class Shadows:
    """The shadows of the bridge's Things.

    Args:
        aws: the AWS clients.
    """

    def __init__(self, aws: AwsClients) -> None:
        self._aws = aws

    def read(self, thing_name: str) -> bytes | None:
        """Return the document of a Thing's classic shadow; None where it has none."""
        try:
            return self._aws.call(
                lambda: self._aws.iot_data.get_thing_shadow(thingName=thing_name)["payload"].read()
            )
        except NotFoundError:
            return None

    def report_status(self, thing_name: str, status: str, updated_at: datetime) -> None:
        """Write the status into the reported state of a Thing's classic shadow."""
        document = {"state": {"reported": {"status": status, "updatedAt": updated_at}}}
        self._aws.call(
            self._aws.iot_data.update_thing_shadow, thingName=thing_name, payload=to_json(document)
        )

    def delete_all(self, thing_name: str) -> None:
        """Delete a Thing's named shadows and its classic one, which would otherwise outlive the Thing."""
        for name in self._names(thing_name):
            self._delete(self._aws.iot_data.delete_thing_shadow, thingName=thing_name, shadowName=name)
        self._delete(self._aws.iot_data.delete_thing_shadow, thingName=thing_name)

    def _names(self, thing_name: str) -> list[str]:
        names: list[str] = []
        token: dict[str, str] = {}
        while True:
            try:
                page = self._aws.call(
                    self._aws.iot_data.list_named_shadows_for_thing,
                    thingName=thing_name,
                    **token,  # type: ignore[arg-type]
                )
            except NotFoundError:
                return names
            names += page.get("results", [])
            if not page.get("nextToken"):
                return names
            token = {"nextToken": page["nextToken"]}

    def _delete(self, operation: Callable[..., Any], **shadow: str) -> None:
        with suppress(NotFoundError):
            self._aws.call(operation, **shadow)

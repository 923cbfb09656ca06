"""Device shadows: the differences of ministack from AWS."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ministack.services import iot

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.registry import paged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call, Difference, Forward

_DOCUMENT_LIMIT_BYTES = 8 * 1024


async def update_thing_shadow(call: Call, forward: Forward) -> Response:
    """Refuse a large document."""
    if len(call.body) > _DOCUMENT_LIMIT_BYTES:
        message = "The payload exceeds the maximum size allowed"
        raise AwsError(413, "RequestEntityTooLargeException", message)
    return await forward()


async def list_named_shadows_for_thing(call: Call, _forward: Forward) -> Response:
    """List the existing named shadows in pages."""
    names = sorted(
        name
        for (thing_name, name), shadow in iot._shadows.items()
        if thing_name == call.parameters["thingName"] and name and not shadow.get("deleted")
    )
    page = paged("results", [{"name": name} for name in names], call, key=lambda each: each["name"], size="pageSize")
    results = [each["name"] for each in page.members["results"]]
    return Response.of(page.members | {"results": results, "timestamp": int(time.time())})


def forget(thing_name: str) -> None:
    """Delete the classic shadow of a Thing and its version."""
    iot._shadows.pop((thing_name, ""), None)


DIFFERENCES: Mapping[str, Difference] = {
    "iot-data:UpdateThingShadow": update_thing_shadow,
    "iot-data:ListNamedShadowsForThing": list_named_shadows_for_thing,
}

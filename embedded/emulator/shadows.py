"""Device shadows: the differences of ministack from AWS."""

import time

from ministack.services import iot

from embedded.emulator.calls import AwsError, Call, Forward, Response, difference, paged

_DOCUMENT_LIMIT_BYTES = 8 * 1024


@difference("iot-data:UpdateThingShadow")
async def update_thing_shadow(call: Call, forward: Forward) -> Response:
    """Refuse a large document."""
    if len(call.body) > _DOCUMENT_LIMIT_BYTES:
        message = "The payload exceeds the maximum size allowed"
        raise AwsError(413, "RequestEntityTooLargeException", message)
    return await forward()


@difference("iot-data:ListNamedShadowsForThing")
async def list_named_shadows_for_thing(call: Call, _forward: Forward) -> Response:
    """List the existing named shadows in pages."""
    found = {
        name: name
        for (thing_name, name), shadow in iot._shadows.items()
        if thing_name == call.parameters["thingName"] and name and not shadow.get("deleted")
    }
    return Response.of(paged("results", found, call).members | {"timestamp": int(time.time())})


def forget(thing_name: str) -> None:
    """Delete the classic shadow of a Thing and its version."""
    iot._shadows.pop((thing_name, ""), None)

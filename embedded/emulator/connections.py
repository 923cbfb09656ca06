"""MQTT connections: DeleteConnection, and the end of connections whose certificate is no longer active."""

import asyncio
from contextlib import suppress

from ministack.services import iot

from embedded.emulator.calls import AwsError, Call, Forward, Response, difference

_ADMINISTRATIVE_ACTION = 0x98
"""MQTT 5, section 2.4: the reason code of a disconnection that an operator asked for."""

_ending: set[asyncio.Task[None]] = set()


@difference("iot-data:DeleteConnection")
async def delete_connection(call: Call, _forward: Forward) -> Response:
    """End the connection of a client, and forget its session if the call says so."""
    wanted = call.parameters
    key = (iot.get_account_id(), call.region, wanted["clientId"])
    session = iot._connected_clients.get(key)
    if session is None:
        raise AwsError(404, "ResourceNotFoundException", f"Client {wanted['clientId']} is not connected.")
    await _end(session, _ADMINISTRATIVE_ACTION)
    if wanted.get("cleanSession"):
        iot._persistent_sessions.pop(key, None)
    return Response.of({})


def end_later(certificate_id: str, seconds: float) -> None:
    """End the connections of a certificate after some seconds, unless it is active again by then."""

    async def end() -> None:
        await asyncio.sleep(seconds)
        active = iot._mtls_active_registrations(certificate_id)
        for session in [] if active else list(iot._connected_clients.values()):
            if session.certificate_id == certificate_id:
                await _end(session, iot.RC5_NOT_AUTHORIZED)

    task = asyncio.get_running_loop().create_task(end())
    _ending.add(task)  # the loop itself does not keep it alive
    task.add_done_callback(_ending.discard)


async def _end(session: iot._WSSession, reason: int) -> None:
    session._forced_disconnect_reason = "SERVER_INITIATED_DISCONNECT"
    with suppress(OSError):
        if session.protocol_version == iot.MQTT_5:
            await session.send_bytes(iot._make_disconnect(reason))
        await session._send({"type": "websocket.close", "code": 1000})
    await session.cleanup()

"""The devices of the demo: each Active binding becomes a device that connects over MQTT."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from embedded.aws_client import aws_client
from embedded.stack import Addresses
from examples.device.device import Backoff, Device, Endpoint, Event, EventKind, Outcome
from examples.device.factory import FactoryError, fetch_identity

_BACKOFF: Final = Backoff(least_seconds=0.2, greatest_seconds=2.0)
"""Shorter than a real device's, which must spare the endpoint after an outage: here somebody watches."""
_PROPERTIES: Final = {"firmwareVersion": "1.0.0"}


class ConnectedDevice:
    """One device, and what happened to it."""

    def __init__(self, thing_name: str, addresses: Addresses, endpoint: Endpoint) -> None:
        url = addresses.aws_endpoint_url
        identity = fetch_identity(thing_name, aws_client("iot", url), aws_client("secretsmanager", url))
        self._events: list[Event] = []
        self._device = Device(
            thing_name,
            identity,
            endpoint,
            _execute,
            properties=_PROPERTIES,
            backoff=_BACKOFF,
            on_event=self._events.append,
        )
        self._device.start()

    @property
    def is_connected(self) -> bool:
        """Return whether it is connected."""
        return self._device.is_connected

    @property
    def is_cut_off(self) -> bool:
        """Return whether AWS ended its connection and refused the last attempt to open another."""
        return self._device.refusal is not None and self.find(EventKind.DISCONNECTED) is not None

    def find(self, kind: EventKind, operation: str = "") -> Event | None:
        """Return the first event of a kind, and of the operation of a job, if it has happened."""
        # A copy, because the threads of the device add to the list.
        events = list(self._events)
        return next((event for event in events if (event.kind, event.operation) == (kind, operation)), None)

    def stop(self) -> None:
        """Disconnect."""
        self._device.stop()


class ConnectedDevices:
    """All devices of the demo.

    Args:
        addresses: the embedded servers.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._endpoint = Endpoint("localhost", addresses.mqtt_port, Path(addresses.ca_file).read_bytes())
        self._devices: dict[UUID, ConnectedDevice] = {}

    def connect(self, device_id: UUID, thing_name: str) -> None:
        """Fetch the certificate and key of a Thing as a factory does, and start its device, once."""
        if device_id not in self._devices:
            # A device that is just being decommissioned has no certificate, and then no device.
            with suppress(FactoryError):
                self._devices[device_id] = ConnectedDevice(thing_name, self._addresses, self._endpoint)

    def find(self, device_id: UUID) -> ConnectedDevice | None:
        """Return a device, if it was started."""
        return self._devices.get(device_id)

    def stop(self) -> None:
        """Disconnect all."""
        with ThreadPoolExecutor(max(1, len(self._devices))) as threads:
            list(threads.map(ConnectedDevice.stop, self._devices.values()))


def _execute(_operation: str, _parameters: Mapping[str, Any]) -> Outcome:
    return Outcome("SUCCEEDED", {"applied": "all"})

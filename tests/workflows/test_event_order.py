"""Events that arrive twice, late or out of order lead to the same result."""

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from aws.clients import AwsClients
from domain.device_state import DesiredStatus, DeviceState
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import Bridge, Device, worker_on

DEVICE_ID = UUID(int=1)


@pytest.fixture
def bridge(bridge_on_emulator: Bridge) -> Bridge:
    return bridge_on_emulator


@st.composite
def histories(draw: st.DrawFn) -> list[LifecycleEvent]:
    """Some events of one device, some of them at equal times."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        LifecycleEvent(
            event_id=UUID(int=draw(st.integers(0, 5))),
            type=draw(st.sampled_from(list(LifecycleEventType))),
            device_id=DEVICE_ID,
            tenant_id=None,
            serial_number="SN-1",
            occurred_at=start + timedelta(minutes=draw(st.integers(0, 3))),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]


def state_after(events: list[LifecycleEvent]) -> DeviceState:
    state = DeviceState.before_first_event(events[0])
    for event in events:
        state = state.apply(event)
    return state


@given(histories(), st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_change_the_desired_status(
    events: list[LifecycleEvent], random: object
) -> None:
    """The desired status is the same for every order of the events, with or without repeats."""
    shuffled = [*events, *events[:2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert state_after(events) == state_after(shuffled)


@given(histories())
def test_no_event_ends_a_decommission(events: list[LifecycleEvent]) -> None:
    """A device is decommissioned if one of its events is a decommission, at any time."""
    decommissioned = any(event.is_decommission for event in events)
    assert state_after(events).decommissioned is decommissioned


def test_the_greater_event_id_wins_at_equal_times() -> None:
    """Of two events at the same time, the one with the greater id wins, in either order."""
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def event(number: int, kind: LifecycleEventType) -> LifecycleEvent:
        return LifecycleEvent(
            event_id=UUID(int=number), type=kind, device_id=DEVICE_ID, tenant_id=None, occurred_at=at
        )

    pair = [event(1, LifecycleEventType.ACTIVATED), event(2, LifecycleEventType.SUSPENDED)]
    for order in permutations(pair):
        desired = state_after(list(order)).desired
        assert desired is not None
        assert desired.status is DesiredStatus.SUSPENDED


@pytest.mark.both_emulators
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
async def test_the_shadow_reports_the_newest_status_in_any_order(
    bridge: Bridge, order: tuple[int, ...]
) -> None:
    """The shadow reports the status of the event with the latest time, in each order of arrival."""
    device = Device(f"ORDER-{''.join(map(str, order))}")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    events = [
        device.event("Activated", 1),
        device.event("Reactivated", 2),
        device.event("Suspended", 3),
    ]
    for index in order:
        await bridge.send_and_wait(device, events[index])
    assert reported(bridge, device)["status"] == "Suspended"
    assert reported(bridge, device)["updatedAt"] == "2026-11-23T12:03:00Z"
    assert bridge.require_binding(device).last_shadow_reported_at is not None


@pytest.mark.both_emulators
async def test_a_status_received_before_provisioning_is_applied_after_it(bridge: Bridge) -> None:
    """An event that arrives before the binding is Active is reported when it is, also in a later run."""
    device = Device("EARLY-1")
    await bridge.send_and_wait(device, device.event("Suspended", 5))
    await bridge.send_and_wait(device, device.event("Activated", 4))
    assert bridge.binding(device) is None
    await bridge.send_and_wait(device, device.event("Provisioned", 9))
    assert reported(bridge, device)["status"] == "Suspended"


@pytest.mark.both_emulators
async def test_a_repeated_event_changes_nothing(bridge: Bridge) -> None:
    """Repeated events create no second Thing, certificate, report or outgoing event."""
    device = Device("TWICE-1")
    events = [device.event("Provisioned"), device.event("Activated", 1)]
    await bridge.send_and_wait(device, *events)
    before, resources = bridge.require_binding(device), bridge.aws_resources(device)
    await bridge.send_and_wait(device, *events, *events)
    assert bridge.require_binding(device) == before
    assert bridge.aws_resources(device) == resources
    assert bridge.published(device) == ["AwsThingProvisionedEvent"]


@pytest.mark.both_emulators
async def test_a_decommission_before_the_provisioning_is_final(bridge: Bridge) -> None:
    """A device that is decommissioned before its provisioning gets no Thing, and its serial is denied."""
    device = Device("NEVER-1")
    await bridge.send_and_wait(device, device.event("Decommissioned", 5))
    await bridge.send_and_wait(device, device.event("Provisioned", 9))
    binding = bridge.require_binding(device)
    assert binding.provisioning_status is ProvisioningStatus.DECOMMISSIONED
    assert binding.deleted_at is not None
    assert bridge.aws_resources(device).thing is None
    assert bridge.aws_resources(device).secret_arn is None


async def test_a_decommission_without_a_serial_is_final(bridge: Bridge) -> None:
    """A decommission without a serial is stored, and denies a later provisioning that names the serial."""
    device = Device("NEVER-2")
    await bridge.send_and_wait(device, device.event("Decommissioned", 5, serialNumber=None))
    assert bridge.binding(device) is None
    await bridge.send_and_wait(device, device.event("Provisioned", 1))
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.DECOMMISSIONED


async def test_a_late_decommission_does_not_deny_a_serial_that_is_in_use(bridge: Bridge) -> None:
    """A decommission of an unknown device does not affect another device with its serial."""
    tenant = uuid4()
    active, unknown = Device("SHARED-SERIAL-1", tenant), Device("SHARED-SERIAL-1", tenant)
    await bridge.send_and_wait(active, active.event("Provisioned"))
    await bridge.send_and_wait(unknown, unknown.event("Decommissioned", 5))
    assert bridge.binding(unknown) is None
    assert bridge.require_binding(active).provisioning_status is ProvisioningStatus.ACTIVE


async def test_the_status_report_can_be_switched_off(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """With AUTO_PUSH_LIFECYCLE_STATUS off, the status is stored and no shadow is written."""
    off = settings.shadow.model_copy(update={"auto_push_lifecycle_status": False})
    device = Device("QUIET-1")
    async with worker_on("quiet", settings.model_copy(update={"shadow": off}), bridge, aws, engine):
        for event in (device.event("Provisioned"), device.event("Suspended", 1)):
            await bridge.signal(device, event, queue="quiet")
        await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.require_binding(device).last_shadow_reported_at is None
    assert bridge.shadow_names(device) == []


def reported(bridge: Bridge, device: Device) -> dict[str, str]:
    shadow = json.load(bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"])
    status: dict[str, str] = shadow["state"]["reported"]
    return status

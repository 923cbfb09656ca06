"""The areas of the bridge, which a deployment can enable separately."""

from collections.abc import Collection
from enum import StrEnum
from typing import Final


class Area(StrEnum):
    """A part of the bridge, by its name in the settings."""

    PROVISIONING = "provisioning"
    SHADOW = "shadow"
    JOBS = "jobs"
    FLEET_PROVISIONING = "fleet_provisioning"


ALL_AREAS: Final = tuple(Area)


def handles_device_events(areas: Collection[Area]) -> bool:
    """Return whether one of these areas handles the platform's lifecycle events: all but jobs do."""
    return any(area is not Area.JOBS for area in areas)

"""The areas of the bridge, of which a deployment may take some and leave the rest."""

from collections.abc import Collection
from enum import StrEnum
from typing import Final


class Area(StrEnum):
    """What the bridge does, by the name that the settings call it."""

    PROVISIONING = "provisioning"
    SHADOW = "shadow"
    JOBS = "jobs"
    FLEET_PROVISIONING = "fleet_provisioning"


ALL_AREAS: Final = tuple(Area)


def handles_device_events(areas: Collection[Area]) -> bool:
    """Whether any of these acts on what the platform tells of its devices: jobs alone do not."""
    return any(area is not Area.JOBS for area in areas)

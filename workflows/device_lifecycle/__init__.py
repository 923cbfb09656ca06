"""The workflow `DeviceLifecycle`: one run at a time for each device."""

from workflows.device_lifecycle.presenter import DeviceLifecycleStatus
from workflows.device_lifecycle.workflow import DeviceLifecycle

__all__ = ["DeviceLifecycle", "DeviceLifecycleStatus"]

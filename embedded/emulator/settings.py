"""Delays and quotas of AWS that tests can change."""

from dataclasses import dataclass


@dataclass
class Settings:
    """The delays of AWS's asynchronous operations in seconds, and a quota."""

    detach_seconds: float = 2.0
    """A Thing and a certificate cannot be deleted so long after the two were detached."""
    secret_deletion_seconds: float = 1.0
    """The name of a secret cannot be used again so long after a forced deletion."""
    disconnect_seconds: float = 60.0
    """A connection ends so long after its certificate was deactivated."""
    group_build_seconds: float = 1.0
    """A new dynamic group is BUILDING so long: without Things, and not usable as a job's target."""
    job_rollout_seconds: float = 0.0
    """A job has no executions so long."""
    dynamic_groups_at_most: int = 100


SETTINGS = Settings()
"""The settings of this process. They are not saved."""

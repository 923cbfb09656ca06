"""Delays and quotas of AWS that tests can change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """The delays of AWS's asynchronous operations, and the quotas on the number of resources."""

    detach_seconds: float = 2.0
    """Seconds for which a Thing or certificate cannot be deleted after the two were detached."""
    secret_deletion_seconds: float = 1.0
    """Seconds for which the name of a secret cannot be used again after a forced deletion."""
    disconnect_seconds: float = 60.0
    """Seconds after which a connection ends whose certificate is no longer active."""
    group_build_seconds: float = 1.0
    """Seconds for which a new dynamic group is BUILDING, without Things and not usable as a job's target."""
    job_rollout_seconds: float = 0.0
    """Seconds between CreateJob and the creation of the executions."""
    dynamic_groups_at_most: int = 100
    active_jobs_at_most: int = 100
    """The quota of jobs in progress, for each target selection."""


SETTINGS = Settings()
"""The settings of this process. They are not saved."""

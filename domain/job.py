"""What a command's workflow and activities say to each other. It stands in histories (see `domain.saga`)."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from domain.command import Command
from domain.model import Message


class TargetSelection(StrEnum):
    """Whether a job is for those in its target now, or also for those that come to it."""

    SNAPSHOT = "SNAPSHOT"
    CONTINUOUS = "CONTINUOUS"


class CommandPlan(Message):
    """Whom the job is for, as AWS knows them, and how long and how often it is looked at."""

    target_arn: str
    selection: TargetSelection
    thing_name: str | None = None
    tenant_id: UUID | None = None
    tracking_seconds: float
    poll_seconds: float


class JobOrder(Message):
    """A job to be made."""

    job_id: str
    command: Command
    plan: CommandPlan
    deadline: datetime


class JobWatch(Message):
    """A job to be looked at until it has ended, or the deadline has come."""

    job_id: str
    plan: CommandPlan
    deadline: datetime


class JobCancellation(Message):
    """A job to be cancelled.

    `unconfirmed` is the command where the job may never have been made, and another's may bear its id.
    """

    job_id: str
    plan: CommandPlan
    force: bool
    unconfirmed: Command | None = None


class JobState(Message):
    """How a job was found: for a Thing its execution, for a group the job as a whole.

    `status` is AWS's word for it, or None where there is no such job.
    """

    status: str | None
    over: bool = False
    succeeded: bool = False
    reason: str | None = None
    status_details: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, int] | None = None


class CommandEnd(Message):
    """How a command ended: with an outcome, or for a reason."""

    status: str
    outcome: Literal["succeeded", "windowClosed"] | None = None
    reason: str | None = None
    status_details: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, int] | None = None


class CommandReport(Message):
    """The end of a command, to be told."""

    job_id: str
    command: Command
    end: CommandEnd

"""The messages between a command's workflow and its activities, stored in histories (see `domain.saga`)."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from domain.command import Command
from domain.model import Message


class TargetSelection(StrEnum):
    """The members of its target that a job is for: only the current ones, or also later ones."""

    SNAPSHOT = "SNAPSHOT"
    CONTINUOUS = "CONTINUOUS"


class CommandPlan(Message):
    """The target of a job in AWS, how long the command may run, and how often the job is described."""

    target_arn: str
    selection: TargetSelection
    thing_name: str | None = None
    tenant_id: UUID | None = None
    tracking_seconds: float
    poll_seconds: float


class JobOrder(Message):
    """A job to create."""

    job_id: str
    command: Command
    plan: CommandPlan
    deadline: datetime


class JobWatch(Message):
    """A job to describe repeatedly until it has ended or the deadline is reached."""

    job_id: str
    plan: CommandPlan
    deadline: datetime


class JobCancellation(Message):
    """A job to cancel.

    `unconfirmed` is the command if it is uncertain whether its job was created: another job can have the id.
    """

    job_id: str
    plan: CommandPlan
    force: bool
    unconfirmed: Command | None = None


class JobState(Message):
    """The state of a job: of its execution for a Thing, of the whole job for a group.

    `status` is AWS's status; None where there is no such job.
    """

    status: str | None
    over: bool = False
    succeeded: bool = False
    reason: str | None = None
    status_details: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, int] | None = None


class CommandEnd(Message):
    """The end of a command: an outcome where it succeeded, a reason where it failed."""

    status: str
    outcome: Literal["succeeded", "windowClosed"] | None = None
    reason: str | None = None
    status_details: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, int] | None = None


class CommandReport(Message):
    """The end of a command, to be published."""

    job_id: str
    command: Command
    end: CommandEnd

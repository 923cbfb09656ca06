"""The Temporal workers of one process: their options, the two small workers, and how they are stopped."""

import asyncio
import logging
import shlex
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, TypedDict

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig

from domain.outbox import OUTBOX_SHARDS
from orchestration.sandbox import WORKFLOW_RUNNER

logger = logging.getLogger("thingbridge.worker")

# One for each shard, and one for the round of a new publisher while the old one is stopping.
EVENT_THREADS: Final = OUTBOX_SHARDS + 1
"""The number of threads that publish events."""

# Describing a job takes one or two calls: even at the highest rate only a few are in progress at once.
JOB_THREADS: Final = 8
"""The number of threads that describe jobs."""

Activities = Sequence[Callable[..., Any]]


class ProcessOptions(TypedDict):
    """The options that all workers of the process share."""

    graceful_shutdown_timeout: timedelta
    deployment_config: WorkerDeploymentConfig | None


class WorkerOptions(ProcessOptions):
    """The options of the main worker."""

    activity_executor: ThreadPoolExecutor
    max_concurrent_activities: int
    max_concurrent_local_activities: int
    max_concurrent_workflow_tasks: int
    max_cached_workflows: int
    max_task_queue_activities_per_second: float
    max_heartbeat_throttle_interval: timedelta


def process_options(shutdown_grace: timedelta, deployment: str, build_id: str | None) -> ProcessOptions:
    """Return the options that all workers of the process share.

    Args:
        shutdown_grace: how long work in progress may take to complete after a stop.
        deployment: the name of the worker deployment.
        build_id: the version of this process's code; None: worker versioning is off.
    """
    versioning = None
    if build_id is not None:
        versioning = WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(deployment, build_id),
            use_worker_versioning=True,
            # A failed device's run can stay open for weeks, and every change of a workflow is replay-safe.
            default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
        )
    return ProcessOptions(graceful_shutdown_timeout=shutdown_grace, deployment_config=versioning)


def main_worker_options(
    shared: ProcessOptions,
    *,
    activities: int,
    workflow_tasks: int,
    cached_workflows: int,
    activities_per_second: float,
) -> WorkerOptions:
    """Return the options of the main worker.

    Args:
        shared: the options of the process.
        activities: how many activities run at once.
        workflow_tasks: how many workflow tasks run at once.
        cached_workflows: how many workflows stay in memory between their tasks.
        activities_per_second: the rate limit of the task queue, for all workers on it together.
    """
    return WorkerOptions(
        activity_executor=ThreadPoolExecutor(activities, "activity"),
        max_concurrent_activities=activities,
        max_concurrent_local_activities=activities,
        max_concurrent_workflow_tasks=workflow_tasks,
        max_cached_workflows=cached_workflows,
        max_task_queue_activities_per_second=activities_per_second,
        # A heartbeat carries the progress of its attempt: a worker that is killed loses one second of it.
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        **shared,
    )


def event_worker(
    client: Client,
    task_queue: str,
    workflow: type,
    activities: Activities,
    interceptors: Sequence[Interceptor],
    shared: ProcessOptions,
) -> Worker:
    """Return the worker that publishes events, not yet started."""
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[workflow],
        workflow_runner=WORKFLOW_RUNNER,
        interceptors=interceptors,
        activities=activities,
        activity_executor=ThreadPoolExecutor(EVENT_THREADS, "events"),
        max_concurrent_activities=EVENT_THREADS,
        max_cached_workflows=OUTBOX_SHARDS,
        **shared,
    )


def job_worker(
    client: Client,
    task_queue: str,
    activities: Activities,
    interceptors: Sequence[Interceptor],
    jobs_per_second: float,
    shared: ProcessOptions,
) -> Worker:
    """Return the worker that describes jobs, not yet started; its rate limit is for all workers together."""
    return Worker(
        client,
        task_queue=task_queue,
        activities=activities,
        interceptors=interceptors,
        activity_executor=ThreadPoolExecutor(JOB_THREADS, "jobs"),
        max_concurrent_activities=JOB_THREADS,
        max_task_queue_activities_per_second=jobs_per_second,
        **shared,
    )


def log_command_to_make_current(client: Client, deployment: str, build_id: str) -> None:
    """Log the shell command that makes this version of the worker current."""
    command = (
        f"temporal worker deployment set-current-version --yes --namespace {client.namespace} "
        f"--deployment-name {shlex.quote(deployment)} --build-id {shlex.quote(build_id)}"
    )
    logger.info(
        "worker versioning is on: nothing runs until this version is made current",
        extra={"command": command},
    )


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets, in place of ending the process."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop

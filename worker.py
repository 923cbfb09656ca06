"""The composition root of the worker: settings become clients, workers and a running process."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlmodel import Session
from temporalio.client import Client
from temporalio.worker import Worker

from activities.attempt import AttemptInterceptor
from activities.events import EventActivities
from aws.clients import AwsClients, FleetSecret
from aws.credential_refresh import refresh_in_background
from aws.credentials import FleetCredentials
from aws.location import RETRY_SECONDS, discover
from composition import compose_activities, compose_events, compose_job_watch, open_sink, workflows_of
from db.aws_credentials import record_check
from db.aws_location import save_location
from db.engine import open_engine
from db.erasure import require_hash_key
from db.migrate import require_current
from domain.area import Area
from domain.enrolment import AwsLocation
from domain.names import event_queue, job_queue
from domain.operator_error import OperatorError
from observability import telemetry
from observability.gauges import measure_credentials, measure_outbox, stop_measuring
from observability.metrics import CREDENTIALS_REFRESHES
from observability.metrics_server import serving_metrics
from orchestration import workers
from orchestration.client import connect, end_process
from orchestration.interceptors import LogContextInterceptor
from orchestration.requests import start_publishers
from orchestration.sandbox import WORKFLOW_RUNNER
from orchestration.schedules import schedules, upsert_schedules
from orchestration.search_attributes import require_search_attributes
from settings import Settings
from settings import Worker as WorkerSettings
from workflows.outbox_publisher import OutboxPublisher

logger = logging.getLogger("thingbridge.worker")

INTERCEPTORS: Final = (LogContextInterceptor(), AttemptInterceptor())
"""The interceptors of every worker."""


def compose_worker(settings: Settings, client: Client, aws: AwsClients, engine: Engine) -> Worker:
    """Return the main worker, not yet started."""
    return Worker(
        client,
        task_queue=settings.worker.task_queue,
        workflows=workflows_of(settings.worker.areas),
        activities=compose_activities(settings, client, aws, engine),
        workflow_runner=WORKFLOW_RUNNER,
        interceptors=INTERCEPTORS,
        **worker_options(settings.worker),
    )


def worker_options(own: WorkerSettings) -> workers.WorkerOptions:
    """Return the options of the main worker."""
    return workers.main_worker_options(
        _process_options(own),
        activities=own.max_concurrent_activities,
        workflow_tasks=own.max_concurrent_workflow_tasks,
        cached_workflows=own.max_cached_workflows,
        activities_per_second=own.max_activities_per_second,
    )


def _process_options(own: WorkerSettings) -> workers.ProcessOptions:
    grace = timedelta(seconds=own.shutdown_grace_seconds)
    return workers.process_options(grace, own.deployment_name, own.build_id)


def compose_event_worker(settings: Settings, client: Client, events: EventActivities) -> Worker:
    """Return the worker that publishes events, not yet started."""
    queue, options = event_queue(settings.worker.task_queue), _process_options(settings.worker)
    activities = [events.publish_outbox]
    return workers.event_worker(client, queue, OutboxPublisher, activities, INTERCEPTORS, options)


def compose_job_worker(settings: Settings, client: Client, aws: AwsClients, engine: Engine) -> Worker:
    """Return the worker that describes jobs, not yet started."""
    queue, options = job_queue(settings.worker.task_queue), _process_options(settings.worker)
    rate = settings.jobs.status_poll_batch_size / settings.jobs.status_poll_interval_seconds
    activities = compose_job_watch(settings, aws, engine)
    return workers.job_worker(client, queue, activities, INTERCEPTORS, rate, options)


def open_database(settings: Settings) -> Engine:
    """Return the bridge's database, with a connection for each thread of the process's workers."""
    pool_size = settings.worker.max_concurrent_activities + workers.EVENT_THREADS
    return open_engine(settings.database_url.get_secret_value(), pool_size=pool_size)


def open_aws(settings: Settings) -> AwsClients:
    """Return the AWS clients of the process's workers.

    Raises:
        AwsConfigurationError: there is no region.
    """
    arn = settings.credentials.fleet_credential_secret_arn
    credentials = FleetCredentials(arn, FleetSecret(arn).read, _count_refresh) if arn else None
    threads = settings.worker.max_concurrent_activities + workers.JOB_THREADS
    # boto3 reads AWS_DEFAULT_REGION only; AWS's other SDKs and its runtimes use AWS_REGION.
    return AwsClients(threads, os.environ.get("AWS_REGION"), credentials)


def _count_refresh(succeeded: bool) -> None:
    CREDENTIALS_REFRESHES.add(None, "refresh", result="ok" if succeeded else "error")


def _store(engine: Engine, subject: str, write: Callable[[Session], None]) -> bool:
    """Run a write in a transaction, and return whether it succeeded."""
    try:
        with Session(engine) as session, session.begin():
            write(session)
    except SQLAlchemyError as error:
        logger.warning("%s not stored: %s", subject, error)
        return False
    return True


async def discover_location(
    aws: AwsClients, engine: Engine, account_id: str | None, retry_seconds: float = RETRY_SECONDS
) -> None:
    """Find the AWS location of this worker, and store it for the HTTP endpoints, which never call AWS."""

    def store(location: AwsLocation) -> bool:
        return _store(engine, "AWS location", lambda session: save_location(session, location))

    await discover(aws, account_id, store, retry_seconds)


def keep_credentials(
    credentials: FleetCredentials, engine: Engine, *, interval: timedelta, first_within: timedelta
) -> AbstractAsyncContextManager[None]:
    """Refresh the AWS keys in the background, and store each result for the HTTP endpoints."""

    def record(session: Session) -> None:
        record_check(
            session,
            credentials.secret_arn,
            checked_at=credentials.checked_at,
            fetched_at=credentials.fetched_at,
            error=credentials.error,
        )

    return refresh_in_background(
        credentials,
        lambda: _store(engine, "result of reading the AWS keys", record),
        interval=interval,
        first_within=first_within,
    )


async def require_ready(settings: Settings, client: Client, engine: Engine) -> None:
    """Check the schema, the hash key and the search attributes.

    Raises:
        SchemaOutdatedError, WrongHashKeyError, SearchAttributesError: the message has what to do first.
    """
    await asyncio.to_thread(require_current, engine)
    if settings.erasure.retention_days is not None:
        await asyncio.to_thread(_require_hash_key, engine, settings)
    await require_search_attributes(client)


def _require_hash_key(engine: Engine, settings: Settings) -> None:
    with Session(engine) as session:
        require_hash_key(session, settings.erasure.hashing)


@asynccontextmanager
async def background_services(
    settings: Settings, client: Client, aws: AwsClients, engine: Engine
) -> AsyncIterator[Sequence[Worker]]:
    """Run the services beside the main worker: AWS keys, metrics, the other workers and the schedules.

    Raises:
        ScheduleError: a schedule cannot be created or updated.
    """
    own = settings.worker
    async with AsyncExitStack() as running:
        if aws.credentials is not None:
            interval = timedelta(minutes=settings.credentials.rotation_check_interval_minutes)
            first_within = timedelta(seconds=settings.credentials.initial_fetch_timeout_seconds)
            await running.enter_async_context(
                keep_credentials(aws.credentials, engine, interval=interval, first_within=first_within)
            )
        sink = running.enter_context(open_sink(settings.events, aws))
        running.callback(stop_measuring)
        measure_credentials(lambda: aws.credentials_age_seconds, lambda: aws.credentials_ready)
        measure_outbox(engine, sink.kind, sink.fingerprint)
        others = [compose_event_worker(settings, client, compose_events(settings.events, engine, sink))]
        if Area.JOBS in own.areas:
            others.append(compose_job_worker(settings, client, aws, engine))
        for worker in others:
            await running.enter_async_context(worker)
        await start_publishers(client, own.task_queue)
        # Schedules of the areas that are disabled here are not changed: another deployment may use them.
        wanted = schedules(
            own.task_queue,
            poll_interval_seconds=settings.shadow.poll_interval_seconds,
            claim_check_interval_hours=settings.fleet_provisioning.rotation_check_interval_hours,
            areas=own.areas,
        )
        await upsert_schedules(client, wanted)
        if Area.FLEET_PROVISIONING in own.areas:
            discovery = discover_location(aws, engine, settings.fleet_provisioning.account_id)
            running.push_async_callback(_cancel, asyncio.create_task(discovery))
        yield others


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def run_worker(settings: Settings, client: Client, stop: asyncio.Event) -> None:
    """Run the workers until `stop` is set, then accept no new work and complete what is in progress.

    Raises:
        SchemaOutdatedError, WrongHashKeyError, SearchAttributesError, ScheduleError, AwsConfigurationError:
            the worker cannot start; the message has what to do first.
    """
    own = settings.worker
    engine = open_database(settings)
    try:
        await require_ready(settings, client, engine)
        aws = await asyncio.to_thread(open_aws, settings)
        main_worker = compose_worker(settings, client, aws, engine)
        async with background_services(settings, client, aws, engine) as others, main_worker:
            if own.build_id is not None:
                workers.log_command_to_make_current(client, own.deployment_name, own.build_id)
            logger.info(
                "worker started",
                extra={
                    "task_queue": own.task_queue,
                    "areas": own.areas,
                    "namespace": client.namespace,
                    "address": client.service_client.config.target_host,
                },
            )
            await stop.wait()
            logger.info("worker stopping: completing the work in progress")
            # All at once: otherwise the last worker would accept work while the first is stopping.
            await asyncio.gather(*(worker.shutdown() for worker in (main_worker, *others)))
        logger.info("worker stopped")
    finally:
        engine.dispose()


async def serve(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    stop, metrics = workers.stop_on_signals(), settings.telemetry
    with ExitStack() as serving:
        if metrics.metrics_port is not None:
            serving.enter_context(serving_metrics(metrics.metrics_host, metrics.metrics_port))
        await run_worker(settings, await connect(settings.encryption.decoded_keys), stop)


def configure_telemetry(settings: Settings) -> None:
    """Configure logs, metrics and traces of a worker's process."""
    measured = settings.telemetry.metrics_port is not None
    telemetry.configure(settings.log.level, settings.log.format, measured=measured)


def main() -> None:
    """Run `python worker.py`, which is the same as `thingbridge worker`."""
    try:
        settings = Settings.load()
        configure_telemetry(settings)
        asyncio.run(serve(settings))
    except (OperatorError, OperationalError) as error:
        sys.stderr.write(f"error: {error}\n")
        end_process(2)
    end_process(0)


if __name__ == "__main__":
    main()

"""Composition root of the worker: settings become clients, clients activities, activities a Worker."""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypedDict, TypeVar

from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlmodel import Session
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import Worker, WorkerDeploymentConfig

from activities.attempt import AttemptInterceptor
from activities.bindings import BindingActivities
from activities.certificates import CertificateActivities
from activities.claim_certificates import ClaimCertificateActivities
from activities.command_groups import CommandGroupActivities
from activities.commands import CommandActivities
from activities.device_states import DeviceStateActivities
from activities.erasure import ErasureActivities
from activities.events import EventActivities
from activities.secrets import SecretActivities
from activities.shadow_deltas import ShadowDeltaActivities
from activities.shadows import ShadowActivities
from activities.teardown import TeardownActivities
from activities.things import ThingActivities
from aws.certificates import Certificates
from aws.clients import AwsClients, AwsConfigurationError, FleetSecret
from aws.credentials import FleetCredentials
from aws.errors import AwsError
from aws.groups import ThingGroups
from aws.jobs import Jobs
from aws.secrets import Secrets
from aws.shadows import Shadows
from aws.things import Things
from db.aws_credentials import record_check
from db.aws_location import save_location
from db.engine import open_engine
from db.erasure import WrongHashKeyError, require_hash_key
from db.migrate import SchemaOutdatedError, require_current
from domain.area import Area, handles_device_events
from domain.enrolment import AwsLocation
from domain.names import event_queue, job_queue
from domain.outbox import OUTBOX_SHARDS
from events.publisher import Publisher
from events.sink import EventSink
from events.sinks.eventbridge import EventBridgeSink
from events.sinks.log import LogSink
from events.sinks.sns import SnsSink
from events.sinks.webhook import open_webhook
from observability import telemetry
from observability.exposition import MetricsAddressError
from observability.gauges import measure_credentials, measure_outbox, stop_measuring
from observability.metrics import CREDENTIALS_REFRESHES
from observability.metrics_server import serving_metrics
from orchestration.client import TemporalUnreachableError, connect, end_process
from orchestration.interceptors import LogContextInterceptor
from orchestration.requests import send_command, send_event, start_publishers
from orchestration.sandbox import WORKFLOW_RUNNER
from orchestration.schedules import ScheduleError, schedules, upsert_schedules
from orchestration.search_attributes import SearchAttributesError, require_search_attributes
from settings import Credentials, Events, InvalidSettingsError, Settings
from settings import Worker as WorkerSettings
from workflows.claim_certificate_check import ClaimCertificateCheck
from workflows.command_group_sweep import CommandGroupSweep
from workflows.device_command import DeviceCommand
from workflows.device_lifecycle import DeviceLifecycle
from workflows.erasure_sweep import ErasureSweep
from workflows.outbox_publisher import OutboxPublisher
from workflows.shadow_delta_poll import ShadowDeltaPoll

logger = logging.getLogger("thingbridge.worker")

T = TypeVar("T")

REFUSALS: Final = (
    InvalidSettingsError,
    SchemaOutdatedError,
    SearchAttributesError,
    ScheduleError,
    WrongHashKeyError,
    TemporalUnreachableError,
    AwsConfigurationError,
    MetricsAddressError,
    OperationalError,
)
"""Why a worker does not start: each says what is missing and what to do."""

# One for each shard, and one more for the round that takes over from a publisher just stopping.
_EVENT_THREADS: Final = OUTBOX_SHARDS + 1
_PLACE_RETRY_SECONDS: Final = 30
# The longest wait for what failed: keys that are missing hold up everything, stale ones may soon.
_KEYS_RETRY_SECONDS: Final = 30
# A look is a call or two, and even at the highest rate there is a few are under way at once.
_JOB_THREADS: Final = 8


class _Shared(TypedDict):
    """What the process's workers have in common."""

    graceful_shutdown_timeout: timedelta
    deployment_config: WorkerDeploymentConfig | None


class WorkerOptions(_Shared):
    """How the worker of the sagas works."""

    activity_executor: ThreadPoolExecutor
    max_concurrent_activities: int
    max_concurrent_local_activities: int
    max_concurrent_workflow_tasks: int
    max_cached_workflows: int
    max_task_queue_activities_per_second: float
    max_heartbeat_throttle_interval: timedelta


def workflows_of(areas: Collection[Area]) -> list[type]:
    """The workflows of these areas, but for the publisher of events, which has a worker of its own."""
    workflows: list[type] = [ErasureSweep]
    if handles_device_events(areas):
        workflows.append(DeviceLifecycle)
    if Area.SHADOW in areas:
        workflows.append(ShadowDeltaPoll)
    if Area.JOBS in areas:
        workflows += [DeviceCommand, CommandGroupSweep]
    if Area.FLEET_PROVISIONING in areas:
        workflows.append(ClaimCertificateCheck)
    return workflows


def compose_activities(
    settings: Settings, client: Client, aws: AwsClients, engine: Engine
) -> Sequence[Callable[..., Any]]:
    """The activities of the areas there are, wired to their clients."""
    areas = settings.worker.areas
    days = settings.erasure.retention_days
    erasure = ErasureActivities(engine, settings.erasure.hashing, timedelta(days=days) if days else None)
    activities: list[Callable[..., Any]] = [erasure.erase_expired]
    if handles_device_events(areas):
        activities += _compose_lifecycle(settings, aws, engine)
    if Area.SHADOW in areas:
        activities += _compose_deltas(settings, client, aws, engine)
    if Area.JOBS in areas:
        groups = CommandGroupActivities(
            engine, ThingGroups(aws), unused_after=timedelta(hours=settings.jobs.job_tracking_ttl_hours)
        )
        commands = _compose_commands(settings, aws, engine)
        activities += [
            commands.prepare_command,
            commands.create_job,
            commands.cancel_job,
            commands.publish_command_end,
            groups.sweep_command_groups,
        ]
    if Area.FLEET_PROVISIONING in areas:
        activities += _compose_claims(settings, client, engine)
    return activities


def _compose_lifecycle(settings: Settings, aws: AwsClients, engine: Engine) -> Sequence[Callable[..., Any]]:
    # The whole saga wherever devices' events are heeded: what has a binding is also decommissioned there.
    provisioning, areas = settings.provisioning, settings.worker.areas
    bindings = BindingActivities(engine)
    states = DeviceStateActivities(
        engine,
        push_status=settings.shadow.auto_push_lifecycle_status and Area.SHADOW in areas,
        provisions=Area.PROVISIONING in areas,
        step_retry_seconds=provisioning.step_retry_seconds,
    )
    thing_service = Things(aws)
    certificate_service = Certificates(aws, policy_name=provisioning.device_policy_name)
    secret_service = Secrets(
        aws, name_template=provisioning.secret_name_template, kms_key_id=provisioning.secret_kms_key_id
    )
    secrets = SecretActivities(secret_service)
    certificates = CertificateActivities(bindings, certificate_service, secret_service)
    shadow_service = Shadows(aws)
    things = ThingActivities(bindings, thing_service, certificate_service, Jobs(aws), shadow_service)
    shadows = ShadowActivities(engine, shadow_service)
    teardown = TeardownActivities(bindings, thing_service, certificate_service, secret_service)
    return (
        states.apply_event,
        bindings.resume_binding,
        bindings.mark_failed,
        bindings.record_error,
        bindings.close_binding,
        things.ensure_thing,
        things.erase_thing,
        certificates.issue_certificate,
        certificates.attach_certificate,
        certificates.activate_certificate,
        certificates.revoke_certificates,
        certificates.erase_retired_certificates,
        secrets.erase_secret,
        shadows.report_status,
        teardown.plan_teardown,
    )


def _compose_deltas(
    settings: Settings, client: Client, aws: AwsClients, engine: Engine
) -> Sequence[Callable[..., Any]]:
    deltas = ShadowDeltaActivities(
        engine,
        Shadows(aws),
        partial(
            send_command,
            client,
            task_queue=settings.worker.task_queue,
            job_id_prefix=settings.jobs.job_id_prefix,
        ),
        page_size=settings.shadow.poll_batch_size,
        job_id_prefix=settings.jobs.job_id_prefix,
        starts_commands=Area.JOBS in settings.worker.areas,
    )
    return deltas.next_delta_pages, deltas.poll_delta_page, deltas.start_delta_commands


def _compose_claims(settings: Settings, client: Client, engine: Engine) -> Sequence[Callable[..., Any]]:
    enrolled = settings.fleet_provisioning
    claims = ClaimCertificateActivities(
        engine,
        partial(send_event, client, task_queue=settings.worker.task_queue),
        warning_window=timedelta(days=enrolled.expiry_warning_window_days),
        page_size=enrolled.rotation_check_batch_size,
    )
    return claims.warn_of_expiring_claims, claims.follow_up_enrolments


def _compose_commands(settings: Settings, aws: AwsClients, engine: Engine) -> CommandActivities:
    jobs = settings.jobs
    return CommandActivities(
        engine,
        Jobs(aws),
        ThingGroups(aws),
        job_id_prefix=jobs.job_id_prefix,
        tracking=timedelta(hours=jobs.job_tracking_ttl_hours),
        poll=timedelta(seconds=jobs.status_poll_interval_seconds),
    )


def compose_worker(settings: Settings, client: Client, aws: AwsClients, engine: Engine) -> Worker:
    """The worker of the sagas, not yet running."""
    own = settings.worker
    return Worker(
        client,
        task_queue=own.task_queue,
        workflows=workflows_of(own.areas),
        activities=compose_activities(settings, client, aws, engine),
        workflow_runner=WORKFLOW_RUNNER,
        interceptors=[LogContextInterceptor(), AttemptInterceptor()],
        **worker_options(own),
    )


def worker_options(own: WorkerSettings) -> WorkerOptions:
    """How the settings have the worker of the sagas work."""
    return WorkerOptions(
        activity_executor=ThreadPoolExecutor(own.max_concurrent_activities, "activity"),
        max_concurrent_activities=own.max_concurrent_activities,
        max_concurrent_local_activities=own.max_concurrent_activities,
        max_concurrent_workflow_tasks=own.max_concurrent_workflow_tasks,
        max_cached_workflows=own.max_cached_workflows,
        max_task_queue_activities_per_second=own.max_activities_per_second,
        # A heartbeat carries how far its attempt has come: a worker that is killed costs a second of that.
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        **_shared(own),
    )


@contextmanager
def open_sink(settings: Events, aws: AwsClients) -> Iterator[EventSink]:
    """The sink that is set."""
    match settings:
        case Events(sink="webhook", webhook_url=SecretStr() as url):
            with open_webhook(url.get_secret_value(), settings.webhook_secrets) as webhook:
                yield webhook
        case Events(sink="eventbridge", event_bus_name=str(bus)):
            yield EventBridgeSink(aws, bus)
        case Events(sink="sns", topic_arn=str(topic)):
            yield SnsSink(aws, topic)
        case _:
            yield LogSink()


def compose_events(settings: Events, engine: Engine, sink: EventSink) -> EventActivities:
    """What sends events to a sink."""
    publisher = Publisher(
        engine,
        sink,
        park_after=timedelta(hours=settings.park_after_hours),
        retention=timedelta(days=settings.retention_days),
    )
    return EventActivities(publisher)


def compose_event_worker(settings: Settings, client: Client, events: EventActivities) -> Worker:
    """The worker that sends events, not yet running."""
    own = settings.worker
    return Worker(
        client,
        task_queue=event_queue(own.task_queue),
        workflows=[OutboxPublisher],
        workflow_runner=WORKFLOW_RUNNER,
        interceptors=[LogContextInterceptor(), AttemptInterceptor()],
        activities=[events.publish_outbox],
        activity_executor=ThreadPoolExecutor(_EVENT_THREADS, "events"),
        max_concurrent_activities=_EVENT_THREADS,
        max_cached_workflows=OUTBOX_SHARDS,
        **_shared(own),
    )


def compose_job_worker(settings: Settings, client: Client, aws: AwsClients, engine: Engine) -> Worker:
    """The worker that looks at jobs, not yet running: so many an interval, for all workers together."""
    own, jobs = settings.worker, settings.jobs
    commands = _compose_commands(settings, aws, engine)
    return Worker(
        client,
        task_queue=job_queue(own.task_queue),
        activities=[commands.watch_job],
        interceptors=[LogContextInterceptor(), AttemptInterceptor()],
        activity_executor=ThreadPoolExecutor(_JOB_THREADS, "jobs"),
        max_concurrent_activities=_JOB_THREADS,
        max_task_queue_activities_per_second=jobs.status_poll_batch_size / jobs.status_poll_interval_seconds,
        **_shared(own),
    )


def _shared(own: WorkerSettings) -> _Shared:
    deployment = None
    if own.build_id is not None:
        deployment = WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(own.deployment_name, own.build_id),
            use_worker_versioning=True,
            # A failed device's run may stay open for weeks, and every change of a workflow is replay-safe.
            default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
        )
    return _Shared(
        graceful_shutdown_timeout=timedelta(seconds=own.shutdown_grace_seconds),
        deployment_config=deployment,
    )


def open_database(settings: Settings) -> Engine:
    """The bridge's database, with a connection for each thread of the process's workers."""
    return open_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.worker.max_concurrent_activities + _EVENT_THREADS,
    )


def open_aws(settings: Settings) -> AwsClients:
    """The clients of AWS for the process's workers.

    Raises:
        AwsConfigurationError: there is no region.
    """
    # boto3 itself reads AWS_DEFAULT_REGION alone; AWS's other SDKs and its runtimes say AWS_REGION.
    return AwsClients(
        settings.worker.max_concurrent_activities + _JOB_THREADS,
        os.environ.get("AWS_REGION"),
        compose_credentials(settings.credentials),
    )


def _require_hash_key(engine: Engine, settings: Settings) -> None:
    with Session(engine) as session:
        require_hash_key(session, settings.erasure.hashing)


async def discover_location(
    aws: AwsClients, engine: Engine, account_id: str | None, retry_seconds: float = _PLACE_RETRY_SECONDS
) -> None:
    """Find out where in AWS this worker is, and write it down for the HTTP doors, however long that takes.

    Args:
        aws: the clients whose place it is.
        engine: the bridge's database.
        account_id: the account as it is set; None has AWS say it.
        retry_seconds: how long to wait where AWS or the database does not answer.
    """

    def keep(place: AwsLocation) -> None:
        with Session(engine) as session, session.begin():
            save_location(session, place)

    while True:
        try:
            place = await asyncio.to_thread(aws.find_location, account_id)
            await _to_its_end(keep, place)
            logger.info("place in AWS found", extra=place.model_dump())
        except (AwsError, SQLAlchemyError) as error:
            logger.warning("the place in AWS is not known yet, no device can enrol: %s", error)
            await asyncio.sleep(retry_seconds)
        else:
            return


async def _to_its_end(work: Callable[[T], None], argument: T) -> None:
    """Have a thread do some work; where that is cancelled, only once it is done and its connection free."""
    working = asyncio.ensure_future(asyncio.to_thread(work, argument))
    try:
        await asyncio.shield(working)
    finally:
        await asyncio.wait([working])


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def require_ready(settings: Settings, client: Client, engine: Engine) -> None:
    """Refuse to start where the bridge cannot work.

    Raises:
        SchemaOutdatedError, WrongHashKeyError, SearchAttributesError: what must be done before it may start.
    """
    await asyncio.to_thread(require_current, engine)
    if settings.erasure.retention_days is not None:
        await asyncio.to_thread(_require_hash_key, engine, settings)
    await require_search_attributes(client)


def compose_credentials(own: Credentials) -> FleetCredentials | None:
    """The keys of every AWS client of this process; None where boto3's default chain has them."""
    arn = own.fleet_credential_secret_arn
    return FleetCredentials(arn, FleetSecret(arn).read, _count_refresh) if arn else None


def _count_refresh(well: bool) -> None:
    CREDENTIALS_REFRESHES.add(None, "refresh", result="ok" if well else "error")


@asynccontextmanager
async def keep_credentials(
    credentials: FleetCredentials, engine: Engine, *, interval: timedelta, first_within: timedelta
) -> AsyncIterator[None]:
    """Read the keys again and again meanwhile, and write down for the HTTP doors how that goes.

    Args:
        credentials: the keys.
        engine: the bridge's database.
        interval: how long after a good read the next one follows; after a failed one it does so sooner.
        first_within: how long to wait for the end of the first read before going on without.
    """
    checked = asyncio.Event()

    def noted() -> bool:
        try:
            with Session(engine) as session, session.begin():
                record_check(
                    session,
                    credentials.secret_arn,
                    checked_at=credentials.checked_at,
                    fetched_at=credentials.fetched_at,
                    error=credentials.error,
                )
        except SQLAlchemyError as error:
            logger.warning("how reading the AWS keys went was not written down: %s", error)
            return False
        return True

    async def keep() -> None:
        failures = 0
        while True:
            well = await asyncio.to_thread(credentials.refresh)
            checked.set()
            well = await asyncio.to_thread(noted) and well
            failures = 0 if well else failures + 1
            soon = timedelta(seconds=min(2.0**failures, _KEYS_RETRY_SECONDS))
            await asyncio.sleep((interval if well else min(soon, interval)).total_seconds())

    keeping = asyncio.create_task(keep())
    try:
        await asyncio.wait_for(checked.wait(), first_within.total_seconds())
    except TimeoutError:
        logger.warning(
            "the secret with the AWS keys is not to be had yet: starting without, AWS is not called"
        )
    try:
        yield
    finally:
        keeping.cancel()


@asynccontextmanager
async def companions(
    settings: Settings, client: Client, aws: AwsClients, engine: Engine
) -> AsyncIterator[Sequence[Worker]]:
    """What the worker of the sagas needs beside it: AWS keys, the workers of the other queues, schedules.

    Raises:
        ScheduleError: what must be done before it may start.
    """
    own = settings.worker
    async with AsyncExitStack() as at_work:
        if aws.credentials is not None:
            keeping = keep_credentials(
                aws.credentials,
                engine,
                interval=timedelta(minutes=settings.credentials.rotation_check_interval_minutes),
                first_within=timedelta(seconds=settings.credentials.initial_fetch_timeout_seconds),
            )
            await at_work.enter_async_context(keeping)
        sink = at_work.enter_context(open_sink(settings.events, aws))
        at_work.callback(stop_measuring)
        measure_credentials(lambda: aws.credentials_age_seconds, lambda: aws.credentials_ready)
        measure_outbox(engine, sink.kind, sink.fingerprint)
        workers = [compose_event_worker(settings, client, compose_events(settings.events, engine, sink))]
        if Area.JOBS in own.areas:
            workers.append(compose_job_worker(settings, client, aws, engine))
        for worker in workers:
            await at_work.enter_async_context(worker)
        await start_publishers(client, own.task_queue)
        # Those of areas that are not here stay as they are: another deployment may run them.
        await upsert_schedules(
            client,
            schedules(
                own.task_queue,
                poll_interval_seconds=settings.shadow.poll_interval_seconds,
                claim_check_interval_hours=settings.fleet_provisioning.rotation_check_interval_hours,
                areas=own.areas,
            ),
        )
        if Area.FLEET_PROVISIONING in own.areas:
            account_id = settings.fleet_provisioning.account_id
            learning = asyncio.create_task(discover_location(aws, engine, account_id))
            at_work.push_async_callback(_cancel, learning)
        yield workers


async def run_worker(settings: Settings, client: Client, stop: asyncio.Event) -> None:
    """Work until told to stop; then take nothing new, and give what is at work time to end.

    Raises:
        SchemaOutdatedError, WrongHashKeyError, SearchAttributesError, ScheduleError, AwsConfigurationError:
            what must be done before it may start.
    """
    own = settings.worker
    engine = open_database(settings)
    try:
        await require_ready(settings, client, engine)
        aws = await asyncio.to_thread(open_aws, settings)
        worker = compose_worker(settings, client, aws, engine)
        async with companions(settings, client, aws, engine) as beside, worker:
            if own.build_id is not None:
                logger.info(
                    "worker versioning is on: nothing runs until this version is made current",
                    extra={"command": _command_to_make_current(client, own.deployment_name, own.build_id)},
                )
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
            logger.info("worker stopping: finishing what is at work")
            # At once: one after the other, the last would go on taking work while the first finishes.
            await asyncio.gather(*(each.shutdown() for each in (worker, *beside)))
        logger.info("worker stopped")
    finally:
        engine.dispose()


def _command_to_make_current(client: Client, deployment: str, build_id: str) -> str:
    return (
        f"temporal worker deployment set-current-version --yes --namespace {client.namespace} "
        f"--deployment-name {shlex.quote(deployment)} --build-id {shlex.quote(build_id)}"
    )


async def serve(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    stop, shown = set_by_signals(), settings.telemetry
    with ExitStack() as serving:
        if shown.metrics_port is not None:
            serving.enter_context(serving_metrics(shown.metrics_host, shown.metrics_port))
        await run_worker(settings, await connect(settings.encryption.in_use), stop)


def configure_telemetry(settings: Settings) -> None:
    """Set up what a worker's process says of itself."""
    telemetry.configure(
        settings.log.level, settings.log.format, measured=settings.telemetry.metrics_port is not None
    )


def set_by_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets, in place of ending the process."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


def main() -> None:
    """`python worker.py`: the same as `thingbridge worker`."""
    try:
        settings = Settings.load()
        configure_telemetry(settings)
        asyncio.run(serve(settings))
    except REFUSALS as error:
        sys.stderr.write(f"error: {error}\n")
        end_process(2)
    end_process(0)


if __name__ == "__main__":
    main()

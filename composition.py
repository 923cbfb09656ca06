"""The workflows and activities of each area of a deployment: settings become values of constructors.

One function for each group of activities; `worker` puts the results into Temporal workers.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine
from temporalio.client import Client

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
from aws.clients import AwsClients
from aws.groups import ThingGroups
from aws.jobs import Jobs
from aws.secrets import Secrets
from aws.shadows import Shadows
from aws.things import Things
from domain.area import Area, handles_device_events
from events.publisher import Publisher
from events.sink import EventSink
from events.sinks.eventbridge import EventBridgeSink
from events.sinks.log import LogSink
from events.sinks.sns import SnsSink
from events.sinks.webhook import open_webhook
from orchestration.requests import send_command, send_event
from settings import Events, Settings
from workflows.claim_certificate_check import ClaimCertificateCheck
from workflows.command_group_sweep import CommandGroupSweep
from workflows.device_command import DeviceCommand
from workflows.device_lifecycle import DeviceLifecycle
from workflows.erasure_sweep import ErasureSweep
from workflows.shadow_delta_poll import ShadowDeltaPoll


def workflows_of(areas: Collection[Area]) -> list[type]:
    """Return the workflows of these areas for the main worker; the publisher of events has its own worker."""
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
    """Return the activities of the configured areas for the main worker."""
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
    # All steps, even without the provisioning area: a device that has a binding can still be decommissioned.
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


def compose_job_watch(settings: Settings, aws: AwsClients, engine: Engine) -> Sequence[Callable[..., Any]]:
    """Return the activity that describes jobs, which has a task queue of its own."""
    commands = _compose_commands(settings, aws, engine)
    return [commands.watch_job]


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


@contextmanager
def open_sink(settings: Events, aws: AwsClients) -> Iterator[EventSink]:
    """Open the event sink of the settings."""
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
    """Return the activities that publish events to a sink."""
    publisher = Publisher(
        engine,
        sink,
        park_after=timedelta(hours=settings.park_after_hours),
        retention=timedelta(days=settings.retention_days),
    )
    return EventActivities(publisher)

"""The bindings in the database: listing them, and retrying a device that failed."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from uuid import UUID

from rich.console import Console
from sqlmodel import Session, col, select

from cli.database import open_database
from cli.output import shown_time
from db.bindings import BindingFilter, newest_binding
from db.models import AwsThingBinding, BindingTransition
from domain.operator_error import OperatorError
from orchestration.client import connect
from orchestration.requests import send_retry
from settings import DatabaseSettings


class UnknownDeviceError(OperatorError):
    """The bridge has no binding for the device."""


async def retry(settings: DatabaseSettings, console: Console, device_id: UUID) -> None:
    """Send `retry` to a device's workflow.

    Raises:
        UnknownDeviceError: there is no such device, so nothing was sent.
    """
    with open_database(settings) as engine, Session(engine) as session:
        binding = newest_binding(session, device_id)
    if binding is None:
        raise UnknownDeviceError(f"device {device_id} has no binding: see `thingbridge bindings`")
    client = await connect(settings.encryption.decoded_keys)
    workflow_id = await send_retry(client, device_id, settings.worker.task_queue)
    console.print(f"retry sent to {workflow_id}, whose binding is {binding.provisioning_status}")


def list_bindings(
    settings: DatabaseSettings, console: Console, matching: BindingFilter, *, limit: int
) -> None:
    """Print the matching bindings, the newest first; a single device's with its ARNs and transitions.

    Each is one line, which a terminal may wrap: an id that is cut cannot be copied.
    """
    newest_first = select(AwsThingBinding).order_by(col(AwsThingBinding.created_at).desc()).limit(limit + 1)
    with open_database(settings) as engine, Session(engine) as session:
        found = session.exec(newest_first.where(*matching.conditions)).all()
        transitions = session.exec(
            select(BindingTransition)
            .where(BindingTransition.device_id == matching.device_id)
            .order_by(col(BindingTransition.id))
        ).all()
    if not found:
        lines = iter(["no binding matches" if matching.conditions else "there is no binding yet"])
    elif matching.device_id:
        lines = chain(_binding_lines(found), _resource_lines(found), _transition_lines(transitions))
    else:
        lines = _binding_lines(found[:limit])
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if len(found) > limit:
        console.print(f"the newest {limit} of more: see --limit")


def _binding_lines(bindings: Sequence[AwsThingBinding]) -> Iterator[str]:
    width = max(len(binding.thing_name or "") for binding in bindings)
    yield f"{'device':36}  {'status':14}  {'since':20}  Thing"
    for binding in bindings:
        since = shown_time(binding.modified_at or binding.created_at)
        thing = f"{binding.thing_name or '':{width}}"
        failure = f"{binding.failure_code}: {binding.failure_reason}" if binding.failure_code else ""
        yield f"{binding.device_id}  {binding.provisioning_status:14}  {since}  {thing}  {failure}".rstrip()


def _resource_lines(bindings: Sequence[AwsThingBinding]) -> Iterator[str]:
    for binding in bindings:
        yield from filter(None, (binding.thing_arn, binding.certificate_arn, binding.certificate_secret_arn))


def _transition_lines(transitions: Sequence[BindingTransition]) -> Iterator[str]:
    """Yield the changes of status, below the run that made them."""
    for (actor, run_id), changes in groupby(transitions, lambda each: (each.actor, each.run_id)):
        yield ""
        yield f"{actor}, run {run_id}" if run_id else actor
        for each in changes:
            yield f"  {shown_time(each.occurred_at)}  {each.to_status:14}  {each.reason or ''}".rstrip()

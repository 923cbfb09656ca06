"""Each attempt of an activity checks its time before a request to AWS, and maps its error for Temporal."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.attempt import AttemptInterceptor, application_error, record_progress
from aws.errors import aws_error
from aws.guard import before_request


class InThread(ActivityInboundInterceptor):
    """Runs the activity in a thread, with a copy of the context, as Temporal's worker does."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        await asyncio.to_thread(self._work)


async def attempt(work: Callable[[], None], *, allowed: timedelta) -> list[tuple[object, ...]]:
    """Run one attempt, and return its heartbeats."""
    heartbeats: list[tuple[object, ...]] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: heartbeats.append(details)
    environment.info = replace(
        environment.info, start_to_close_timeout=allowed, heartbeat_timeout=timedelta(seconds=10)
    )
    wrapped = AttemptInterceptor().intercept_activity(InThread(work))
    given = ExecuteActivityInput(fn=work, args=(), executor=None, headers={})
    await environment.run(wrapped.execute_activity, given)
    return heartbeats


def answer(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "DoIt",
    )


async def test_a_request_in_a_thread_sends_the_progress() -> None:
    """The heartbeat before each request carries the newest progress."""

    def work() -> None:
        before_request.get()()
        record_progress(7)
        before_request.get()()

    assert await attempt(work, allowed=timedelta(seconds=45)) == [(), (7,)]


async def test_an_attempt_without_time_sends_no_request() -> None:
    """The error is retryable at once: the next attempt continues."""
    with pytest.raises(ApplicationError) as raised:
        await attempt(lambda: before_request.get()(), allowed=timedelta(microseconds=1))
    error = raised.value
    assert (error.type, error.non_retryable, error.next_retry_delay) == ("AttemptTooSlow", False, None)


@pytest.mark.parametrize(
    ("code", "status", "kind", "permanent"),
    [
        ("ThrottlingException", 400, "ThrottlingException", False),
        ("ResourceNotFoundException", 500, "ResourceNotFoundException", False),
        ("ExpiredToken", 403, "ExpiredToken", False),
        ("VersionConflictException", 409, "VersionConflictException", False),
        ("ResourceNotFoundException", 404, "ResourceNotFoundException", True),
        ("AccessDeniedException", 403, "AccessDenied", True),
        ("LimitExceededException", 410, "QuotaExceeded", True),
        ("Anything", 400, "RefusedByAws", True),
    ],
)
def test_an_error_of_aws_is_retried_only_if_that_can_help(
    code: str, status: int, kind: str, permanent: bool
) -> None:
    """What is permanent says what an operator can do, what is retried has a delay."""
    failed = aws_error(answer(code, status))
    error = application_error(failed)
    assert (error.type, error.non_retryable, error.next_retry_delay is None) == (kind, permanent, permanent)
    remedy = failed.failure_code.remedy if failed.failure_code else ""
    assert error.message == f"DoIt: {code} ({status}): no" + (f". {remedy}" if remedy else "")
    assert str(failed) == error.message

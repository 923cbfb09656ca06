"""What an activity that failed is to be called: its code, and a sentence for an operator."""

from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from domain.failure import FailureCode


def failure_of(error: ActivityError, retried_seconds: float) -> tuple[str, str]:
    """The code and the reason: its own where no retry mends it, else that the retries ran out.

    Args:
        error: the failure.
        retried_seconds: how long it was retried at most.
    """
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        return cause.type or FailureCode.UNEXPECTED, cause.message
    last = cause
    if isinstance(cause, TemporalTimeoutError) and cause.cause is not None:
        last = cause.cause
    what = f"{last.type}: {last.message}" if isinstance(last, ApplicationError) else str(last)
    code = FailureCode.RETRIES_EXHAUSTED
    return (
        code,
        f"{error.activity_type} was retried for {retried_seconds:g} s, last with {what}. {code.remedy}",
    )

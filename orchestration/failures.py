"""What an activity that failed is to be called: its code, and a sentence for an operator."""

from typing import Final

from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from domain.failure import CREDENTIALS_NOT_READY, FailureCode

_CODES: Final = frozenset(code.value for code in FailureCode)


def failure_of(error: ActivityError, retried_seconds: float) -> tuple[str, str]:
    """The code and the reason: its own where no retry mends it, else that the retries ran out.

    An answer of AWS's that no step was prepared for has AWS's code, which bears no remedy.

    Args:
        error: the failure.
        retried_seconds: how long it was retried at most.
    """
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        if cause.type is None or cause.type in _CODES:
            return cause.type or FailureCode.UNEXPECTED, cause.message
        return FailureCode.REFUSED_BY_AWS, f"{cause.message}. {FailureCode.REFUSED_BY_AWS.remedy}"
    last = _last(error)
    what = f"{last.type}: {last.message}" if isinstance(last, ApplicationError) else str(last)
    code = FailureCode.RETRIES_EXHAUSTED
    return (
        code,
        f"{error.activity_type} was retried for {retried_seconds:g} s, last with {what}. {code.remedy}",
    )


def lacks_credentials(error: ActivityError) -> bool:
    """Whether it was last retried because the bridge has no keys for AWS."""
    last = _last(error)
    return isinstance(last, ApplicationError) and last.type == CREDENTIALS_NOT_READY


def raise_if_cancelled(error: ActivityError) -> None:
    """Let the cancellation of the whole run pass: it is nothing that went wrong with the activity."""
    if is_cancelled_exception(error):
        raise error


def _last(error: ActivityError) -> BaseException | None:
    """What the last attempt failed with."""
    cause = error.cause
    return cause.cause if isinstance(cause, TemporalTimeoutError) and cause.cause is not None else cause

"""The classification of failed activities: a code and a reason for operators."""

from typing import Final

from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from domain.failure import CREDENTIALS_NOT_READY, FailureCode

_CODES: Final = frozenset(code.value for code in FailureCode)


def failure_of(error: ActivityError, retried_seconds: float) -> tuple[str, str]:
    """Return the code of a failure, and its reason, which includes what an operator can do.

    A permanent error has its own code, or RefusedByAws if its code is only AWS's. Every other error was
    retried until the limit, and becomes RetriesExhausted.

    Args:
        error: the failure.
        retried_seconds: the retry limit of the activity.
    """
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        if cause.type is None or cause.type in _CODES:
            return cause.type or FailureCode.UNEXPECTED, cause.message
        return FailureCode.REFUSED_BY_AWS, f"{cause.message}. {FailureCode.REFUSED_BY_AWS.remedy}"
    last = _last_failure(error)
    what = f"{last.type}: {last.message}" if isinstance(last, ApplicationError) else str(last)
    what = what.removesuffix(".")  # a remedy, and many a message of AWS, ends with a full stop
    code = FailureCode.RETRIES_EXHAUSTED
    return (
        code,
        f"{error.activity_type} was retried for {retried_seconds:g} s, last with {what}. {code.remedy}",
    )


def lacks_credentials(error: ActivityError) -> bool:
    """Return whether the last attempt failed because the bridge has no AWS keys."""
    last = _last_failure(error)
    return isinstance(last, ApplicationError) and last.type == CREDENTIALS_NOT_READY


def raise_if_cancelled(error: ActivityError) -> None:
    """Raise the error again if the activity failed because the run was cancelled.

    Raises:
        ActivityError: the run was cancelled; nothing is wrong with the activity.
    """
    if is_cancelled_exception(error):
        raise error


def _last_failure(error: ActivityError) -> BaseException | None:
    """Return the failure of the last attempt; a timeout of all attempts has it as its cause."""
    cause = error.cause
    return cause.cause if isinstance(cause, TemporalTimeoutError) and cause.cause is not None else cause

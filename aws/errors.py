"""AWS's errors: one table from an error code to the exception that is raised for it.

    StepError (domain.failure)
    └── AwsError
        ├── ThrottledError              retryable: AWS limits the rate
        ├── UnavailableError            retryable: AWS failed, or did not answer
        ├── ConflictError               retryable: the resource was changed, or is not in the required state
        ├── CredentialsRejectedError    retryable: AWS rejects the keys, which may be rotated
        ├── CredentialsNotReadyError    retryable: the bridge has no keys yet
        ├── NotFoundError
        ├── AlreadyExistsError
        ├── AccessDeniedError
        ├── QuotaExceededError
        ├── InvalidRequestError
        ├── InvalidParameterError
        ├── RejectedError               every other error response
        └── InvalidCallError            botocore rejects the parameters of the call

Each exception defines if a retry can help, the failure code that an operator sees, and the result in metrics.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from domain.failure import CREDENTIALS_NOT_READY, FailureCode, StepError


class AwsError(StepError):
    """A call to AWS that failed. The message ends with what an operator can do, if no retry helps.

    Args:
        code: AWS's error code, or the bridge's own code if there is no response.
        message: the operation and AWS's message.
    """

    retryable: ClassVar[bool] = False
    """True if the same call can succeed later."""
    failure_code: ClassVar[FailureCode | None] = None
    """The code that an operator sees if no retry helps; None for the error code itself."""
    result: ClassVar[str] = "error"
    """The label `result` in metrics of the call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message}. {self.failure_code.remedy}" if self.failure_code else message)
        self.code = code
        self.message = message

    @property
    def kind(self) -> str:
        """The code that an operator sees: the failure code, or else the error code."""
        return self.failure_code or self.code


class ThrottledError(AwsError):
    """AWS limits the rate of this call."""

    retryable = True
    result = "throttled"


class UnavailableError(AwsError):
    """AWS failed with a server error, or did not answer."""

    retryable = True


class ConflictError(AwsError):
    """The resource was changed, or is not yet in the state that the call requires. A retry reads it again."""

    retryable = True
    result = "conflict"


class CredentialsRejectedError(AwsError):
    """AWS rejects the keys or the signature; rotated keys or a corrected clock fix this."""

    retryable = True
    result = "credentials"


class CredentialsNotReadyError(AwsError):
    """The bridge has no keys for AWS yet, so no request was sent."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(
            CREDENTIALS_NOT_READY, "the secret with the AWS keys has not been read yet: see the worker's log"
        )


class NotFoundError(AwsError):
    """The resource that the call names does not exist."""

    result = "not_found"


class AlreadyExistsError(AwsError):
    """Another resource has this name."""

    result = "exists"


class AccessDeniedError(AwsError):
    """The bridge's role lacks the permission."""

    failure_code = FailureCode.ACCESS_DENIED
    result = "denied"


class QuotaExceededError(AwsError):
    """The account has reached a quota, which can also be one of operations in progress."""

    failure_code = FailureCode.QUOTA_EXCEEDED
    result = "quota"


class InvalidRequestError(AwsError):
    """AWS refuses the request in the current state of the resource, for some time or permanently."""

    failure_code = FailureCode.REFUSED_BY_AWS
    result = "refused"


class InvalidParameterError(AwsError):
    """AWS refuses a value of the request."""

    failure_code = FailureCode.REFUSED_BY_AWS


class RejectedError(AwsError):
    """AWS refuses the request with a code that is not in the table."""

    failure_code = FailureCode.REFUSED_BY_AWS


class InvalidCallError(AwsError):
    """botocore rejects the parameters before it sends the request. This is a fault of the bridge."""

    failure_code = FailureCode.UNEXPECTED


_CODES: Final[Mapping[type[AwsError], tuple[str, ...]]] = {
    ThrottledError: (
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "ProvisionedThroughputExceededException",
        "SlowDown",
    ),
    CredentialsRejectedError: (
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    ),
    NotFoundError: ("ResourceNotFoundException",),
    AlreadyExistsError: ("ResourceAlreadyExistsException", "ResourceExistsException"),
    ConflictError: (
        "CertificateConflictException",
        "CertificateStateException",
        "ConflictException",
        "ConflictingResourceUpdateException",
        "DeleteConflictException",
        "VersionConflictException",
    ),
    AccessDeniedError: (
        "AccessDenied",
        "AccessDeniedException",
        "ForbiddenException",
        "UnauthorizedException",
    ),
    QuotaExceededError: ("LimitExceededException", "ServiceQuotaExceededException"),
    InvalidRequestError: ("InvalidQueryException", "InvalidRequestException"),
    InvalidParameterError: ("InvalidParameter", "ParameterValueInvalid", "ValidationException"),
}
ERRORS: Final[Mapping[str, type[AwsError]]] = {
    code: error for error, codes in _CODES.items() for code in codes
}
"""The exception for each error code that the bridge handles."""


def error_for(code: str, status: int) -> type[AwsError]:
    """Return the exception class for an error response of AWS.

    Args:
        code: AWS's error code; empty if there is none.
        status: the HTTP status, which decides if the code is not in the table.
    """
    if status == 429:
        return ThrottledError
    known = ERRORS.get(code)
    if known is ThrottledError:
        return known
    # A server error is retried, whatever its code is.
    if status >= 500:
        return UnavailableError
    if known is not None:
        return known
    return AccessDeniedError if status in {401, 403} else RejectedError


def aws_error(error: ClientError | BotoCoreError) -> AwsError:
    """Return the exception for an exception of botocore."""
    if isinstance(error, ClientError):
        response: dict[str, Any] = dict(error.response)
        fault = response.get("Error", {})
        code = fault.get("Code", "Unknown")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = f"{error.operation_name}: {code} ({status}): {fault.get('Message', '')}".rstrip(": ")
        return error_for(code, status)(code, message)
    if isinstance(error, ParamValidationError):
        # Its message quotes the parameters, which can contain a private key.
        return InvalidCallError("ParamValidationError", "botocore rejects the parameters of the call")
    return UnavailableError(type(error).__name__, f"no answer from AWS ({type(error).__name__})")


def result_label(code: str, status: int) -> str:
    """Return the label `result` of a call for metrics: `ok`, or the label of its exception."""
    return "ok" if status < 300 else error_for(code, status).result

"""One device: it connects over MQTT 5 with its certificate, reports its shadow and executes its jobs."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal

from awscrt import mqtt5, mqtt_request_response
from awsiot import ServiceStreamOptions, V2ServiceException, iotjobs, iotshadow, mqtt5_client_builder
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

APPLY_DESIRED_STATE: Final = "shadow.applyDesiredState"
"""The operation of the job by which thingbridge sends a change of the desired state."""

_REQUEST_TIMEOUT_SECONDS: Final = 10
_RETRY_SECONDS: Final = 5.0
_KEEP_ALIVE_SECONDS: Final = 60
_STREAMS: Final = 1
_RESPONSES: Final = 4
"""The response topics to which the device subscribes at one time. The SDK replaces the oldest unused one."""

_DETAILS_AT_MOST: Final = 10
_DETAIL_NAME_LENGTH_AT_MOST: Final = 128
_DETAIL_LENGTH_AT_MOST: Final = 1024
"""The quotas of AWS for the status details of a job execution."""

_REFUSALS: Final = frozenset(
    {
        mqtt5.ConnectReasonCode.BAD_USERNAME_OR_PASSWORD,
        mqtt5.ConnectReasonCode.BANNED,
        mqtt5.ConnectReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
        mqtt5.ConnectReasonCode.NOT_AUTHORIZED,
    }
)
_CLOSED_WITHOUT_ANSWER: Final = "AWS_ERROR_MQTT_UNEXPECTED_HANGUP"
"""AWS closes the connection of an inactive certificate without a CONNACK packet."""
_TLS_FAILED: Final = "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE"

_ENDED_BY_AWS: Final = frozenset(
    {
        iotjobs.RejectedErrorCode.INVALID_STATE_TRANSITION,
        iotjobs.RejectedErrorCode.RESOURCE_NOT_FOUND,
        iotjobs.RejectedErrorCode.TERMINAL_STATE_REACHED,
        iotjobs.RejectedErrorCode.VERSION_MISMATCH,
    }
)
_SHADOW_RETRIED: Final = frozenset({429, 500})
_NO_SHADOW: Final = 404


@dataclass(frozen=True)
class Identity:
    """The certificate of a device and its private key, as PEM."""

    certificate: bytes
    private_key: bytes = field(repr=False)

    @classmethod
    def from_files(cls, certificate: Path, private_key: Path) -> Identity:
        """Read both files.

        Raises:
            OSError: a file cannot be read.
        """
        return cls(certificate.read_bytes(), private_key.read_bytes())

    def write_files(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both to files that only their owner can read, and return the two paths.

        Args:
            folder: the folder, which is created if it does not exist.
            name: the name of the files, without `.pem` and `.key`.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        certificate, private_key = folder / f"{name}.pem", folder / f"{name}.key"
        for path, content in ((certificate, self.certificate), (private_key, self.private_key)):
            path.unlink(missing_ok=True)  # an earlier file may be readable by others
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        return certificate, private_key

    def check(self) -> None:
        """Check that the key is the certificate's. The SDK's own errors do not say what is wrong.

        Raises:
            ValueError: one of them is not PEM, or they differ.
        """
        try:
            public_key = x509.load_pem_x509_certificate(self.certificate).public_key()
        except ValueError:
            raise ValueError("the certificate is not an X.509 certificate as PEM") from None
        try:
            own_key = load_pem_private_key(self.private_key, password=None).public_key()
        except (TypeError, ValueError):
            raise ValueError("the private key is not an unencrypted private key as PEM") from None
        if own_key != public_key:
            raise ValueError("the private key is not the key of the certificate")


@dataclass(frozen=True)
class Endpoint:
    """The MQTT endpoint of an account."""

    host: str
    port: int = 8883
    ca: bytes | None = None
    """The certificate of the endpoint's authority, as PEM; None for the authorities of the system."""

    def check(self) -> None:
        """Check the certificate of the authority.

        Raises:
            ValueError: it is not PEM.
        """
        if self.ca is None:
            return
        try:
            x509.load_pem_x509_certificates(self.ca)
        except ValueError:
            raise ValueError("the CA file contains no X.509 certificate as PEM") from None


@dataclass(frozen=True)
class Backoff:
    """The delays between attempts to connect: they double, with jitter, from the least to the greatest."""

    least_seconds: float = 1.0
    greatest_seconds: float = 128.0


@dataclass(frozen=True)
class Outcome:
    """The end of a job, and details as AWS stores them with the execution."""

    status: Literal["SUCCEEDED", "FAILED", "REJECTED"]
    details: Mapping[str, str] = field(default_factory=dict)

    def stored_details(self) -> dict[str, str]:
        """Return the details as AWS stores them: it refuses empty and longer ones, and control characters."""
        kept: dict[str, str] = {}
        for name, value in self.details.items():
            key = re.sub(r"[^a-zA-Z0-9:_-]", "_", name)[:_DETAIL_NAME_LENGTH_AT_MOST]
            text = "".join(each if each.isprintable() else " " for each in str(value))
            if key and text.strip() and len(kept) < _DETAILS_AT_MOST:
                kept[key] = text[:_DETAIL_LENGTH_AT_MOST]
        return kept


class EventKind(StrEnum):
    """Names what happened to a device."""

    CONNECTED = "connected"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DISCONNECTED = "disconnected"
    REPORTED = "reported"
    DESIRED = "desired"
    JOB_STARTED = "job started"
    JOB_ENDED = "job ended"
    FAILED = "failed"


@dataclass(frozen=True)
class Event:
    """One thing that happened to a device."""

    kind: EventKind
    detail: str
    operation: str = ""
    """The operation of the job, where the event is about one."""
    outcome: Outcome | None = None
    """The outcome of the job, where it ended."""


Execute = Callable[[str, Mapping[str, Any]], Outcome]
"""Executes an operation with its parameters. It runs in the thread of the device and may take its time."""


@dataclass
class _Job:
    """The job that was executed last. A job that is received again is not executed again."""

    job_id: str
    execution_number: int
    operation: str
    parameters: Mapping[str, Any]
    outcome: Outcome

    def is_of(self, execution: iotjobs.JobExecutionData) -> bool:
        return (self.job_id, self.execution_number) == (execution.job_id, execution.execution_number)


class Device:
    """The device of one Thing.

    A notification only wakes the device: it then reads its shadow, or asks for its next job. It does the same
    each time it has subscribed, so nothing is lost that changed while it was offline. One thread per device
    does this work, in order.

    Args:
        thing_name: the name of its Thing, which is also its client id.
        identity: its certificate and private key.
        endpoint: the MQTT endpoint of the account.
        execute: executes the operation of a job. A desired state is reported after it if it succeeded.
        properties: the state that the device reports once it is connected, such as its firmware version.
        applies_delta: apply a delta of the shadow as soon as it is there, instead of waiting for a job.
        backoff: the delays between attempts to connect.
        on_event: receives each event, in a thread of the device or the SDK. It must not wait for the device.

    Raises:
        ValueError: the certificate, the key or the authority is not valid, key and certificate differ, or
            there is no such client id or port.
    """

    def __init__(
        self,
        thing_name: str,
        identity: Identity,
        endpoint: Endpoint,
        execute: Execute,
        *,
        properties: Mapping[str, Any] | None = None,
        applies_delta: bool = False,
        backoff: Backoff = Backoff(),
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._thing_name = thing_name
        self._execute = execute
        self._properties = dict(properties or {})
        self._applies_delta = applies_delta
        self._emit = on_event
        self._job: _Job | None = None
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._run, name=thing_name, daemon=True)
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self.is_connected = False
        self.refusal: str | None = None
        """Why AWS refused the last attempt to connect; None if it did not."""

        identity.check()
        endpoint.check()
        try:
            self._client = mqtt5_client_builder.mtls_from_bytes(
                identity.certificate,
                identity.private_key,
                endpoint=endpoint.host,
                port=endpoint.port,
                ca_bytes=endpoint.ca,
                client_id=thing_name,
                keep_alive_interval_sec=_KEEP_ALIVE_SECONDS,
                # A new session each time: every connection subscribes again, and thereby wakes the device.
                session_behavior=mqtt5.ClientSessionBehaviorType.CLEAN,
                retry_jitter_mode=mqtt5.ExponentialBackoffJitterMode.FULL,
                min_reconnect_delay_ms=round(backoff.least_seconds * 1000),
                max_reconnect_delay_ms=round(backoff.greatest_seconds * 1000),
                on_lifecycle_connection_success=self._on_connected,
                on_lifecycle_connection_failure=self._on_connection_failure,
                on_lifecycle_disconnection=self._on_disconnected,
                on_lifecycle_stopped=lambda _: self._stopped.set(),
            )
        except Exception as error:  # the SDK raises no narrower class
            raise ValueError(
                f"cannot prepare a connection to {endpoint.host}:{endpoint.port}: {error}"
            ) from error
        options = mqtt_request_response.ClientOptions(_RESPONSES, _STREAMS, _REQUEST_TIMEOUT_SECONDS)
        self._shadow = iotshadow.IotShadowClientV2(self._client, options)
        self._jobs = iotjobs.IotJobsClientV2(self._client, options)
        self._streams = [
            self._shadow.create_shadow_delta_updated_stream(
                iotshadow.ShadowDeltaUpdatedSubscriptionRequest(thing_name=thing_name),
                self._wakes(self._read_shadow, "the delta of its shadow"),
            ),
            self._jobs.create_next_job_execution_changed_stream(
                iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=thing_name),
                self._wakes(self._execute_jobs, "its next job"),
            ),
        ]

    def start(self) -> None:
        """Begin to connect, and return at once. The device connects again by itself until it is stopped."""
        self._worker.start()
        self._client.start()
        for stream in self._streams:
            stream.open()

    def stop(self, timeout_seconds: float = 15.0) -> None:
        """Finish the work in progress, then disconnect.

        Args:
            timeout_seconds: how long to wait for the job that is being executed, and for the disconnection.
        """
        self._stopping.set()
        self._work.put(None)
        self._worker.join(timeout_seconds)
        self._client.stop()
        self._stopped.wait(timeout_seconds)

    def report(self, state: Mapping[str, Any]) -> None:
        """Merge a state into the reported state of the shadow.

        Raises:
            V2ServiceException: AWS refused it, or did not answer in time.
        """
        reported = iotshadow.ShadowState(reported=dict(state))
        self._shadow.update_shadow(
            iotshadow.UpdateShadowRequest(thing_name=self._thing_name, state=reported)
        ).result()
        self._emit(Event(EventKind.REPORTED, json.dumps(state)))

    # The connection. The SDK calls these methods in its own threads, where nothing may wait for an answer.

    def _on_connected(self, _: mqtt5.LifecycleConnectSuccessData) -> None:
        self.is_connected, self.refusal = True, None
        self._emit(Event(EventKind.CONNECTED, f"as {self._thing_name}"))

    def _on_connection_failure(self, failure: mqtt5.LifecycleConnectFailureData) -> None:
        self.refusal = _refusal(failure)
        if self.refusal:
            self._emit(Event(EventKind.REFUSED, self.refusal))
        else:
            hint = "; is this the CA of the endpoint?" if _name(failure.exception) == _TLS_FAILED else ""
            self._emit(Event(EventKind.UNREACHABLE, f"{failure.exception}{hint}"))

    def _on_disconnected(self, end: mqtt5.LifecycleDisconnectData) -> None:
        self.is_connected = False
        packet = end.disconnect_packet
        reason = f"AWS ended the connection: {packet.reason_code.name}" if packet else str(end.exception)
        self._emit(Event(EventKind.DISCONNECTED, reason))

    def _wakes(self, work: Callable[[], None], name: str) -> ServiceStreamOptions[Any]:
        """Return the options of a stream that lets the device do this work after each message."""

        def on_status(change: mqtt_request_response.SubscriptionStatusEvent) -> None:
            match change.type:
                case mqtt_request_response.SubscriptionStatusEventType.SUBSCRIPTION_ESTABLISHED:
                    self._work.put(work)
                case mqtt_request_response.SubscriptionStatusEventType.SUBSCRIPTION_HALTED:
                    reason = f"cannot subscribe to {name}: does the policy allow it? {change.error}"
                    self._emit(Event(EventKind.FAILED, reason))

        # A message that cannot be read wakes the device too: it asks for the state anyway.
        return ServiceStreamOptions(lambda _: self._work.put(work), on_status, lambda _: self._work.put(work))

    # The work, in the thread of the device

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the thread goes on, so that one fault does not end the device
                self._emit(Event(EventKind.FAILED, _explanation(error)))
                # If the connection is lost, the next one wakes the device.
                if self.is_connected and not self._stopping.wait(_RETRY_SECONDS):
                    self._work.put(work)

    def _read_shadow(self) -> None:
        """Report the properties that the shadow lacks, and look at the delta."""
        request = iotshadow.GetShadowRequest(thing_name=self._thing_name)
        try:
            state = self._shadow.get_shadow(request).result().state
        except V2ServiceException as error:
            if _code(error) != _NO_SHADOW:
                raise
            state = iotshadow.ShadowStateWithDelta()
        reported = state.reported or {}
        missing = {name: value for name, value in self._properties.items() if reported.get(name) != value}
        if missing:
            self.report(missing)
        if not state.delta:
            return
        if not self._applies_delta:
            self._emit(Event(EventKind.DESIRED, f"{json.dumps(state.delta)}, to be applied by a job"))
            return
        self._emit(Event(EventKind.DESIRED, json.dumps(state.delta)))
        outcome = self._outcome_of(APPLY_DESIRED_STATE, state.delta)
        if outcome.status == "SUCCEEDED":
            self.report(state.delta)
        else:
            self._emit(
                Event(EventKind.FAILED, f"did not apply the delta: {json.dumps(dict(outcome.details))}")
            )

    def _execute_jobs(self) -> None:
        """Execute the pending jobs, the one in progress first and then the oldest."""
        request = iotjobs.StartNextPendingJobExecutionRequest(thing_name=self._thing_name)
        while not self._stopping.is_set():
            execution = self._jobs.start_next_pending_job_execution(request).result().execution
            if execution is None or execution.job_id is None:
                return
            if self._job is None or not self._job.is_of(execution):
                self._job = self._executed(execution)
            self._finish(self._job, execution.version_number)

    def _executed(self, execution: iotjobs.JobExecutionData) -> _Job:
        job_id, document = execution.job_id, execution.job_document
        operation, parameters, fault = _parse(document)
        self._emit(Event(EventKind.JOB_STARTED, f"{job_id} {operation}", operation))
        outcome = Outcome("REJECTED", {"reason": fault}) if fault else self._outcome_of(operation, parameters)
        return _Job(job_id, execution.execution_number, operation, parameters, outcome)

    def _outcome_of(self, operation: str, parameters: Mapping[str, Any]) -> Outcome:
        try:
            outcome = self._execute(operation, parameters)
        # A handler may also exit. Whatever it raises, the device goes on, and AWS learns the reason.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return Outcome("FAILED", {"reason": f"{type(error).__name__}: {error}"})
        if not isinstance(outcome, Outcome):  # as a handler without types may
            return Outcome("FAILED", {"reason": f"{operation} returned {outcome!r} instead of an outcome"})
        return outcome

    def _finish(self, job: _Job, version: int) -> None:
        """Report the desired state that was applied, then the outcome. Both can be repeated."""
        if job.outcome.status == "SUCCEEDED" and job.operation == APPLY_DESIRED_STATE:
            try:
                self.report(job.parameters)
            except V2ServiceException as error:
                if _code(error) is None or _code(error) in _SHADOW_RETRIED:
                    raise
                job.outcome = Outcome(
                    "FAILED", {"reason": f"the shadow refused the state: {_explanation(error)}"}
                )
        update = iotjobs.UpdateJobExecutionRequest(
            thing_name=self._thing_name,
            job_id=job.job_id,
            execution_number=job.execution_number,
            status=job.outcome.status,
            status_details=job.outcome.stored_details() or None,
            expected_version=version,
        )
        try:
            self._jobs.update_job_execution(update).result()
        except V2ServiceException as error:
            if _code(error) not in _ENDED_BY_AWS:
                raise
            # It was cancelled or timed out meanwhile. If it was not, AWS returns it as the next job again.
            self._emit(Event(EventKind.FAILED, f"{job.job_id} was changed by AWS: {_explanation(error)}"))
            return
        ended = f"{job.job_id} {job.operation} {job.outcome.status} {json.dumps(dict(job.outcome.details))}"
        self._emit(Event(EventKind.JOB_ENDED, ended, job.operation, job.outcome))


def _refusal(failure: mqtt5.LifecycleConnectFailureData) -> str | None:
    """Return why AWS refused a connection; None if the endpoint was not reached, or could not answer."""
    connack = failure.connack_packet
    if connack is not None:
        if connack.reason_code not in _REFUSALS:
            return None
        return f"AWS answered {connack.reason_code.name}: does the policy allow this client id?"
    if _name(failure.exception) == _CLOSED_WITHOUT_ANSWER:
        return "AWS closed the connection: the certificate is not active, or is not registered"
    return None


def _name(error: Exception) -> str | None:
    """Return the name of an error of the SDK."""
    return getattr(error, "name", None)


def _parse(document: object) -> tuple[str, Mapping[str, Any], str | None]:
    """Return the operation and the parameters of a job document, and its fault if it has one."""
    if not isinstance(document, dict):
        return "", {}, f"the job document must be a JSON object, and is {json.dumps(document)[:200]}"
    operation, parameters = document.get("operation"), document.get("parameters", {})
    if not isinstance(operation, str) or not operation:
        return "", {}, "the job document has no operation"
    if not isinstance(parameters, dict):
        return operation, {}, "the parameters of the job document must be a JSON object"
    return operation, parameters, None


def _code(error: V2ServiceException) -> object:
    """Return the code of the answer of AWS; None if there was no answer."""
    return getattr(error.modeled_error, "code", None)


def _explanation(error: Exception) -> str:
    if not isinstance(error, V2ServiceException):
        return f"{type(error).__name__}: {error}"
    if error.modeled_error is None:
        return f"{error.message}: {error.inner_error}"
    return f"{error.message}: {error.modeled_error.code}: {error.modeled_error.message}"

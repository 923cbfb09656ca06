"""The instruments of the bridge, on OpenTelemetry's API.

The description of each instrument states what it measures. All of them do nothing until
`telemetry.configure` has installed a meter provider.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final
from uuid import UUID

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

from observability.context import NO_TENANT


def _labels(tenant_id: UUID | str | None, operation: str, more: Mapping[str, str]) -> dict[str, str]:
    return {"tenant_id": str(tenant_id or NO_TENANT), "operation": operation, **more}


class Count:
    """A counter.

    Args:
        area: part of the name, and the meter.
        name: the rest of the name.
        description: what is counted.
    """

    def __init__(self, area: str, name: str, description: str) -> None:
        self.name: Final = f"thingbridge.{area}.{name}"
        self._counter = get_meter(f"thingbridge.{area}").create_counter(self.name, "", description)

    def add(self, tenant_id: UUID | str | None, operation: str, amount: int = 1, **labels: str) -> None:
        """Add to the counter.

        Args:
            tenant_id: the tenant of the work; None if it belongs to no tenant.
            operation: the operation, such as the name of an activity.
            amount: how much to add.
            labels: the labels of this counter only.
        """
        self._counter.add(amount, _labels(tenant_id, operation, labels))


class Duration:
    """A histogram of durations in seconds.

    Args:
        area: part of the name, and the meter.
        name: the rest of the name, without the unit.
        description: what is measured.
        bounds: upper bounds of the buckets.
    """

    def __init__(self, area: str, name: str, description: str, bounds: Iterable[float]) -> None:
        self.name: Final = f"thingbridge.{area}.{name}"
        self.unit: Final = "seconds"
        self._histogram = get_meter(f"thingbridge.{area}").create_histogram(
            self.name, "s", description, explicit_bucket_boundaries_advisory=list(bounds)
        )

    def record(self, tenant_id: UUID | str | None, operation: str, seconds: float, **labels: str) -> None:
        """Record a duration in seconds; the arguments are those of `Count.add`."""
        self._histogram.record(seconds, _labels(tenant_id, operation, labels))


class Gauge:
    """A value that is read when metrics are scraped.

    Args:
        area: part of the name, and the meter.
        name: the rest of the name, without the unit.
        description: what the value is.
        unit: `s`, or empty.
        label: the label that distinguishes several values; empty where there is one value.
    """

    def __init__(self, area: str, name: str, description: str, unit: str = "", label: str = "") -> None:
        self.name: Final = f"thingbridge.{area}.{name}"
        self.unit: Final = {"s": "seconds"}.get(unit, unit)
        self._operation = name
        self._label = label
        self._read: Callable[[], Mapping[str, float]] = dict
        get_meter(f"thingbridge.{area}").create_observable_gauge(
            self.name, [self.observations], unit, description
        )

    def read_with(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Set the function that reads the values, in place of an earlier one.

        Args:
            read: returns each value by the value of its label; under any key where there is no label. It is
                called in the thread that serves `/metrics`.
        """
        self._read = read

    def observations(self, _: CallbackOptions | None = None) -> Iterable[Observation]:
        """Read the current values."""
        for key, value in self._read().items():
            label = {self._label: key} if self._label else {}
            yield Observation(value, _labels(None, self._operation, label))


_CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
# From a single call to a step that is retried until AWS is ready, or an operator has fixed the cause.
_STEP_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)

THINGS_CREATED: Final = Count("provisioning", "things_created", "Things created or adopted for a device")
CERTIFICATES_ISSUED: Final = Count(
    "provisioning", "certificates_issued", "Certificates issued, including those reissued after a lost key"
)
ACTIVATED: Final = Count("provisioning", "activated", "Devices whose provisioning reached Active")
DECOMMISSIONED: Final = Count("provisioning", "decommissioned", "Devices removed from AWS")
FAILED: Final = Count("provisioning", "failed", "Provisionings that became Failed, by failure code")
STEP_DURATION: Final = Duration(
    "provisioning",
    "step_duration",
    "Seconds from the scheduling of a provisioning step to its success, including retries and waits",
    _STEP_SECONDS,
)

REPORTED_PUSHED: Final = Count("shadow", "reported_pushed", "Statuses written to a shadow as reported state")
UPDATE_FAILURES: Final = Count("shadow", "update_failures", "Failed attempts to write a status to a shadow")
DELTAS_DETECTED: Final = Count("shadow", "deltas_detected", "Changes of desired state, published once each")
POLL_VISITED: Final = Count("shadow", "poll_visited", "Shadows that the poll has read or tried to read")
POLL_FAILED: Final = Count("shadow", "poll_failed", "Shadows that could not be read")

JOBS_DISPATCHED: Final = Count("jobs", "dispatched", "Jobs created in AWS")
JOBS_REUSED: Final = Count("jobs", "idempotent_reuse", "Jobs that existed already when one was to be created")
JOBS_COMPLETED: Final = Count("jobs", "completed", "Commands that ended with an outcome")
JOBS_FAILED: Final = Count("jobs", "failed", "Commands that ended without an outcome")
DISPATCH_ERRORS: Final = Count("jobs", "dispatch_errors", "Failed attempts to create a job")

VERIFY_ALLOWED: Final = Count("fleet_provisioning", "verify_allowed", "Devices that were allowed to enrol")
VERIFY_DENIED: Final = Count("fleet_provisioning", "verify_denied", "Devices that were denied enrolment")
REGISTER_COMPLETED: Final = Count("fleet_provisioning", "register_completed", "Devices newly registered")
REGISTER_IDEMPOTENT: Final = Count(
    "fleet_provisioning", "register_idempotent", "Registrations of a device that was registered already"
)
CLAIMS_EXPIRING: Final = Count(
    "fleet_provisioning",
    "claim_certificates_expiring",
    "Warnings that a claim certificate expires, one a day for each",
)

CREDENTIALS_REFRESHES: Final = Count("credentials", "refreshes", "Reads of the secret with the credentials")
CREDENTIALS_AGE: Final = Gauge(
    "credentials", "age", "Seconds since the credentials were last read successfully", unit="s"
)
CREDENTIALS_READY: Final = Gauge("credentials", "ready", "1 where AWS can be called, else 0")

AWS_CALLS: Final = Count("aws", "calls", "Calls to AWS, by service, API and result")
AWS_THROTTLES: Final = Count("aws", "throttles", "Calls that AWS throttled")
AWS_CALL_DURATION: Final = Duration(
    "aws", "call_duration", "Seconds until AWS answered or the call timed out", _CALL_SECONDS
)

EVENTS_SENT: Final = Count("events", "sent", "Events that arrived at the sink")
EVENTS_SEND_FAILURES: Final = Count("events", "send_failures", "Failed attempts to send an event")
OUTBOX_OLDEST: Final = Gauge(
    "events", "outbox_oldest", "Age of a shard's oldest unsent event, 0 where all are sent", "s", "shard"
)
SINK_DISABLED: Final = Gauge("events", "sink_disabled", "1 where the sink is disabled", label="sink")
EVENTS_PARKED: Final = Gauge("events", "parked", "Events that are not sent because the sink refused them")

SWEEPS_FOUND: Final = Count(
    "sweeps", "found", "Items that a sweep found to process, in each run that finds them"
)
SWEEPS_DONE: Final = Count("sweeps", "done", "Items that a sweep processed")
SWEEPS_FAILED: Final = Count(
    "sweeps", "failed", "Items that a sweep failed to process and leaves to its next run"
)

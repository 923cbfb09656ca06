"""What the process measures, and whom it works for at the moment: OpenTelemetry's API, and nothing of ours.

Each instrument says in its description what it counts. Until `telemetry.configure` has set a meter provider,
all of them do nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final
from uuid import UUID

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

from observability.context import NO_TENANT


def _labels(tenant_id: UUID | str | None, operation: str, more: Mapping[str, str]) -> dict[str, str]:
    return {"tenant_id": str(tenant_id or NO_TENANT), "operation": operation, **more}


class Count:
    """A counter of one area."""

    def __init__(self, area: str, name: str, description: str) -> None:
        self.name: Final = f"thingbridge.{area}.{name}"
        self._counter = get_meter(f"thingbridge.{area}").create_counter(self.name, "", description)

    def add(self, tenant_id: UUID | str | None, operation: str, amount: int = 1, **labels: str) -> None:
        """Count what has happened.

        Args:
            tenant_id: whose it was; None is no tenant's.
            operation: what was at work, such as an activity's name.
            amount: how often it happened.
            labels: the counter's own.
        """
        self._counter.add(amount, _labels(tenant_id, operation, labels))


class Duration:
    """A histogram of seconds in one area."""

    def __init__(self, area: str, name: str, description: str, bounds: Iterable[float]) -> None:
        self.name: Final = f"thingbridge.{area}.{name}"
        self.unit: Final = "seconds"
        self._histogram = get_meter(f"thingbridge.{area}").create_histogram(
            self.name, "s", description, explicit_bucket_boundaries_advisory=list(bounds)
        )

    def record(self, tenant_id: UUID | str | None, operation: str, seconds: float, **labels: str) -> None:
        """Note how long something took, in seconds."""
        self._histogram.record(seconds, _labels(tenant_id, operation, labels))


class Gauge:
    """A value of one area that is looked up when it is asked for, by whoever can tell."""

    def __init__(self, area: str, name: str, description: str, unit: str = "", label: str = "") -> None:
        """Declare it.

        Args:
            area: the meter.
            name: the value's name there.
            description: what it tells.
            unit: `s`, or none.
            label: what tells its values apart; none where there is but one.
        """
        self.name: Final = f"thingbridge.{area}.{name}"
        self.unit: Final = {"s": "seconds"}.get(unit, unit)
        self._operation = name
        self._label = label
        self._read: Callable[[], Mapping[str, float]] = dict
        get_meter(f"thingbridge.{area}").create_observable_gauge(
            self.name, [self.observations], unit, description
        )

    def watch(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Have it looked up by a function; the last one told counts.

        Args:
            read: gives the value by its label's value, under any key where there is no label. Called by the
                thread that answers `/metrics`.
        """
        self._read = read

    def observations(self, _: CallbackOptions | None = None) -> Iterable[Observation]:
        """What is found now."""
        for key, value in self._read().items():
            label = {self._label: key} if self._label else {}
            yield Observation(value, _labels(None, self._operation, label))


# From a call to AWS to a step that waits until AWS has settled, or an operator has mended what it lacks.
_CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
_STEP_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)

THINGS_CREATED: Final = Count("provisioning", "things_created", "Things made, or adopted, for a device")
CERTIFICATES_ISSUED: Final = Count(
    "provisioning", "certificates_issued", "Certificates issued, those reissued for a lost key too"
)
ACTIVATED: Final = Count("provisioning", "activated", "Devices whose provisioning has come to Active")
DECOMMISSIONED: Final = Count("provisioning", "decommissioned", "Devices erased from AWS")
FAILED: Final = Count("provisioning", "failed", "Provisionings that became Failed, by the reason's code")
STEP_DURATION: Final = Duration(
    "provisioning",
    "step_duration",
    "Seconds from the scheduling of a step of a device's saga to its success, retries and waits included",
    _STEP_SECONDS,
)

REPORTED_PUSHED: Final = Count("shadow", "reported_pushed", "Statuses reported in a shadow")
UPDATE_FAILURES: Final = Count("shadow", "update_failures", "Attempts to report a status that AWS refused")
DELTAS_DETECTED: Final = Count("shadow", "deltas_detected", "Desired changes told for the first time")
POLL_VISITED: Final = Count("shadow", "poll_visited", "Shadows the poll has come to, the failed ones too")
POLL_FAILED: Final = Count("shadow", "poll_failed", "Shadows that could not be read")

JOBS_DISPATCHED: Final = Count("jobs", "dispatched", "Jobs made in AWS")
JOBS_REUSED: Final = Count("jobs", "idempotent_reuse", "Jobs that were found made already")
JOBS_COMPLETED: Final = Count("jobs", "completed", "Commands that ended with an outcome")
JOBS_FAILED: Final = Count("jobs", "failed", "Commands that ended without one")
DISPATCH_ERRORS: Final = Count("jobs", "dispatch_errors", "Attempts to make a job that failed")

VERIFY_ALLOWED: Final = Count("fleet_provisioning", "verify_allowed", "Devices that were let enrol")
VERIFY_DENIED: Final = Count("fleet_provisioning", "verify_denied", "Devices that were not")
REGISTER_COMPLETED: Final = Count("fleet_provisioning", "register_completed", "Devices newly registered")
REGISTER_IDEMPOTENT: Final = Count(
    "fleet_provisioning", "register_idempotent", "Registrations of a device that was there already"
)
CLAIMS_EXPIRING: Final = Count(
    "fleet_provisioning", "claim_certificates_expiring", "Warnings of claim certificates, one a day of each"
)

CREDENTIALS_REFRESHES: Final = Count("credentials", "refreshes", "Reads of the secret with the credentials")
CREDENTIALS_AGE: Final = Gauge(
    "credentials", "age", "Seconds since the credentials were last read with success", unit="s"
)
CREDENTIALS_READY: Final = Gauge("credentials", "ready", "1 where AWS can be called, else 0")

AWS_CALLS: Final = Count("aws", "calls", "Calls to AWS, by service, API and result")
AWS_THROTTLES: Final = Count("aws", "throttles", "Calls that AWS throttled")
AWS_CALL_DURATION: Final = Duration(
    "aws", "call_duration", "Seconds until AWS answered, or was given up on", _CALL_SECONDS
)

EVENTS_SENT: Final = Count("events", "sent", "Events that have arrived at the sink")
EVENTS_SEND_FAILURES: Final = Count("events", "send_failures", "Attempts to send an event that failed")
OUTBOX_OLDEST: Final = Gauge(
    "events", "outbox_oldest", "Age of a shard's oldest unsent event, 0 where all are sent", "s", "shard"
)
SINK_DISABLED: Final = Gauge("events", "sink_disabled", "1 where the sink is switched off", label="sink")
EVENTS_PARKED: Final = Gauge("events", "parked", "Events that were set aside, since no sink takes them")

SWEEPS_FOUND: Final = Count("sweeps", "found", "What sweeps have found to do, each time they find it")
SWEEPS_DONE: Final = Count("sweeps", "done", "What of it was done")
SWEEPS_FAILED: Final = Count("sweeps", "failed", "What of it failed, and is left for the next try")

"""The emulated account: the registries of moto, and the data that moto does not store."""

from __future__ import annotations

import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import moto
from moto.core.base_backend import BackendDict
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.iot.models import iot_backends
from moto.secretsmanager.models import secretsmanager_backends

from embedded.emulator.calls import Call, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moto.iot.models import FakeThing, IoTBackend
    from moto.secretsmanager.models import SecretsManagerBackend

    from embedded.emulator.shadow_document import Shadow

Forward = Callable[[], Response]
"""Forward the call to moto and return the response of moto."""

Difference = Callable[[Call, "Account", Forward], Response]
"""Handle a call as AWS does, for an operation that moto implements differently."""

_KEPT: Mapping[str, BackendDict[Any]] = {"iot": iot_backends, "secretsmanager": secretsmanager_backends}
"""The registries that survive a restart. Moto's data plane also stores published messages, unlike AWS."""


@dataclass(frozen=True)
class Settings:
    """Delays and quotas of AWS that tests can change."""

    detach_seconds: float = 2.0
    """Seconds for which a Thing cannot be deleted after one of its principals was detached."""
    group_build_seconds: float = 1.0
    """Seconds for which a new dynamic group is BUILDING, without Things and not usable as a job's target."""
    job_rollout_seconds: float = 0.0
    """Seconds between CreateJob and the creation of the executions."""
    dynamic_groups_at_most: int = 100
    active_jobs_at_most: int = 100
    """The quota of jobs in progress, for each target selection."""


class Account:
    """All resources of the account, in every region.

    Code that reads or changes the account must hold the lock. Moto is not thread-safe: some of several
    concurrent calls would fail with a 500, and a snapshot would be inconsistent. The lock does not slow moto
    down (measured), because moto's work holds the GIL anyway. RSA keys are generated without the lock, since
    that work does not hold the GIL.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settings = Settings()
        # Not saved: a restart takes longer than a detach.
        self._detached_at: dict[tuple[str, str], float] = {}
        self._shadows: dict[tuple[str, str], dict[str, Shadow]] = defaultdict(dict)
        self.reached: dict[tuple[str, str], set[str]] = {}
        """For each job, the ARNs of all Things that it was rolled out to, including Things deleted later."""

    def iot(self, region: str) -> IoTBackend:
        """Return moto's registry of Things, certificates, policies and jobs."""
        return iot_backends[DEFAULT_ACCOUNT_ID][region]

    def secrets(self, region: str) -> SecretsManagerBackend:
        """Return moto's registry of secrets."""
        return secretsmanager_backends[DEFAULT_ACCOUNT_ID][region]

    def thing(self, region: str, name: str) -> FakeThing | None:
        """Return the Thing of that name, found by its ARN because moto's own lookup scans all Things."""
        iot = self.iot(region)
        arn = f"arn:{iot.partition}:iot:{region}:{iot.account_id}:thing/{name}"
        return iot.things.get(arn)

    def shadows(self, region: str, thing_name: str) -> dict[str, Shadow]:
        """Return the shadows of a Thing name, which outlive the Thing. The classic shadow has the name ""."""
        return self._shadows[region, thing_name]

    def classic_shadow(self, region: str, thing_name: str) -> Shadow | None:
        """Return the classic shadow of a Thing, or None if it never had one."""
        return self._shadows.get((region, thing_name), {}).get("")

    def record_detach(self, region: str, thing_name: str) -> None:
        """Record that a principal has just been detached from the Thing."""
        self._detached_at[region, thing_name] = time.monotonic()

    def is_detach_pending(self, region: str, thing_name: str) -> bool:
        """Return whether AWS would still treat a recently detached principal as attached."""
        detached_at = self._detached_at.get((region, thing_name))
        return detached_at is not None and time.monotonic() < detached_at + self.settings.detach_seconds

    def reset(self) -> None:
        """Empty the account."""
        with self.lock:
            BackendDict.reset()
            self._detached_at.clear()
            self._shadows.clear()
            self.reached.clear()

    def dump(self) -> bytes:
        """Return everything that survives a restart, as bytes."""
        with self.lock:
            registries = {
                service: [
                    (account, region, vars(backend)) for account, region, backend in backends.iter_backends()
                ]
                for service, backends in _KEPT.items()
            }
            held = {
                "moto": moto.__version__,
                "registries": registries,
                "shadows": self._shadows,
                "reached": self.reached,
            }
            return pickle.dumps(held, protocol=pickle.HIGHEST_PROTOCOL)

    def load(self, dumped: bytes) -> None:
        """Replace the content of the account by what `dump` returned."""
        held: dict[str, Any] = pickle.loads(dumped)  # noqa: S301 - our own file  # nosec B301
        if held["moto"] != moto.__version__:
            raise ValueError(f"it was written by moto {held['moto']}, but this is moto {moto.__version__}")
        for service, registries in held["registries"].items():
            for account, region, content in registries:
                _KEPT[service][account][region].__dict__.update(content)
        self._shadows = held["shadows"]
        self.reached = held.get("reached", {})  # absent from the files of earlier versions

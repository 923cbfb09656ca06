"""The emulated account: moto's registries, and what moto has no place for."""

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

from embedded.emulator.calls import Answer, Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moto.iot.models import FakeThing, IoTBackend
    from moto.secretsmanager.models import SecretsManagerBackend

    from embedded.emulator.shadows import Shadow

Forward = Callable[[], Answer]
"""Has moto answer the call after all."""

Difference = Callable[[Call, "Account", Forward], Answer]
"""Answers a call as AWS does, where moto alone would not."""

_KEPT: Mapping[str, BackendDict[Any]] = {"iot": iot_backends, "secretsmanager": secretsmanager_backends}
"""What outlives a restart. Moto's data plane holds published messages beside, which AWS forgets too."""


@dataclass(frozen=True)
class Settings:
    """What takes its time on AWS, and how much of a thing there may be."""

    detach_settles_seconds: float = 2.0
    """How long a Thing cannot be deleted after one of its principals was detached."""
    group_builds_seconds: float = 1.0
    """How long a new dynamic group is BUILDING, in which it has no Things and takes no job."""
    job_rolls_out_seconds: float = 0.0
    """How long after CreateJob the executions come into being."""
    dynamic_groups_at_most: int = 100
    active_jobs_at_most: int = 100
    """Of each target selection, in progress."""


class Account:
    """Everything there is, in every region.

    The lock is held by whoever reads or changes it. Moto is not thread-safe: of calls made side by side some
    fail with a 500 that AWS would not give, and a snapshot tears. Its time is Python's own, which the lock
    does not lengthen (measured); what is not, the making of RSA keys, is done without the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settings = Settings()
        # Not kept over a restart, which takes as long as a detach does to settle.
        self._detached_at: dict[tuple[str, str], float] = {}
        self._shadows: dict[tuple[str, str], dict[str, Shadow]] = defaultdict(dict)
        self.reached: dict[tuple[str, str], set[str]] = {}
        """The ARNs of the Things that a job has been rolled out to, whatever became of them since."""

    def iot(self, region: str) -> IoTBackend:
        """Moto's registry of Things, certificates, policies and jobs."""
        return iot_backends[DEFAULT_ACCOUNT_ID][region]

    def secrets(self, region: str) -> SecretsManagerBackend:
        """Moto's registry of secrets."""
        return secretsmanager_backends[DEFAULT_ACCOUNT_ID][region]

    def thing(self, region: str, name: str) -> FakeThing | None:
        """The Thing of that name, found by its ARN: moto looks through all of them."""
        iot = self.iot(region)
        arn = f"arn:{iot.partition}:iot:{region}:{iot.account_id}:thing/{name}"
        return iot.things.get(arn)

    def shadows(self, region: str, thing_name: str) -> dict[str, Shadow]:
        """A Thing's shadows by name, the classic one under "": kept by name, since they outlive the Thing."""
        return self._shadows[region, thing_name]

    def classic_shadow(self, region: str, thing_name: str) -> Shadow | None:
        """A Thing's unnamed shadow, if there ever was one."""
        return self._shadows.get((region, thing_name), {}).get("")

    def note_detach(self, region: str, thing_name: str) -> None:
        """Remember that a principal has just been detached from the Thing."""
        self._detached_at[region, thing_name] = time.monotonic()

    def is_detach_settling(self, region: str, thing_name: str) -> bool:
        """Whether AWS would still hold a principal for attached that was detached a moment ago."""
        detached_at = self._detached_at.get((region, thing_name))
        return (
            detached_at is not None and time.monotonic() < detached_at + self.settings.detach_settles_seconds
        )

    def reset(self) -> None:
        """Empty the account."""
        with self.lock:
            BackendDict.reset()
            self._detached_at.clear()
            self._shadows.clear()
            self.reached.clear()

    def dump(self) -> bytes:
        """All that outlives a restart."""
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
        """Become what was dumped."""
        held: dict[str, Any] = pickle.loads(dumped)  # noqa: S301 - our own file  # nosec B301
        if held["moto"] != moto.__version__:
            raise ValueError(f"it was written by moto {held['moto']}, and this is moto {moto.__version__}")
        for service, registries in held["registries"].items():
            for account, region, content in registries:
                _KEPT[service][account][region].__dict__.update(content)
        self._shadows = held["shadows"]
        self.reached = held.get("reached", {})  # not yet in the files of earlier versions

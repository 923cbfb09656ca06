"""The serial policy that an operator has set: found at start, asked within bounds, and denying in doubt."""

import asyncio
import inspect
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from domain.serial_policy import SERIAL_POLICY_GROUP, SerialPatterns, SerialPolicy
from settings import PREFIX, InvalidSettingsError

logger = logging.getLogger("thingbridge.api")

_VARIABLE: Final = f"{PREFIX}FLEET_PROVISIONING__SERIAL_POLICY"
# Fleet provisioning gives its hook five seconds for everything.
_PATIENCE_SECONDS: Final = 2.0
_THREADS: Final = 8


class SerialGate:
    """Asks the patterns, then the policy: a serial number enrols where each that is set admits it.

    Args:
        policy: the operator's own, asked in a thread, since it may look elsewhere.
        patterns: the ready-made one, which takes no time.
        patience_seconds: how long an answer is waited for; none by then is a refusal.
    """

    def __init__(
        self,
        policy: SerialPolicy | None = None,
        patterns: SerialPolicy | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._policy = policy
        self._patterns = patterns
        self._patience_seconds = patience_seconds
        # Its own: a policy that hangs costs these threads, and nobody else's.
        self._threads = ThreadPoolExecutor(_THREADS, "serial-policy")

    async def admits(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Whether the serial number may enrol, as far as the policies go."""
        if self._patterns is not None and not self._patterns(tenant_id, serial_number):
            return False
        if self._policy is None:
            return True
        asked = asyncio.get_running_loop().run_in_executor(
            self._threads, _ask, self._policy, tenant_id, serial_number
        )
        answered, _ = await asyncio.wait({asked}, timeout=self._patience_seconds)
        if not answered:
            asked.cancel()
            logger.error("the serial policy did not answer within %g s: denied", self._patience_seconds)
            return False
        return asked.result()


def serial_gate(policy: str | None, patterns: Mapping[str, str] | None) -> SerialGate:
    """The gate as it is set.

    Raises:
        InvalidSettingsError: there is no such policy, or it cannot be asked.
    """
    return SerialGate(_load(policy) if policy else None, SerialPatterns(patterns) if patterns else None)


def _ask(policy: SerialPolicy, tenant_id: UUID | None, serial_number: str) -> bool:
    try:
        answer: Any = policy(tenant_id, serial_number)
    except BaseException:  # whatever it raises, SystemExit too, is its refusal
        logger.exception("the serial policy failed: denied")
        return False
    if not isinstance(answer, bool):
        logger.error("the serial policy answered with %s, not with a bool: denied", type(answer).__name__)
    return answer is True


def _load(name: str) -> SerialPolicy:
    try:
        policy = _by_path(name) if ":" in name else _by_entry_point(name)
    except Exception as error:
        raise _refused(name, f"cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(policy, type) or not callable(policy):
        raise _refused(name, "is not a function, nor an object that can be called")
    if inspect.iscoroutinefunction(policy) or inspect.iscoroutinefunction(type(policy).__call__):
        raise _refused(name, "is async; it is called in a thread of its own, so let it be a plain function")
    try:
        inspect.signature(policy).bind(None, "SN-001")
    except (TypeError, ValueError):
        raise _refused(name, "does not take (tenant_id, serial_number)") from None
    return policy  # type: ignore[no-any-return]


def _by_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return attrgetter(attribute)(import_module(module))


def _by_entry_point(name: str) -> Any:
    found = entry_points(group=SERIAL_POLICY_GROUP)
    if name not in found.names:
        there_are = ", ".join(sorted(found.names)) or "none"
        raise LookupError(f"no such entry point in {SERIAL_POLICY_GROUP}; there are: {there_are}")
    return found[name].load()


def _refused(name: str, why: str) -> InvalidSettingsError:
    return InvalidSettingsError(
        f"{_VARIABLE}: {name} {why} (allowed: package.module:callable, or the name of an entry point)"
    )

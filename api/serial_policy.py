"""The check of serial numbers against an operator's policy, loaded at start; every failure denies."""

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
# The hook of AWS fleet provisioning must answer within five seconds in total.
_TIMEOUT_SECONDS: Final = 2.0
_THREADS: Final = 8


class SerialCheck:
    """Admits a serial number if the patterns and the operator's policy, where they are set, both admit it.

    Args:
        policy: the operator's own code. It runs in a thread, since it may call other systems.
        patterns: the policy by patterns, which needs no thread.
        timeout_seconds: the time limit for the operator's policy; exceeding it denies the serial number.
    """

    def __init__(
        self,
        policy: SerialPolicy | None = None,
        patterns: SerialPolicy | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._policy = policy
        self._patterns = patterns
        self._timeout_seconds = timeout_seconds
        # Threads of its own: a policy that hangs blocks these, and no other work.
        self._threads = ThreadPoolExecutor(_THREADS, "serial-policy")

    async def admits(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Return whether the policies admit the serial number."""
        if self._patterns is not None and not self._patterns(tenant_id, serial_number):
            return False
        if self._policy is None:
            return True
        call = asyncio.get_running_loop().run_in_executor(
            self._threads, _call_policy, self._policy, tenant_id, serial_number
        )
        completed, _ = await asyncio.wait({call}, timeout=self._timeout_seconds)
        if not completed:
            call.cancel()
            logger.error("serial policy timed out after %g s: denied", self._timeout_seconds)
            return False
        return call.result()


def load_serial_check(policy: str | None, patterns: Mapping[str, str] | None) -> SerialCheck:
    """Return the check for the settings' policy and patterns.

    Raises:
        InvalidSettingsError: the policy cannot be loaded or called.
    """
    return SerialCheck(
        _load_policy(policy) if policy else None, SerialPatterns(patterns) if patterns else None
    )


def _call_policy(policy: SerialPolicy, tenant_id: UUID | None, serial_number: str) -> bool:
    try:
        admitted: Any = policy(tenant_id, serial_number)
    except BaseException:  # every exception denies, SystemExit too
        logger.exception("serial policy failed: denied")
        return False
    if not isinstance(admitted, bool):
        logger.error("serial policy returned %s instead of bool: denied", type(admitted).__name__)
    return admitted is True


def _load_policy(name: str) -> SerialPolicy:
    try:
        policy = _by_path(name) if ":" in name else _by_entry_point(name)
    except Exception as error:
        raise _invalid(name, f"cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(policy, type) or not callable(policy):
        raise _invalid(name, "is not a function or another callable object")
    if inspect.iscoroutinefunction(policy) or inspect.iscoroutinefunction(type(policy).__call__):
        raise _invalid(name, "is async, but must be a plain function: it is called in a thread of its own")
    try:
        inspect.signature(policy).bind(None, "SN-001")
    except (TypeError, ValueError):
        raise _invalid(name, "does not accept (tenant_id, serial_number)") from None
    return policy  # type: ignore[no-any-return]


def _by_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return attrgetter(attribute)(import_module(module))


def _by_entry_point(name: str) -> Any:
    found = entry_points(group=SERIAL_POLICY_GROUP)
    if name not in found.names:
        existing = ", ".join(sorted(found.names)) or "none"
        raise LookupError(f"no such entry point in {SERIAL_POLICY_GROUP}; existing: {existing}")
    return found[name].load()


def _invalid(name: str, reason: str) -> InvalidSettingsError:
    return InvalidSettingsError(
        f"{_VARIABLE}: {name} {reason} (allowed: package.module:callable, or the name of an entry point)"
    )

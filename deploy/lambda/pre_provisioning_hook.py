"""The pre-provisioning hook: whether a device may enrol, asked of the bridge, and its Thing's name."""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from thingbridge_api import (
    TENANT_ID_VARIABLE,
    Api,
    ConfigurationError,
    NoAnswerError,
    ThingName,
    null_if_zero,
    tenant_from_environment,
)

TENANT_PARAMETER_VARIABLE: Final = "THINGBRIDGE_TENANT_PARAMETER"
SERIAL_NUMBER_PARAMETER: Final = "SerialNumber"

# AWS waits 5 s, a cold start among them.
_BUDGET_SECONDS: Final = 3.0
_RESERVE_SECONDS: Final = 0.5
_ALLOWED: Final = 200

logger = logging.getLogger("thingbridge-lambda")
logger.setLevel(logging.INFO)


class Hook:
    """The decision over one enrolment.

    Args:
        api: the bridge.
        tenant_of: whose device it is, told by the template's parameters.
    """

    def __init__(self, api: Api, tenant_of: Callable[[dict[str, Any]], UUID]) -> None:
        self._api = api
        self._tenant_of = tenant_of

    @classmethod
    def from_environment(cls) -> "Hook":
        """The hook that the variables configure.

        Raises:
            ConfigurationError: one is missing or wrong.
        """
        tenant_id, parameter = tenant_from_environment(), os.environ.get(TENANT_PARAMETER_VARIABLE)
        if (tenant_id is None) == (not parameter):
            raise ConfigurationError(f"set {TENANT_ID_VARIABLE} or {TENANT_PARAMETER_VARIABLE}")
        api = Api.from_environment()
        if tenant_id is not None:
            return cls(api, lambda _: tenant_id)
        return cls(api, lambda parameters: UUID(parameters[str(parameter)]))

    def __call__(self, event: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Allow what the bridge allows within the time; deny all else."""
        name, reason = self._decide(event, seconds)
        who = f"claim certificate {event.get('claimCertificateId')}, certificate {event.get('certificateId')}"
        if reason is not None:
            logger.warning("denied: %s (%s)", reason, who)
            return {"allowProvisioning": False, "parameterOverrides": {}}
        logger.info("allowed (%s)", who)
        overrides = {
            "ThingName": str(name),
            "CertificateId": str(event.get("certificateId")),
            "ClaimCertificateId": str(event.get("claimCertificateId")),
        }
        return {"allowProvisioning": True, "parameterOverrides": overrides}

    def _decide(self, event: dict[str, Any], seconds: float) -> tuple[ThingName | None, str | None]:
        """The Thing's name, and why it is denied."""
        parameters = event.get("parameters")
        if not isinstance(parameters, dict):
            return None, "the event has no parameters"
        try:
            tenant_id = null_if_zero(self._tenant_of(parameters))
        except (KeyError, ValueError, AttributeError, TypeError):
            return None, "the tenant's parameter is missing or no UUID"
        name = ThingName.of(tenant_id, parameters.get(SERIAL_NUMBER_PARAMETER))
        if name is None:
            return None, f"the parameter {SERIAL_NUMBER_PARAMETER} is missing or no serial number"
        try:
            answer = self._api.post("/api/iot/fleet-provisioning/verify", name.body, seconds)
        except NoAnswerError as error:
            return None, f"the bridge did not answer: {error}"
        if answer.status == _ALLOWED and answer.body.get("allowProvisioning") is True:
            return name, None
        return None, str(answer.body.get("reason") or answer.problem)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """What Lambda calls."""
    left = context.get_remaining_time_in_millis() / 1000 - _RESERVE_SECONDS
    return _hook()(event, min(_BUDGET_SECONDS, left))


_hook = functools.cache(Hook.from_environment)

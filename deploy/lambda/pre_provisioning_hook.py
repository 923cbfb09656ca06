"""The pre-provisioning hook: the bridge decides whether a device may enrol, the hook names its Thing."""

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
    NoResponseError,
    ThingName,
    null_if_zero,
    tenant_from_environment,
)

TENANT_PARAMETER_VARIABLE: Final = "THINGBRIDGE_TENANT_PARAMETER"
SERIAL_NUMBER_PARAMETER: Final = "SerialNumber"

# AWS waits 5 s, including a cold start.
_BUDGET_SECONDS: Final = 3.0
_RESERVE_SECONDS: Final = 0.5
_ALLOWED: Final = 200

logger = logging.getLogger("thingbridge-lambda")
logger.setLevel(logging.INFO)


class Hook:
    """Decides whether a device may enrol.

    Args:
        api: the API of the bridge.
        tenant_of: returns the tenant of the device, given the parameters of the template.
    """

    def __init__(self, api: Api, tenant_of: Callable[[dict[str, Any]], UUID]) -> None:
        self._api = api
        self._tenant_of = tenant_of

    @classmethod
    def from_environment(cls) -> "Hook":
        """Return the hook configured by the environment variables.

        Raises:
            ConfigurationError: a variable is missing or wrong.
        """
        tenant_id, parameter = tenant_from_environment(), os.environ.get(TENANT_PARAMETER_VARIABLE)
        if (tenant_id is None) == (not parameter):
            raise ConfigurationError(f"set either {TENANT_ID_VARIABLE} or {TENANT_PARAMETER_VARIABLE}")
        api = Api.from_environment()
        if tenant_id is not None:
            return cls(api, lambda _: tenant_id)
        return cls(api, lambda parameters: UUID(parameters[str(parameter)]))

    def __call__(self, event: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Allow the device if the bridge allows it in time, and deny it in every other case."""
        name, reason = self._decide(event, seconds)
        certificates = (
            f"claim certificate {event.get('claimCertificateId')}, certificate {event.get('certificateId')}"
        )
        if reason is not None:
            logger.warning("denied: %s (%s)", reason, certificates)
            return {"allowProvisioning": False, "parameterOverrides": {}}
        logger.info("allowed (%s)", certificates)
        overrides = {
            "ThingName": str(name),
            "CertificateId": str(event.get("certificateId")),
            "ClaimCertificateId": str(event.get("claimCertificateId")),
        }
        return {"allowProvisioning": True, "parameterOverrides": overrides}

    def _decide(self, event: dict[str, Any], seconds: float) -> tuple[ThingName | None, str | None]:
        """Return the Thing name if the device is allowed, else the reason for the denial."""
        parameters = event.get("parameters")
        if not isinstance(parameters, dict):
            return None, "the event has no parameters"
        try:
            tenant_id = null_if_zero(self._tenant_of(parameters))
        except (KeyError, ValueError, AttributeError, TypeError):
            return None, "the parameter with the tenant is missing or not a UUID"
        name = ThingName.of(tenant_id, parameters.get(SERIAL_NUMBER_PARAMETER))
        if name is None:
            return None, f"the parameter {SERIAL_NUMBER_PARAMETER} is missing or not a serial number"
        try:
            response = self._api.post("/api/iot/fleet-provisioning/verify", name.body, seconds)
        except NoResponseError as error:
            return None, f"the bridge did not answer: {error}"
        if response.status == _ALLOWED and response.body.get("allowProvisioning") is True:
            return name, None
        return None, str(response.body.get("reason") or response.problem)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Handle an invocation by Lambda."""
    left = context.get_remaining_time_in_millis() / 1000 - _RESERVE_SECONDS
    return _hook()(event, min(_BUDGET_SECONDS, left))


_hook = functools.cache(Hook.from_environment)

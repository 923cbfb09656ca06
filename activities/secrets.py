"""Activity of the saga for the secret that holds a device's private key."""

from temporalio import activity

from aws.secrets import Secrets
from domain.saga import TeardownPlan


class SecretActivities:
    """Erasure of a device's secrets; `issue_certificate` stores the key."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    @activity.defn(name="erase_secret", no_thread_cancel_exception=True)
    def erase_secret(self, plan: TeardownPlan) -> None:
        """Delete the device's secrets permanently, without a recovery window."""
        for arn in plan.secret_arns:
            self._secrets.erase(arn)

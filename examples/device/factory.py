"""The factory: it fetches the certificate and the private key of a Thing, to be written to the device.

thingbridge stores the key in Secrets Manager and never reads it back. Whoever makes the devices may read the
secret, and deletes or locks it afterwards. A device itself has no access to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from examples.device.device import Identity

if TYPE_CHECKING:
    from types_boto3_iot import IoTClient
    from types_boto3_secretsmanager import SecretsManagerClient

SECRET_NAME_TEMPLATE: Final = "iot/devices/{thingName}/key"  # noqa: S105 - the name of a secret, not its value
"""The default of thingbridge's setting PROVISIONING__SECRET_NAME_TEMPLATE."""


class FactoryError(Exception):
    """The certificate and key of a Thing are not available."""


def fetch_identity(
    thing_name: str,
    iot: IoTClient,
    secrets: SecretsManagerClient,
    secret_name_template: str = SECRET_NAME_TEMPLATE,
) -> Identity:
    """Return the active certificate of a Thing whose key is in the Thing's secret, and that key.

    Raises:
        FactoryError: the Thing has no such certificate or secret, or AWS refused a call.
    """
    secret_name = secret_name_template.replace("{thingName}", thing_name)
    try:
        private_key = secrets.get_secret_value(SecretId=secret_name)["SecretString"]
        public_key = load_pem_private_key(private_key.encode(), password=None).public_key()
        for arn in iot.list_thing_principals(thingName=thing_name)["principals"]:
            certificate_id = arn.rpartition(":cert/")[2]
            found = iot.describe_certificate(certificateId=certificate_id)["certificateDescription"]
            pem = found["certificatePem"].encode()
            if found["status"] == "ACTIVE" and x509.load_pem_x509_certificate(pem).public_key() == public_key:
                return Identity(pem, private_key.encode())
    except (BotoCoreError, ClientError) as error:
        raise FactoryError(f"cannot fetch the certificate and key of {thing_name}: {error}") from error
    except ValueError:
        raise FactoryError(f"the secret {secret_name} contains no private key as PEM") from None
    raise FactoryError(
        f"{thing_name} has no active certificate for the key in the secret {secret_name}; is it Active?"
    )

"""Fleet provisioning in the emulated account: what `deploy/terraform/enrolment` creates in a real one.

The emulator runs the functions of `deploy/lambda` in processes of this machine.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from embedded import ACCOUNT, REGION
from embedded.aws_client import aws_client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

THING_TYPE: Final = "thingbridge-device"
"""The Thing type of devices that enrol themselves."""

_DEPLOY: Final = Path(__file__).parent.parent / "deploy"
_TEMPLATE_FILE: Final = Path("terraform", "enrolment", "provisioning-template.json.tftpl")
_MANAGED_POLICY: Final = "arn:aws:iam::aws:policy/service-role/AWSIoTThingsRegistration"
_IOT: Final = f"arn:aws:iot:{REGION}:{ACCOUNT}"
_LAMBDA: Final = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
_FUNCTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "hook": {"Handler": "pre_provisioning_hook.handler", "Timeout": 5, "MemorySize": 512},
    "registration": {"Handler": "registration.handler", "Timeout": 60, "MemorySize": 256},
}


class FleetProvisioningError(RuntimeError):
    """Fleet provisioning cannot be prepared."""


@dataclass(frozen=True)
class ClaimCertificate:
    """A claim certificate, with which devices enrol themselves."""

    template_name: str
    """The provisioning template that it can be used with."""
    client_id_prefix: str
    """The prefix of the client ids that it can connect with."""
    certificate_id: str
    certificate_pem: str
    private_key: str = field(repr=False)


def prepare_fleet_provisioning(
    aws_endpoint_url: str,
    *,
    name: str,
    tenant_id: UUID,
    api_url: str,
    api_key: str,
    device_policy_name: str,
    deploy: Path = _DEPLOY,
) -> ClaimCertificate:
    """Create what the devices of one tenant need to enrol themselves, and return a claim certificate.

    Args:
        aws_endpoint_url: the URL of the emulator.
        name: the name of the template, and the prefix of the names of its functions, roles and rule. The
            account must have none of them yet.
        tenant_id: the tenant of the devices; the zero UUID for devices without a tenant.
        api_url: the URL of the bridge's API, for the functions.
        api_key: an API key of the tenant. It is stored as a secret of the account.
        device_policy_name: the IoT policy of the devices, which must exist.
        deploy: the folder `deploy` of the repository. It is not a part of the installed package.

    Raises:
        FleetProvisioningError: a file is missing, the account has such resources already, or a function
            cannot start.
    """
    account = _Account(aws_endpoint_url, name, tenant_id)
    body, package = read_deploy_files(deploy)
    template_body = body.substitute(device_policy_name=device_policy_name, thing_type_name=THING_TYPE)
    try:
        account.publish_thing_events()
        account.create_functions(package, api_url, account.create_api_key_secret(api_key))
        account.create_template(template_body)
        account.create_rule()
        return account.create_claim_certificate()
    except (BotoCoreError, ClientError) as error:
        raise FleetProvisioningError(f"cannot prepare fleet provisioning {name}: {error}") from error


def read_deploy_files(deploy: Path = _DEPLOY) -> tuple[Template, bytes]:
    """Return the provisioning template and the package of the functions.

    Args:
        deploy: the folder `deploy` of the repository.

    Raises:
        FleetProvisioningError: a file cannot be read.
    """
    try:
        return Template((deploy / _TEMPLATE_FILE).read_text()), _package(deploy / "lambda")
    except OSError as error:
        raise FleetProvisioningError(
            f"cannot read {error.filename} ({error.strerror}): this needs a clone of the repository"
        ) from None


def claim_policy(name: str) -> dict[str, Any]:
    """Return the IoT policy of the claim certificates of a template.

    With it a device can do nothing else than request a certificate and enrol with this template.
    """
    topics = (
        "$aws/certificates/create/*",
        "$aws/certificates/create-from-csr/*",
        f"$aws/provisioning-templates/{name}/provision/*",
    )
    return _policy(
        _allow(["iot:Connect"], [f"{_IOT}:client/{_client_id_prefix(name)}*"]),
        _allow(["iot:Publish", "iot:Receive"], [f"{_IOT}:topic/{topic}" for topic in topics]),
        _allow(["iot:Subscribe"], [f"{_IOT}:topicfilter/{topic}" for topic in topics]),
    )


def registration_sql(tenant_id: UUID) -> str:
    """Return the SQL of the rule that calls the registration for the Things of a tenant."""
    return (
        "SELECT * FROM '$aws/events/thing/+/+' "  # noqa: S608  # nosec B608  # of a rule; a UUID needs no quoting
        "WHERE (operation = 'CREATED' OR operation = 'UPDATED') "
        f"AND regexp_matches(thingName, '^{_thing_prefix(tenant_id)}') "
        "AND isUndefined(attributes.deviceId)"
    )


class _Account:
    """The emulated account, in which the resources of one template are created."""

    def __init__(self, aws_endpoint_url: str, name: str, tenant_id: UUID) -> None:
        self._name = name
        self._tenant_id = tenant_id
        # A call that failed is not repeated: the account would have the resource already.
        self._iam, self._iot, self._lambda, self._secrets = (
            aws_client(service, aws_endpoint_url, attempts=1)
            for service in ("iam", "iot", "lambda", "secretsmanager")
        )

    def publish_thing_events(self) -> None:
        """Create the Thing type, and have the registry publish the events of Things."""
        self._iot.create_thing_type(thingTypeName=THING_TYPE)
        self._iot.update_event_configurations(eventConfigurations={"THING": {"Enabled": True}})

    def create_api_key_secret(self, api_key: str) -> str:
        """Store the API key in a secret, and return its ARN."""
        return str(self._secrets.create_secret(Name=f"{self._name}/api-key", SecretString=api_key)["ARN"])

    def create_functions(self, package: bytes, api_url: str, secret_arn: str) -> None:
        """Create the hook and the registration, and start the hook."""
        permissions = {
            "hook": [_allow(["secretsmanager:GetSecretValue"], [secret_arn])],
            "registration": [
                _allow(["secretsmanager:GetSecretValue"], [secret_arn]),
                _allow(
                    ["iot:DescribeThing", "iot:ListThingPrincipals"],
                    [f"{_IOT}:thing/{_thing_prefix(self._tenant_id)}*"],
                ),
                _allow(["iot:DescribeCertificate"], [f"{_IOT}:cert/*"]),
            ],
        }
        variables = {
            "THINGBRIDGE_URL": api_url,
            "THINGBRIDGE_KEY_SECRET": secret_arn,
            "THINGBRIDGE_TENANT_ID": str(self._tenant_id),
        }
        callers = {
            "hook": f"{_IOT}:provisioningtemplate/{self._name}",
            "registration": f"{_IOT}:rule/{self._rule_name}",
        }
        for function, options in _FUNCTIONS.items():
            role = self._create_role(f"{self._name}-{function}", "lambda.amazonaws.com")
            self._iam.put_role_policy(
                RoleName=f"{self._name}-{function}",
                PolicyName=function,
                PolicyDocument=json.dumps(_policy(*permissions[function])),
            )
            self._lambda.create_function(
                FunctionName=f"{self._name}-{function}",
                Role=role,
                Runtime="python3.13",
                Code={"ZipFile": package},
                Environment={"Variables": variables},
                **options,
            )
            self._lambda.add_permission(
                FunctionName=f"{self._name}-{function}",
                StatementId="aws-iot",
                Action="lambda:InvokeFunction",
                Principal="iot.amazonaws.com",
                SourceAccount=ACCOUNT,
                SourceArn=callers[function],
            )
        self._start_hook()

    def _start_hook(self) -> None:
        """Invoke the hook once, which denies the empty request. A fault of its settings is found here.

        The emulator keeps its process. On a busy machine its start can last longer than AWS waits for a hook.
        """
        invoked = self._lambda.invoke(FunctionName=f"{self._name}-hook", Payload=b'{"parameters": {}}')
        answer = invoked["Payload"].read().decode(errors="replace")
        if "FunctionError" in invoked:
            raise FleetProvisioningError(f"the function {self._name}-hook cannot start: {answer}")

    def create_template(self, body: str) -> None:
        """Create the provisioning template with its role and its hook."""
        role = self._create_role(f"{self._name}-provisioning", "iot.amazonaws.com")
        self._iam.attach_role_policy(RoleName=f"{self._name}-provisioning", PolicyArn=_MANAGED_POLICY)
        self._iot.create_provisioning_template(
            templateName=self._name,
            templateBody=body,
            enabled=True,
            provisioningRoleArn=role,
            preProvisioningHook={
                "payloadVersion": "2020-04-01",
                "targetArn": f"{_LAMBDA}:{self._name}-hook",
            },
        )

    def create_rule(self) -> None:
        """Create the rule that passes the registry events of the tenant's Things to the registration."""
        rule = {
            "sql": registration_sql(self._tenant_id),
            "awsIotSqlVersion": "2016-03-23",
            "actions": [{"lambda": {"functionArn": f"{_LAMBDA}:{self._name}-registration"}}],
        }
        self._iot.create_topic_rule(ruleName=self._rule_name, topicRulePayload=rule)

    def create_claim_certificate(self) -> ClaimCertificate:
        """Create an active claim certificate with its policy."""
        policy = f"{self._name}-claim"
        self._iot.create_policy(policyName=policy, policyDocument=json.dumps(claim_policy(self._name)))
        created = self._iot.create_keys_and_certificate(setAsActive=True)
        self._iot.attach_policy(policyName=policy, target=created["certificateArn"])
        return ClaimCertificate(
            template_name=self._name,
            client_id_prefix=_client_id_prefix(self._name),
            certificate_id=created["certificateId"],
            certificate_pem=created["certificatePem"],
            private_key=created["keyPair"]["PrivateKey"],
        )

    def _create_role(self, name: str, service: str) -> str:
        """Create a role that an AWS service can assume, and return its ARN."""
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": service}}
        created = self._iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(_policy(trust)))
        return str(created["Role"]["Arn"])

    @property
    def _rule_name(self) -> str:
        return f"{self._name.replace('-', '_')}_registration"


def _package(folder: Path) -> bytes:
    """Return a zip with the modules of the functions."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as package:
        # Listed by name, so that a missing folder is an error.
        for module in ("pre_provisioning_hook", "registration", "thingbridge_api"):
            package.write(folder / f"{module}.py", f"{module}.py")
    return content.getvalue()


def _allow(actions: Sequence[str], resources: Sequence[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _policy(*statements: Mapping[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _client_id_prefix(name: str) -> str:
    """Return the prefix of the client ids of claim certificates. No Thing name begins with `claim-`."""
    return f"claim-{name}-"


def _thing_prefix(tenant_id: UUID) -> str:
    """Return the prefix of the Thing names of a tenant."""
    return f"t{tenant_id.hex}-"

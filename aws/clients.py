"""The AWS clients of this process. Every service of this package calls AWS through `AwsClients.call`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aws.call_metrics import observe_calls
from aws.credential_provider import FleetCredentialProvider
from aws.credentials import FleetCredentials
from aws.errors import CredentialsNotReadyError, aws_error
from aws.guard import before_request
from domain.enrolment import AwsLocation
from domain.operator_error import OperatorError

if TYPE_CHECKING:
    from types_boto3_events import EventBridgeClient
    from types_boto3_iot import IoTClient
    from types_boto3_iot_data import IoTDataPlaneClient
    from types_boto3_secretsmanager import SecretsManagerClient
    from types_boto3_sns import SNSClient

P = ParamSpec("P")
R = TypeVar("R")
Page_co = TypeVar("Page_co", covariant=True)

CONNECT_SECONDS: Final = 3.0
# Long: a certificate whose response arrives after the timeout exists in AWS but is unrecorded.
READ_SECONDS: Final = 20.0
CALL_SECONDS: Final = CONNECT_SECONDS + READ_SECONDS
"""The longest time that one call takes."""
# Short: the read of a shadow can be repeated, and an activity that reads a thousand of them must send
# heartbeats in between.
SHADOW_READ_SECONDS: Final = 5.0
SECRET_READ_SECONDS: Final = 5.0
# Short: an event can be sent again, and a sink must answer within ten seconds.
_EVENT_READ_SECONDS: Final = 5.0


class AwsConfigurationError(OperatorError):
    """The AWS settings of the process are incomplete."""


class Pages(Protocol[Page_co]):
    """The pages that a botocore paginator returns."""

    def __iter__(self) -> Iterator[Page_co]: ...


class FleetSecret:
    """The secret that holds the bridge's AWS keys. It is read with the credentials of boto3's default chain.

    Args:
        arn: the secret's ARN; its region is the region of the request.
    """

    def __init__(self, arn: str) -> None:
        # Short: a call whose keys AWS rejected waits for this read, and must send its next heartbeat in time.
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SECRET_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent_extra="thingbridge",
        )
        self._arn = arn
        self.secrets: SecretsManagerClient = boto3.Session(region_name=arn.split(":")[3]).client(
            "secretsmanager", config=config
        )

    def read(self) -> str:
        """Return the secret's text; an empty text if the secret is binary.

        Raises:
            AwsError: AWS refuses the request or does not answer.
        """
        try:
            return self.secrets.get_secret_value(SecretId=self._arn).get("SecretString", "")
        except (ClientError, BotoCoreError) as error:
            raise aws_error(error) from None


class AwsClients:
    """The AWS clients of this process, and the calls made through them.

    boto3 finds the endpoints and, if not given here, credentials and region: in the environment, profiles and
    roles.

    Args:
        concurrency: the number of threads that call AWS at once, and of connections that are kept.
        region: the region of every client.
        credentials: the keys of every client. No call is made before they are ready.

    Raises:
        AwsConfigurationError: no region is configured.
    """

    def __init__(
        self, concurrency: int, region: str | None = None, credentials: FleetCredentials | None = None
    ) -> None:
        core = botocore.session.Session()
        if credentials is not None:
            FleetCredentialProvider(credentials).register(core)
        session = boto3.Session(botocore_session=core, region_name=region)
        if session.region_name is None:
            raise AwsConfigurationError(
                "AWS_REGION: is required (allowed: a region's name, such as eu-west-1)"
            )
        observe_calls(session.events)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=concurrency,
            # Temporal retries instead: its retries are visible, bounded and survive the process.
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent_extra="thingbridge",
        )
        self.iot: IoTClient = session.client("iot", config=config)
        self.iot_data: IoTDataPlaneClient = session.client(
            "iot-data", config=config.merge(Config(read_timeout=SHADOW_READ_SECONDS))
        )
        self.secrets: SecretsManagerClient = session.client("secretsmanager", config=config)
        self._event_config = config.merge(Config(read_timeout=_EVENT_READ_SECONDS))
        self._session, self._config = session, config
        self.credentials = credentials

    @property
    def credentials_ready(self) -> bool:
        """True if calls can be made; always with boto3's default chain."""
        return self.credentials is None or self.credentials.ready

    @property
    def credentials_age_seconds(self) -> float | None:
        """The time since the keys were last read; None before that, and with boto3's default chain."""
        return self.credentials.age_seconds if self.credentials else None

    def events(self) -> "EventBridgeClient":
        """Return a new client for EventBridge, needed only if events are sent there."""
        return self._session.client("events", config=self._event_config)

    def sns(self, region: str) -> "SNSClient":
        """Return a new client for SNS, needed only if events are sent there.

        Args:
            region: the region of the topic.
        """
        return self._session.client("sns", region_name=region, config=self._event_config)

    def call(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Send one request and return the response.

        Raises:
            AwsError: AWS refuses the request or does not answer; `aws.errors` lists the subclasses.
        """
        if not self.credentials_ready:
            raise CredentialsNotReadyError
        before_request.get()()
        try:
            return operation(*args, **kwargs)
        except (ClientError, BotoCoreError) as error:
            # Without the cause: botocore's error can quote the request, which can contain a private key.
            raise aws_error(error) from None

    def find_location(self, account_id: str | None) -> AwsLocation:
        """Return the partition, account and region of these clients.

        Args:
            account_id: the account; None to request it from AWS, which needs credentials but no permission.

        Raises:
            AwsError: AWS refuses the request or does not answer.
        """
        region = self._session.region_name
        if account_id is None:
            sts = self._session.client("sts", config=self._config)
            account_id = str(self.call(sts.get_caller_identity)["Account"])
        partition = self.call(self._session.get_partition_for_region, region)
        return AwsLocation(partition=partition, account_id=account_id, region=region)

    def pages(self, pages: Pages[R]) -> Iterator[R]:
        """Return an iterator over the pages of a listing.

        Raises:
            AwsError: AWS refuses the request of a page or does not answer.
        """
        iterator = iter(pages)
        while True:
            page = self.call(lambda: next(iterator, None))
            if page is None:
                return
            yield page

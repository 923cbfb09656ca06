"""The AWS clients of this process; every service of this package calls AWS through `AwsClients.call`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aws.call_metrics import observe_calls
from aws.credentials import FleetCredentialProvider, FleetCredentials
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
# Long: a certificate that AWS created, but whose answer the bridge did not wait for, is unrecorded.
READ_SECONDS: Final = 20.0
CALL_SECONDS: Final = CONNECT_SECONDS + READ_SECONDS
"""The longest time that one call can take."""
# Short: reading a shadow can be repeated, and an activity that reads a thousand of them must be able to send
# a heartbeat in between.
SHADOW_READ_SECONDS: Final = 5.0
SECRET_READ_SECONDS: Final = 5.0
# Short as well, since an event can be sent again: a sink has ten seconds for it.
_EVENT_READ_SECONDS: Final = 5.0


class AwsConfigurationError(OperatorError):
    """AWS's own settings are not sufficient to call it."""


class Pages(Protocol[Page_co]):
    """What botocore's paginators return."""

    def __iter__(self) -> Iterator[Page_co]: ...


class FleetSecret:
    """The secret that holds the bridge's keys, read by what boto3's default chain finds.

    Args:
        arn: its ARN, by whose region it is asked for.
    """

    def __init__(self, arn: str) -> None:
        # A call that AWS refused for its keys waits for this, and must go on saying that it lives.
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
        """The secret's text; empty where it is binary.

        Raises:
            AwsError: it is not to be had.
        """
        try:
            return self.secrets.get_secret_value(SecretId=self._arn).get("SecretString", "")
        except (ClientError, BotoCoreError) as error:
            raise aws_error(error) from None


class AwsClients:
    """The AWS clients of this process, and the calls made through them.

    Endpoints and, where none are given, credentials and region are boto3's own: environment, profiles, roles.

    Args:
        concurrency: how many threads call AWS at once; as many connections are kept.
        region: the region of every client.
        credentials: the keys of every client; no call is made before there are any.

    Raises:
        AwsConfigurationError: no region is to be found.
    """

    def __init__(
        self, concurrency: int, region: str | None = None, credentials: FleetCredentials | None = None
    ) -> None:
        core = botocore.session.Session()
        if credentials is not None:
            FleetCredentialProvider(credentials).join(core)
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
            # Temporal owns retrying: there it is seen, bounded and outlives the process.
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
        """Whether calls are made; with boto3's default chain always."""
        return self.credentials is None or self.credentials.ready

    @property
    def credentials_age_seconds(self) -> float | None:
        """How long ago the keys were last read well; None with boto3's default chain, or where never."""
        return self.credentials.age_seconds if self.credentials else None

    def events(self) -> "EventBridgeClient":
        """A client for EventBridge, which only a bridge that sends its events there needs."""
        return self._session.client("events", config=self._event_config)

    def sns(self, region: str) -> "SNSClient":
        """A client for SNS, which only a bridge that sends its events there needs.

        Args:
            region: the topic's.
        """
        return self._session.client("sns", region_name=region, config=self._event_config)

    def call(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Send one request and return the answer.

        Raises:
            AwsError: AWS refused or did not answer; `aws.errors` lists the subclasses.
        """
        if not self.credentials_ready:
            raise CredentialsNotReadyError
        before_request.get()()
        try:
            return operation(*args, **kwargs)
        except (ClientError, BotoCoreError) as error:
            # What botocore raised is cut off: it may quote what was sent, and that may be a key.
            raise aws_error(error) from None

    def find_location(self, account_id: str | None) -> AwsLocation:
        """Where in AWS these clients are; the account is AWS's own word, where none is given.

        Raises:
            AwsError: AWS does not say. Asking needs no permission, but credentials.
        """
        region = self._session.region_name
        if account_id is None:
            sts = self._session.client("sts", config=self._config)
            account_id = str(self.call(sts.get_caller_identity)["Account"])
        partition = self.call(self._session.get_partition_for_region, region)
        return AwsLocation(partition=partition, account_id=account_id, region=region)

    def pages(self, pages: Pages[R]) -> Iterator[R]:
        """Every page of a listing, each call's errors as those of `call`."""
        iterator = iter(pages)
        while True:
            page = self.call(lambda: next(iterator, None))
            if page is None:
                return
            yield page

"""Events to an Amazon SNS topic."""

from typing import TYPE_CHECKING

from cloudevents.core.v1.event import CloudEvent

from aws.clients import AwsClients
from aws.errors import InvalidParameterError
from events.cloud_events import as_json
from events.sink import EventRefusedError, fingerprint

if TYPE_CHECKING:
    from types_boto3_sns.type_defs import MessageAttributeValueTypeDef


class SnsSink:
    """Publishes events to a topic; type and tenant are message attributes that subscriptions can filter by.

    Args:
        aws: the AWS clients.
        topic_arn: the topic, which may be in another region.
    """

    kind = "sns"

    def __init__(self, aws: AwsClients, topic_arn: str) -> None:
        self._aws = aws
        self._sns = aws.sns(topic_arn.split(":")[3])
        self._topic_arn = topic_arn
        self.fingerprint = fingerprint(self.kind, topic_arn)

    def send(self, event: CloudEvent) -> None:
        """Publish the event to the topic.

        Raises:
            EventRefusedError: SNS refuses the message because of its content.
            AwsError: the call failed.
        """
        try:
            self._aws.call(
                self._sns.publish,
                TopicArn=self._topic_arn,
                Message=as_json(event),
                MessageAttributes=_attributes(event),
                **self._fifo_parameters(event),
            )
        except InvalidParameterError as error:
            # AWS gives the code InvalidParameter for every parameter, so only the message shows which one it
            # is. The topic comes from the settings, all other parameters from the event.
            if "TopicArn" in error.message:
                raise
            raise EventRefusedError(error.message) from None

    def _fifo_parameters(self, event: CloudEvent) -> dict[str, str]:
        """Return the parameters that a FIFO topic requires; SNS refuses them for any other topic."""
        if not self._topic_arn.endswith(".fifo"):
            return {}
        return {
            "MessageGroupId": event.get_subject() or event.get_id(),
            "MessageDeduplicationId": event.get_id(),
        }


def _attributes(event: CloudEvent) -> dict[str, "MessageAttributeValueTypeDef"]:
    data = event.get_data()
    tenant = data.get("tenantId") if isinstance(data, dict) else None
    known = {"type": event.get_type()} | ({"tenantId": tenant} if tenant else {})
    return {name: {"DataType": "String", "StringValue": value} for name, value in known.items()}

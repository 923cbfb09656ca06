"""Events to an Amazon SNS topic."""

from typing import TYPE_CHECKING

from cloudevents.core.v1.event import CloudEvent

from aws.clients import AwsClients
from aws.errors import InvalidParameterError
from events.sink import EventRejectedError, as_json, fingerprint

if TYPE_CHECKING:
    from types_boto3_sns.type_defs import MessageAttributeValueTypeDef


class TopicSink:
    """A topic; type and tenant are attributes of the message, by which a subscription filters.

    Args:
        aws: the AWS clients.
        topic_arn: the topic, which may be another region's.
    """

    kind = "sns"

    def __init__(self, aws: AwsClients, topic_arn: str) -> None:
        self._aws = aws
        self._sns = aws.sns(topic_arn.split(":")[3])
        self._topic_arn = topic_arn
        self.fingerprint = fingerprint(self.kind, topic_arn)

    def send(self, event: CloudEvent) -> None:
        """Publish the event."""
        try:
            self._aws.call(
                self._sns.publish,
                TopicArn=self._topic_arn,
                Message=as_json(event),
                MessageAttributes=_attributes(event),
                **self._ordering(event),
            )
        except InvalidParameterError as error:
            # Of the parameters only the topic is not the event's own.
            if "TopicArn" in error.what:
                raise
            raise EventRejectedError(error.what) from None

    def _ordering(self, event: CloudEvent) -> dict[str, str]:
        """What a FIFO topic goes by; no other topic takes it."""
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

"""What is attached to what in AWS's registry: certificates to Things, and Things to certificates."""

from typing import Final

from aws.clients import AwsClients
from aws.errors import NotFoundError

_CERTIFICATE_MARK: Final = ":cert/"


def certificates_of(aws: AwsClients, thing_name: str) -> list[str]:
    """The ARNs of the certificates attached to a Thing; none where there is no such Thing."""
    pages = aws.iot.get_paginator("list_thing_principals").paginate(thingName=thing_name)
    try:
        return [
            principal
            for page in aws.pages(pages)
            for principal in page.get("principals", [])
            if _CERTIFICATE_MARK in principal
        ]
    except NotFoundError:
        return []


def things_of(aws: AwsClients, certificate_arn: str) -> list[str] | None:
    """The names of the Things a certificate is attached to; None where there is no such certificate."""
    pages = aws.iot.get_paginator("list_principal_things").paginate(principal=certificate_arn)
    try:
        return [thing for page in aws.pages(pages) for thing in page.get("things", [])]
    except NotFoundError:
        return None

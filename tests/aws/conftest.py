"""Fixture of the tests of plain services: moto in this process."""

import os
from collections.abc import Iterator

import pytest
from moto import mock_aws

from aws.clients import AwsClients
from embedded import REGION
from tests.harness.moto import without_connections


@pytest.fixture(scope="module")
def moto_aws() -> Iterator[AwsClients]:
    """The clients of an AWS account that moto holds in this process.

    moto answers requests to AWS's own host names only. Clients of the emulator, which other tests of this
    process use, are not affected.
    """
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, os.devnull)
        with mock_aws():
            yield without_connections(AwsClients(1, REGION))

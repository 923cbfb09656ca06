"""What ministack does differently from AWS. Each test states what AWS does, and is expected to fail.

The tests run against ministack itself, without our layer. A test that passes means that ministack was
corrected: then remove the test, the correction in `embedded/emulator/`, and the row in docs/emulator.md.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from embedded import ACCOUNT, REGION
from embedded.aws_client import aws_client
from embedded.processes import HOST, choose_ports, is_ok
from embedded.stack import server_environment
from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

differs = pytest.mark.xfail(strict=True, raises=(AssertionError, pytest.fail.Exception, ClientError))

TOKENS = ("a" * 32, "b" * 32)


class Ministack:
    """A ministack process, with boto3 clients that do not retry."""

    def __init__(self, port: int, mqtt_port: int) -> None:
        url = f"http://{HOST}:{port}"
        self.mqtt_port = mqtt_port
        self.iot, self.data, self.secrets = (
            aws_client(service, url, attempts=1) for service in ("iot", "iot-data", "secretsmanager")
        )

    def create_attached(self, thing: str) -> tuple[str, str]:
        """Create a Thing with an inactive certificate, and return the id and the ARN of the certificate."""
        self.iot.create_thing(thingName=thing)
        made = self.iot.create_keys_and_certificate()
        self.iot.attach_thing_principal(thingName=thing, principal=made["certificateArn"])
        return made["certificateId"], made["certificateArn"]


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    """Run one ministack for all tests of this file. They use different names."""
    port, mqtt_port = choose_ports(0, 0)
    environment = {
        **server_environment(),
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_PORT": str(mqtt_port),
        "MINISTACK_REGION": REGION,
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen([sys.executable, "-m", "ministack"], env=environment)
    try:
        ends = time.monotonic() + 60
        while not is_ok(port, "/_ministack/ready"):
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield Ministack(port, mqtt_port)
    finally:
        process.terminate()
        process.wait(60)


def refused(code: str, call: Callable[..., object], **arguments: Any) -> None:
    """Make a call that AWS refuses with this error code."""
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    assert raised.value.response["Error"]["Code"] == code


@differs
def test_update_thing_checks_the_expected_version(ministack: Ministack) -> None:
    ministack.iot.create_thing(thingName="version")
    refused("VersionConflictException", ministack.iot.update_thing, thingName="version", expectedVersion=7)


@differs
def test_update_thing_removes_an_attribute_without_a_value(ministack: Ministack) -> None:
    ministack.iot.create_thing(thingName="empty")
    ministack.iot.update_thing(thingName="empty", attributePayload={"attributes": {"a": ""}})
    assert ministack.iot.describe_thing(thingName="empty")["attributes"] == {}


@differs
def test_an_untyped_thing_has_three_attributes(ministack: Ministack) -> None:
    four = {"attributes": dict.fromkeys("abcd", "1")}
    create = ministack.iot.create_thing
    refused("InvalidRequestException", create, thingName="four", attributePayload=four)


@differs
def test_a_conflict_names_the_existing_thing(ministack: Ministack) -> None:
    arn = ministack.iot.create_thing(thingName="conflict")["thingArn"]
    with pytest.raises(ClientError) as raised:
        ministack.iot.create_thing(thingName="conflict", attributePayload={"attributes": {"a": "1"}})
    assert raised.value.response.get("resourceArn") == arn


@differs
def test_texts_are_validated(ministack: Ministack) -> None:
    space = {"attributes": {"a": "white space"}}
    create = ministack.iot.create_thing
    refused("InvalidRequestException", create, thingName="space", attributePayload=space)


@differs
def test_things_are_listed_in_pages(ministack: Ministack) -> None:
    for name in ("page-1", "page-2"):
        ministack.iot.create_thing(thingName=name)
    assert len(ministack.iot.list_things(maxResults=1)["things"]) == 1


@differs
def test_certificates_are_listed_in_pages(ministack: Ministack) -> None:
    for _ in range(2):
        ministack.iot.create_keys_and_certificate()
    assert len(ministack.iot.list_certificates(pageSize=1)["certificates"]) == 1


@differs
def test_executions_of_a_thing_are_listed_in_pages(ministack: Ministack) -> None:
    arn = ministack.iot.create_thing(thingName="busy")["thingArn"]
    for job_id in ("page-1", "page-2"):
        ministack.iot.create_job(jobId=job_id, targets=[arn], document="{}")
    listed = ministack.iot.list_job_executions_for_thing(thingName="busy", maxResults=1)
    assert len(listed["executionSummaries"]) == 1


@differs
def test_a_certificate_has_a_validity(ministack: Ministack) -> None:
    certificate_id = ministack.iot.create_keys_and_certificate()["certificateId"]
    described = ministack.iot.describe_certificate(certificateId=certificate_id)["certificateDescription"]
    assert described.get("validity")


@differs
def test_an_exclusive_principal_serves_one_thing(ministack: Ministack) -> None:
    for name in ("exclusive", "other"):
        ministack.iot.create_thing(thingName=name)
    arn = ministack.iot.create_keys_and_certificate()["certificateArn"]
    attach = ministack.iot.attach_thing_principal
    attach(thingName="exclusive", principal=arn, thingPrincipalType="EXCLUSIVE_THING")
    refused("InvalidRequestException", attach, thingName="other", principal=arn)


@differs
def test_a_detach_takes_some_time(ministack: Ministack) -> None:
    _, arn = ministack.create_attached("detached")
    ministack.iot.detach_thing_principal(thingName="detached", principal=arn)
    refused("InvalidRequestException", ministack.iot.delete_thing, thingName="detached")


@differs
def test_a_certificate_cannot_be_deleted_until_its_detach_settles(ministack: Ministack) -> None:
    certificate_id, arn = ministack.create_attached("settling")
    ministack.iot.detach_thing_principal(thingName="settling", principal=arn)
    refused("DeleteConflictException", ministack.iot.delete_certificate, certificateId=certificate_id)


@differs
def test_a_thing_group_can_be_dynamic(ministack: Ministack) -> None:
    ministack.iot.create_dynamic_thing_group(thingGroupName="dynamic", queryString="thingName:a*")


@differs
@pytest.mark.parametrize("query", ["shadow.hasDelta:true", "thingName:a OR thingName:b", "NOT thingName:a"])
def test_the_index_understands_the_query(ministack: Ministack, query: str) -> None:
    indexing = {"thingIndexingMode": "REGISTRY_AND_SHADOW"}
    ministack.iot.update_indexing_configuration(thingIndexingConfiguration=indexing)
    ministack.iot.search_index(queryString=query)


@differs
def test_a_connection_can_be_deleted(ministack: Ministack) -> None:
    refused("ResourceNotFoundException", ministack.data.delete_connection, clientId="none")


@differs
def test_named_shadows_are_listed(ministack: Ministack) -> None:
    assert ministack.data.list_named_shadows_for_thing(thingName="any")["results"] == []


@differs
def test_a_large_shadow_is_refused(ministack: Ministack) -> None:
    large = json.dumps({"state": {"reported": {"text": "x" * 9000}}})
    update = ministack.data.update_thing_shadow
    refused("RequestEntityTooLargeException", update, thingName="large", payload=large)


@differs
def test_a_shadow_has_no_other_sections(ministack: Ministack) -> None:
    update, payload = ministack.data.update_thing_shadow, json.dumps({"state": {"unknown": {}}})
    refused("InvalidRequestException", update, thingName="sections", payload=payload)


@differs
def test_the_token_is_the_version_of_a_new_secret(ministack: Ministack) -> None:
    created = ministack.secrets.create_secret(Name="token", SecretString="1", ClientRequestToken=TOKENS[0])
    assert created["VersionId"] == TOKENS[0]


@differs
def test_a_secret_is_created_once_for_its_token(ministack: Ministack) -> None:
    for _ in range(2):
        ministack.secrets.create_secret(Name="once", SecretString="1", ClientRequestToken=TOKENS[0])


@differs
def test_a_token_has_one_value(ministack: Ministack) -> None:
    ministack.secrets.create_secret(Name="value", SecretString="1")
    put = ministack.secrets.put_secret_value
    put(SecretId="value", SecretString="2", ClientRequestToken=TOKENS[1])
    refused("ResourceExistsException", put, SecretId="value", SecretString="3", ClientRequestToken=TOKENS[1])


@differs
def test_a_forced_deletion_of_an_absent_secret_succeeds(ministack: Ministack) -> None:
    ministack.secrets.delete_secret(SecretId="absent", ForceDeleteWithoutRecovery=True)


@differs
def test_a_forced_deletion_takes_some_time(ministack: Ministack) -> None:
    ministack.secrets.create_secret(Name="forced", SecretString="1")
    ministack.secrets.delete_secret(SecretId="forced", ForceDeleteWithoutRecovery=True)
    refused("InvalidRequestException", ministack.secrets.create_secret, Name="forced", SecretString="2")


@differs
def test_the_name_of_a_scheduled_secret_is_refused_as_scheduled(ministack: Ministack) -> None:
    ministack.secrets.create_secret(Name="scheduled", SecretString="1")
    ministack.secrets.delete_secret(SecretId="scheduled")
    create = ministack.secrets.create_secret
    refused("InvalidRequestException", create, Name="scheduled", SecretString="2")


@differs
def test_mqtt_requires_a_client_certificate(ministack: Ministack) -> None:
    """The server of ministack asks for a certificate, and goes on without one."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connect = bytes.fromhex("100d00044d5154540402003c000161")  # MQTT 3.1.1, client id "a"
    accepted = bytes.fromhex("20020000")
    with socket.create_connection((HOST, ministack.mqtt_port)) as plain, context.wrap_socket(plain) as tls:
        tls.settimeout(5)
        tls.sendall(connect)
        assert tls.recv(4) != accepted


def test_every_difference_is_documented() -> None:
    """docs/emulator.md has one row for each test of this file, and no other."""
    documented = re.findall(r"`(test_\w+)` \|$", (ROOT / "docs" / "emulator.md").read_text(), re.MULTILINE)
    tests = [name for name in globals() if name.startswith("test_")]
    assert [*documented, test_every_difference_is_documented.__name__] == tests

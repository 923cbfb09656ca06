"""The AWS emulator: it behaves as AWS where moto does not, and its control endpoint works."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from embedded.emulator_control import EmulatorControl
from embedded.policy import create_device_policy
from embedded.processes import choose_ports
from embedded.stack import emulator_command, server_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from types_boto3_iot import IoTClient
    from types_boto3_iot_data import IoTDataPlaneClient
    from types_boto3_secretsmanager import SecretsManagerClient

SESSION = boto3.Session("embedded", "embedded", region_name="eu-west-1")
"""Shared by all clients, because each session loads the service models again."""


@dataclass(frozen=True)
class AwsClients:
    """Clients of one emulator, without retries, and the client of its control endpoint."""

    url: str
    iot: IoTClient
    data: IoTDataPlaneClient
    secrets: SecretsManagerClient
    jobs: Any
    """The device operations of jobs, which have no type stubs."""

    sts: Any
    control: EmulatorControl


@contextmanager
def emulator(state: Path) -> Iterator[tuple[subprocess.Popen[bytes], AwsClients]]:
    """Run an emulator process on a state file, and yield it with its clients."""
    port, mqtt_port = choose_ports(0, 0)
    command = emulator_command(port, mqtt_port, state)
    url = f"http://127.0.0.1:{port}"
    config = Config(retries={"total_max_attempts": 1}, proxies={}, max_pool_connections=32)
    iot = SESSION.client("iot", endpoint_url=url, config=config)
    data = SESSION.client("iot-data", endpoint_url=url, config=config)
    secrets = SESSION.client("secretsmanager", endpoint_url=url, config=config)
    jobs = SESSION.client("iot-jobs-data", endpoint_url=url, config=config)
    sts = SESSION.client("sts", endpoint_url=url, config=config)
    process = subprocess.Popen(command, env=server_environment())
    try:
        control = EmulatorControl(url)
        for _ in range(3000):
            try:
                control.calls()
                break
            except OSError:
                time.sleep(0.02)
        yield process, AwsClients(url, iot, data, secrets, jobs, sts, control)
    finally:
        for client in (iot, data, secrets, jobs, sts):
            client.close()
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsClients]:
    """Run one emulator for all tests of this file."""
    with emulator(tmp_path_factory.mktemp("aws") / "aws.state") as (_, aws):
        yield aws


@pytest.fixture
def aws(shared: AwsClients) -> AwsClients:
    """Return the emulator with an empty account, in which detaches and groups take effect at once."""
    shared.control.reset()
    shared.control.default_settings()
    shared.control.settings(detach_seconds=0, secret_deletion_seconds=0, group_build_seconds=0)
    return shared


@pytest.fixture
def thing(aws: AwsClients) -> str:
    """Create a Thing and return its name."""
    return aws.iot.create_thing(thingName="sensor-1", attributePayload={"attributes": {"deviceId": "1"}})[
        "thingName"
    ]


def refused(code: str, call: Callable[..., object], **arguments: Any) -> ClientError:
    """Make a call that AWS refuses, check the error code and return the error."""
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    assert raised.value.response["Error"]["Code"] == code
    return raised.value


def issue(aws: AwsClients, *, active: bool = False) -> tuple[str, str]:
    """Create a certificate and return its id and ARN."""
    made = aws.iot.create_keys_and_certificate(setAsActive=active)
    return made["certificateId"], made["certificateArn"]


def update_shadow(aws: AwsClients, thing_name: str, document: object, **name: str) -> dict[str, Any]:
    """Send a shadow document and return the accepted document."""
    response = aws.data.update_thing_shadow(thingName=thing_name, payload=json.dumps(document), **name)
    accepted: dict[str, Any] = json.load(response["payload"])
    return accepted


def get_shadow(aws: AwsClients, thing_name: str, **name: str) -> dict[str, Any]:
    """Return a shadow document."""
    document: dict[str, Any] = json.load(aws.data.get_thing_shadow(thingName=thing_name, **name)["payload"])
    return document


def wait_until(reached: Callable[[], bool]) -> None:
    """Return when the condition holds; fail after a minute."""
    ends = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.05)


def create_group(aws: AwsClients, name: str, query: str, **more: Any) -> str:
    """Create a dynamic group and return its ARN."""
    return aws.iot.create_dynamic_thing_group(thingGroupName=name, queryString=query, **more)["thingGroupArn"]


# Things


def test_a_revoked_key_is_refused_after_its_grace_period(aws: AwsClients) -> None:
    """Every protocol refuses the key and accepts other keys. Moto accepts every key."""
    session = boto3.Session("AKIAIOSFODNN7REVOKED", "x", region_name="eu-west-1")
    iot = session.client("iot", endpoint_url=aws.url)
    secrets = session.client("secretsmanager", endpoint_url=aws.url)
    sts = session.client("sts", endpoint_url=aws.url)
    aws.control.revoke_key("AKIAIOSFODNN7REVOKED", grace_seconds=3600)
    iot.list_things()
    aws.control.revoke_key("AKIAIOSFODNN7REVOKED")
    refused("UnrecognizedClientException", iot.list_things)
    refused("UnrecognizedClientException", secrets.list_secrets)
    refused("InvalidClientTokenId", sts.get_caller_identity)
    aws.iot.list_things()
    assert aws.control.refused_keys() == {"AKIAIOSFODNN7REVOKED": 3}
    aws.control.restore_keys()
    iot.list_things()


def test_create_thing_returns_the_existing_thing(aws: AwsClients, thing: str) -> None:
    """A repeated call with the same configuration returns the Thing and changes nothing."""
    before = aws.iot.describe_thing(thingName=thing)
    again = aws.iot.create_thing(thingName=thing, attributePayload={"attributes": {"deviceId": "1"}})
    assert (again["thingId"], again["thingArn"]) == (before["thingId"], before["thingArn"])
    assert aws.iot.describe_thing(thingName=thing)["attributes"] == {"deviceId": "1"}


def test_create_thing_refuses_another_configuration(aws: AwsClients, thing: str) -> None:
    """Other attributes or another type are a conflict."""
    other = {"attributes": {"deviceId": "2"}}
    error = refused(
        "ResourceAlreadyExistsException", aws.iot.create_thing, thingName=thing, attributePayload=other
    )
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 409
    aws.iot.create_thing_type(thingTypeName="sensor")
    refused(
        "ResourceAlreadyExistsException",
        aws.iot.create_thing,
        thingName=thing,
        thingTypeName="sensor",
        attributePayload={"attributes": {"deviceId": "1"}},
    )
    assert aws.iot.describe_thing(thingName=thing)["attributes"] == {"deviceId": "1"}


@pytest.mark.parametrize("name", ["a/b", "a b", "ä", "a.b", "x" * 129])
def test_invalid_thing_names_are_refused(aws: AwsClients, name: str) -> None:
    """A name that does not match `[a-zA-Z0-9:_-]{1,128}` is an invalid request."""
    refused("InvalidRequestException", aws.iot.create_thing, thingName=name)
    refused("InvalidRequestException", aws.iot.describe_thing, thingName=name)


def test_valid_thing_names_are_accepted(aws: AwsClients) -> None:
    """Every allowed character and the maximum length are accepted."""
    for name in ("aZ0:_-", "x" * 128):
        aws.iot.create_thing(thingName=name)
        assert aws.iot.describe_thing(thingName=name)["thingName"] == name


def test_invalid_attributes_are_refused(aws: AwsClients, thing: str) -> None:
    """A value with a space is refused. An empty value removes the attribute."""
    invalid = {"attributes": {"a": "white space"}}
    refused("InvalidRequestException", aws.iot.create_thing, thingName="other", attributePayload=invalid)
    for merge in (True, False):
        changed = {"attributes": {"deviceId": "", "a": "1"}, "merge": merge}
        aws.iot.update_thing(thingName=thing, attributePayload=changed)  # type: ignore[arg-type]
        assert aws.iot.describe_thing(thingName=thing)["attributes"] == {"a": "1"}


def test_update_thing_checks_the_expected_version(aws: AwsClients, thing: str) -> None:
    """Each update increases the version. An update that expects another version fails and changes nothing."""
    version = aws.iot.describe_thing(thingName=thing)["version"]
    payload = {"attributes": {"tenantId": "t"}, "merge": True}
    aws.iot.update_thing(thingName=thing, attributePayload=payload, expectedVersion=version)  # type: ignore[arg-type]
    other = {"attributes": {"tenantId": "u"}, "merge": True}
    refused(
        "VersionConflictException",
        aws.iot.update_thing,
        thingName=thing,
        attributePayload=other,
        expectedVersion=version,
    )
    refused("VersionConflictException", aws.iot.delete_thing, thingName=thing, expectedVersion=version)
    described = aws.iot.describe_thing(thingName=thing)
    assert described["version"] == version + 1
    assert described["attributes"] == {"deviceId": "1", "tenantId": "t"}


def test_deleting_an_absent_thing_succeeds(aws: AwsClients, thing: str) -> None:
    """A second deletion succeeds like the first."""
    aws.iot.delete_thing(thingName=thing)
    aws.iot.delete_thing(thingName=thing)
    refused("ResourceNotFoundException", aws.iot.describe_thing, thingName=thing)


def test_an_attached_thing_cannot_be_deleted_until_its_detach_settles(aws: AwsClients, thing: str) -> None:
    """Deletion is refused while a principal is attached, and for some time after its detach."""
    _, arn = issue(aws)
    aws.iot.attach_thing_principal(thingName=thing, principal=arn)
    aws.control.settings(detach_seconds=60)
    error = refused("InvalidRequestException", aws.iot.delete_thing, thingName=thing)
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    aws.iot.detach_thing_principal(thingName=thing, principal=arn)
    refused("InvalidRequestException", aws.iot.delete_thing, thingName=thing)
    aws.control.settings(detach_seconds=0)
    aws.iot.delete_thing(thingName=thing)
    refused("ResourceNotFoundException", aws.iot.describe_thing, thingName=thing)


def test_a_certificate_cannot_be_deleted_until_its_detach_settles(aws: AwsClients, thing: str) -> None:
    """DetachThingPrincipal is asynchronous for both sides."""
    certificate_id, arn = issue(aws)
    aws.iot.attach_thing_principal(thingName=thing, principal=arn)
    aws.control.settings(detach_seconds=60)
    aws.iot.detach_thing_principal(thingName=thing, principal=arn)
    refused("DeleteConflictException", aws.iot.delete_certificate, certificateId=certificate_id)
    aws.control.settings(detach_seconds=0)
    aws.iot.delete_certificate(certificateId=certificate_id)


def test_an_exclusive_principal_serves_one_thing(aws: AwsClients, thing: str) -> None:
    """It cannot be attached to a second Thing, and one with another Thing cannot become exclusive."""
    attach = aws.iot.attach_thing_principal
    aws.iot.create_thing(thingName="other")
    _, exclusive = issue(aws)
    for _ in range(2):
        attach(thingName=thing, principal=exclusive, thingPrincipalType="EXCLUSIVE_THING")
    refused("InvalidRequestException", attach, thingName="other", principal=exclusive)
    _, shared = issue(aws)
    attach(thingName=thing, principal=shared)
    refused(
        "InvalidRequestException",
        attach,
        thingName="other",
        principal=shared,
        thingPrincipalType="EXCLUSIVE_THING",
    )
    attach(thingName="other", principal=shared)


def test_things_are_listed_in_pages(aws: AwsClients) -> None:
    """The pages have every Thing, also if one is deleted between two pages."""
    for name in "abcde":
        aws.iot.create_thing(thingName=name)
    first = aws.iot.list_things(maxResults=2)
    aws.iot.delete_thing(thingName="b")
    rest = aws.iot.list_things(maxResults=3, nextToken=first["nextToken"])
    assert "nextToken" not in rest
    assert [thing["thingName"] for thing in first["things"] + rest["things"]] == list("abcde")


def test_delete_connection_of_an_unconnected_client_returns_404(aws: AwsClients) -> None:
    """The error has the form in which AWS returns it."""
    refused("ResourceNotFoundException", aws.data.delete_connection, clientId="sensor-1")


# Shadows


def test_shadows_survive_the_deletion_of_their_thing(aws: AwsClients, thing: str) -> None:
    """Without its Thing a shadow can be read, listed and deleted, and the recreated Thing has it."""
    update_shadow(aws, thing, {"state": {"desired": {"on": True}}})
    update_shadow(aws, thing, {"state": {"reported": {"v": 1}}}, shadowName="config")
    aws.iot.delete_thing(thingName=thing)
    assert get_shadow(aws, thing)["state"] == {"desired": {"on": True}, "delta": {"on": True}}
    assert aws.data.list_named_shadows_for_thing(thingName=thing)["results"] == ["config"]
    aws.iot.create_thing(thingName=thing)
    assert get_shadow(aws, thing, shadowName="config")["state"] == {"reported": {"v": 1}}
    aws.iot.delete_thing(thingName=thing)
    aws.data.delete_thing_shadow(thingName=thing)
    aws.data.delete_thing_shadow(thingName=thing, shadowName="config")
    refused("ResourceNotFoundException", aws.data.get_thing_shadow, thingName=thing)
    refused("ResourceNotFoundException", aws.data.delete_thing_shadow, thingName=thing)
    assert aws.data.list_named_shadows_for_thing(thingName=thing)["results"] == []


def test_update_shadow_without_a_thing_creates_the_shadow(aws: AwsClients) -> None:
    """The registry needs no such Thing. The version of a deleted shadow continues."""
    assert update_shadow(aws, "gone", {"state": {"reported": {"on": 1}}})["version"] == 1
    aws.data.delete_thing_shadow(thingName="gone")
    assert update_shadow(aws, "gone", {"state": {"reported": {"on": 2}}})["version"] == 2
    assert get_shadow(aws, "gone")["state"] == {"reported": {"on": 2}}


def test_shadow_documents_are_merged_as_on_aws(aws: AwsClients, thing: str) -> None:
    """Objects are merged, null removes, equal nested objects are not in the delta, values have timestamps."""
    update_shadow(aws, thing, {"state": {"desired": {"net": {"ip": "a", "port": 1}, "list": [1, 2], "x": 1}}})
    update_shadow(aws, thing, {"state": {"reported": {"net": {"ip": "a"}, "list": [1, 2]}}})
    shadow = get_shadow(aws, thing)
    assert shadow["state"]["delta"] == {"net": {"port": 1}, "x": 1}
    assert set(shadow["metadata"]["desired"]["net"]["port"]) == {"timestamp"}
    update_shadow(aws, thing, {"state": {"desired": {"x": None}, "reported": {"net": {"port": 1}}}})
    shadow = get_shadow(aws, thing)
    assert "delta" not in shadow["state"]
    assert shadow["state"]["desired"] == {"net": {"ip": "a", "port": 1}, "list": [1, 2]}
    update_shadow(aws, thing, {"state": {"desired": None}})
    assert set(get_shadow(aws, thing)["state"]) == {"reported"}
    assert get_shadow(aws, thing)["version"] == 4


def test_invalid_shadow_updates_are_refused(aws: AwsClients, thing: str) -> None:
    """A wrong version is a conflict; a large document and an invalid one have their own errors."""
    update_shadow(aws, thing, {"state": {"reported": {"on": True}}})
    call = aws.data.update_thing_shadow
    for code, document in {
        "ConflictException": {"state": {}, "version": 7},
        "RequestEntityTooLargeException": {"state": {"reported": {"text": "x" * 9000}}},
    }.items():
        refused(code, call, thingName=thing, payload=json.dumps(document))
    refused("InvalidRequestException", call, thingName=thing, payload="{")
    assert update_shadow(aws, thing, {"state": {}, "version": 1, "clientToken": "t"})["clientToken"] == "t"


def test_named_shadows_are_listed_in_pages(aws: AwsClients, thing: str) -> None:
    """Each page except the last has the token of the next page."""
    names = [f"shadow-{number}" for number in range(5)]
    for name in names:
        update_shadow(aws, thing, {"state": {"reported": {}}}, shadowName=name)
    listed = aws.data.list_named_shadows_for_thing
    first = listed(thingName=thing, pageSize=2)
    second = listed(thingName=thing, pageSize=2, nextToken=first["nextToken"])
    third = listed(thingName=thing, pageSize=2, nextToken=second["nextToken"])
    assert [page["results"] for page in (first, second, third)] == [names[:2], names[2:4], names[4:]]
    assert "nextToken" not in third


def test_a_fault_can_return_any_bytes(aws: AwsClients, thing: str) -> None:
    """The bytes are returned unchanged, instead of the shadow."""
    update_shadow(aws, thing, {"state": {"desired": {"on": True}}})
    for payload in (b"no JSON \xff", b"[]", b""):
        aws.control.add_fault("iot-data:GetThingShadow", resource=thing, payload=payload, times=1)
        assert aws.data.get_thing_shadow(thingName=thing)["payload"].read() == payload
    assert get_shadow(aws, thing)["state"]["desired"] == {"on": True}


def test_forget_shadow_resets_the_version(aws: AwsClients, thing: str) -> None:
    """The next update creates version 1, which is not so after a deletion."""
    for number in range(3):
        update_shadow(aws, thing, {"state": {"desired": {"number": number}}})
    aws.control.forget_shadow(thing)
    refused("ResourceNotFoundException", aws.data.get_thing_shadow, thingName=thing)
    assert update_shadow(aws, thing, {"state": {"desired": {"number": 1}}})["version"] == 1


# Groups


def test_a_dynamic_group_is_created_once_and_becomes_active(aws: AwsClients) -> None:
    """It is BUILDING at first. A repeated call returns it; another query or kind is a conflict."""
    aws.control.settings(group_build_seconds=3600)
    made = aws.iot.create_dynamic_thing_group(thingGroupName="pumps", queryString="thingName:pump*")
    assert (made["indexName"], made["queryVersion"]) == ("AWS_Things", "2017-09-30")
    assert aws.iot.describe_thing_group(thingGroupName="pumps")["status"] == "BUILDING"
    aws.control.settings(group_build_seconds=0)
    described = aws.iot.describe_thing_group(thingGroupName="pumps")
    assert (described["status"], described["queryString"]) == ("ACTIVE", "thingName:pump*")
    assert described["thingGroupId"] == made["thingGroupId"]
    assert create_group(aws, "pumps", "thingName:pump*", indexName="AWS_Things") == made["thingGroupArn"]
    create = aws.iot.create_dynamic_thing_group
    error = refused(
        "ResourceAlreadyExistsException", create, thingGroupName="pumps", queryString="thingName:valve*"
    )
    assert error.response["resourceArn"] == made["thingGroupArn"]  # type: ignore[typeddict-item]
    aws.iot.create_thing_group(thingGroupName="static")
    refused("ResourceAlreadyExistsException", create, thingGroupName="static", queryString="thingName:a")
    groups = aws.iot.list_thing_groups()["thingGroups"]
    assert {group["groupName"] for group in groups} == {"pumps", "static"}


def test_dynamic_and_static_groups_are_deleted_separately(aws: AwsClients) -> None:
    """A dynamic group is no static group, and a repeated deletion succeeds."""
    iot = aws.iot
    create_group(aws, "pumps", "thingName:pump*")
    iot.create_thing_group(thingGroupName="static")
    refused("InvalidRequestException", iot.delete_dynamic_thing_group, thingGroupName="static")
    assert "queryString" not in iot.describe_thing_group(thingGroupName="static")
    for _ in range(2):
        iot.delete_dynamic_thing_group(thingGroupName="pumps")
        iot.delete_thing_group(thingGroupName="static")
    refused("ResourceNotFoundException", iot.describe_thing_group, thingGroupName="pumps")


def test_dynamic_groups_have_a_quota(aws: AwsClients) -> None:
    """A group above the quota is refused, a repeated call is not, and a deletion frees a place."""
    aws.control.settings(dynamic_groups_at_most=1)
    create_group(aws, "one", "thingName:a")
    create_group(aws, "one", "thingName:a")
    create = aws.iot.create_dynamic_thing_group
    error = refused("LimitExceededException", create, thingGroupName="two", queryString="thingName:b")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 410
    aws.iot.delete_dynamic_thing_group(thingGroupName="one")
    create_group(aws, "two", "thingName:b")


def test_a_query_finds_things(aws: AwsClients) -> None:
    """Fields, wildcards, phrases, operators and parentheses work as on AWS, and ignore case."""
    for name, model in {"pump-1": "P1", "pump-2": "P2", "valve": "P1"}.items():
        aws.iot.create_thing(thingName=name, attributePayload={"attributes": {"model": model}})
    update_shadow(aws, "valve", {"state": {"desired": {"net": {"port": 1}}}})
    queries = {
        "*": {"pump-1", "pump-2", "valve"},
        "thingName:pump*": {"pump-1", "pump-2"},
        "thingName:PUMP-1": {"pump-1"},
        'thingName:"pump-1"': {"pump-1"},
        "thingName:pump": set(),
        "attributes.model:P?": {"pump-1", "pump-2", "valve"},
        "attributes.model:P1 thingName:pump*": {"pump-1"},
        "attributes.model:P1 AND NOT thingName:pump*": {"valve"},
        "thingName:pump-2 OR thingName:valve AND attributes.model:P1": {"pump-2", "valve"},
        "(thingName:pump-2 OR thingName:valve) AND attributes.model:P1": {"valve"},
        "thingName:(pump* -pump-2)": {"pump-1"},
        "shadow.desired.net.port:1 AND shadow.hasDelta:true": {"valve"},
    }
    for number, (query, found) in enumerate(queries.items()):
        create_group(aws, f"group-{number}", query)
        things = aws.iot.list_things_in_thing_group(thingGroupName=f"group-{number}")["things"]
        assert set(things) == found, query


@pytest.mark.parametrize(
    "query",
    [
        " ",
        "(",
        "(thingName:a",
        "thingName:a)",
        "thingName:",
        "thingName:a AND",
        "OR thingName:a",
        "NOT",
        'thingName:"a',
        "name:a",
        "a",
        "attributes.a:[1 TO 5]",
        "thingName:a\\",
    ],
)
def test_an_invalid_query_is_refused(aws: AwsClients, query: str) -> None:
    """The error code is InvalidQueryException, and no group is created."""
    create = aws.iot.create_dynamic_thing_group
    error = refused("InvalidQueryException", create, thingGroupName="group", queryString=query)
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    refused("ResourceNotFoundException", aws.iot.describe_thing_group, thingGroupName="group")


def test_a_search_finds_things_in_pages(aws: AwsClients) -> None:
    """The index follows registry and shadows at once, and returns the document of each Thing."""
    for name in "abc":
        aws.iot.create_thing(thingName=name)
        update_shadow(aws, name, {"state": {"desired": {"on": True}}})
    update_shadow(aws, "b", {"state": {"reported": {"on": True}}})
    query = "shadow.hasDelta:true"
    first = aws.iot.search_index(queryString=query, maxResults=1)
    second = aws.iot.search_index(queryString=query, nextToken=first["nextToken"])
    found = [*first["things"], *second["things"]]
    assert [thing["thingName"] for thing in found] == ["a", "c"]
    assert json.loads(found[0]["shadow"])["desired"] == {"on": True}
    assert found[0]["connectivity"] == {"connected": False}
    refused("InvalidQueryException", aws.iot.search_index, queryString="name:a")


# Certificates, policies and principals


def test_a_certificate_matches_its_private_key(aws: AwsClients) -> None:
    """The returned key belongs to the certificate, and the certificate has the requested status."""
    made = aws.iot.create_keys_and_certificate(setAsActive=False)
    key = load_pem_private_key(made["keyPair"]["PrivateKey"].encode(), None)
    certificate = x509.load_pem_x509_certificate(made["certificatePem"].encode())
    assert certificate.public_key() == key.public_key()
    described = aws.iot.describe_certificate(certificateId=made["certificateId"])["certificateDescription"]
    assert described["status"] == "INACTIVE"


def test_a_certificate_in_use_cannot_be_deleted(aws: AwsClients, thing: str) -> None:
    """It must be inactive and detached from Things and policies. Force ignores only the policies."""
    create_device_policy(aws.url, "devices")
    certificate_id, arn = issue(aws, active=True)
    aws.iot.attach_policy(policyName="devices", target=arn)
    aws.iot.attach_thing_principal(thingName=thing, principal=arn)
    refused("CertificateStateException", aws.iot.delete_certificate, certificateId=certificate_id)
    aws.iot.update_certificate(certificateId=certificate_id, newStatus="INACTIVE")
    refused(
        "DeleteConflictException", aws.iot.delete_certificate, certificateId=certificate_id, forceDelete=True
    )
    aws.iot.detach_thing_principal(thingName=thing, principal=arn)
    refused("DeleteConflictException", aws.iot.delete_certificate, certificateId=certificate_id)
    aws.iot.delete_certificate(certificateId=certificate_id, forceDelete=True)
    refused("ResourceNotFoundException", aws.iot.describe_certificate, certificateId=certificate_id)
    refused("ResourceNotFoundException", aws.iot.delete_certificate, certificateId=certificate_id)
    aws.iot.delete_policy(policyName="devices")


def test_attachments_are_listed_from_both_sides(aws: AwsClients, thing: str) -> None:
    """A Thing lists its principals, a principal its Things and policies. Repeated calls change nothing."""
    create_device_policy(aws.url, "devices")
    create_device_policy(aws.url, "devices")
    _, arn = issue(aws)
    for _ in range(2):
        aws.iot.attach_policy(policyName="devices", target=arn)
        aws.iot.attach_thing_principal(thingName=thing, principal=arn)
    assert aws.iot.list_thing_principals(thingName=thing)["principals"] == [arn]
    assert aws.iot.list_principal_things(principal=arn)["things"] == [thing]
    policies = aws.iot.list_attached_policies(target=arn)["policies"]
    assert [policy["policyName"] for policy in policies] == ["devices"]
    assert aws.iot.list_targets_for_policy(policyName="devices")["targets"] == [arn]
    aws.iot.detach_policy(policyName="devices", target=arn)
    aws.iot.detach_thing_principal(thingName=thing, principal=arn)
    assert aws.iot.list_thing_principals(thingName=thing)["principals"] == []
    assert aws.iot.list_attached_policies(target=arn)["policies"] == []
    refused("ResourceNotFoundException", aws.iot.attach_policy, policyName="none", target=arn)
    refused("ResourceNotFoundException", aws.iot.attach_thing_principal, thingName="none", principal=arn)
    refused("ResourceNotFoundException", aws.iot.list_thing_principals, thingName="none")


def test_certificates_are_listed_in_pages(aws: AwsClients) -> None:
    """The pages have every certificate, the newest first, even if one is deleted between two pages."""
    issued = [issue(aws)[0] for _ in range(5)]
    first = aws.iot.list_certificates(pageSize=2)
    aws.iot.delete_certificate(certificateId=issued[3])
    rest = aws.iot.list_certificates(pageSize=3, marker=first["nextMarker"])
    assert "nextMarker" not in rest
    listed = [each["certificateId"] for each in first["certificates"] + rest["certificates"]]
    assert listed == issued[::-1]
    ascending = aws.iot.list_certificates(ascendingOrder=True)["certificates"]
    assert [each["certificateId"] for each in ascending] == [*issued[:3], issued[4]]


# Jobs


def create_job(aws: AwsClients, job_id: str, *targets: str, **more: Any) -> None:
    """Create a job with a small document."""
    aws.iot.create_job(jobId=job_id, targets=list(targets), document='{"operation":"reboot"}', **more)


def test_create_job_refuses_an_existing_id_and_missing_targets(aws: AwsClients, thing: str) -> None:
    """An existing id is a conflict, a missing target a 404, and an invalid id an invalid request."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    create_job(aws, "job-1", arn)
    again = {"jobId": "job-1", "targets": [arn], "document": "{}"}
    refused("ResourceAlreadyExistsException", aws.iot.create_job, **again)
    refused("ResourceNotFoundException", aws.iot.create_job, **again | {"jobId": "j", "targets": [arn + "x"]})
    refused("InvalidRequestException", aws.iot.create_job, **again | {"jobId": "not/an id"})
    assert aws.iot.get_job_document(jobId="job-1")["document"] == '{"operation":"reboot"}'
    for call in (aws.iot.describe_job, aws.iot.cancel_job, aws.iot.delete_job, aws.iot.get_job_document):
        refused("ResourceNotFoundException", call, jobId="none")


def test_a_device_starts_and_ends_its_jobs(aws: AwsClients, thing: str) -> None:
    """A device starts the oldest job first. Its report completes a job that has no other target."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    create_job(aws, "job-1", arn)
    create_job(aws, "job-2", arn)
    pending = aws.jobs.get_pending_job_executions(thingName=thing)
    assert [each["jobId"] for each in pending["queuedJobs"]] == ["job-1", "job-2"]
    started = aws.jobs.start_next_pending_job_execution(thingName=thing)["execution"]
    assert (started["jobId"], started["jobDocument"]) == ("job-1", '{"operation":"reboot"}')
    assert (
        aws.jobs.describe_job_execution(thingName=thing, jobId="job-1")["execution"]["status"]
        == "IN_PROGRESS"
    )
    assert aws.iot.describe_job(jobId="job-1")["job"]["status"] == "IN_PROGRESS"
    report = {"thingName": thing, "jobId": "job-1", "status": "SUCCEEDED"}
    aws.jobs.update_job_execution(**report, statusDetails={"took": "1s"})
    refused("InvalidStateTransitionException", aws.jobs.update_job_execution, **report)
    job = aws.iot.describe_job(jobId="job-1")["job"]
    assert (job["status"], job["jobProcessDetails"]["numberOfSucceededThings"]) == ("COMPLETED", 1)
    execution = aws.iot.describe_job_execution(jobId="job-1", thingName=thing)["execution"]
    assert (execution["status"], execution["statusDetails"]) == ("SUCCEEDED", {"detailsMap": {"took": "1s"}})
    assert aws.jobs.describe_job_execution(thingName=thing, jobId="$next")["execution"]["jobId"] == "job-2"


def test_cancelling_a_job_cancels_its_executions(aws: AwsClients, thing: str) -> None:
    """Queued executions are cancelled, and executions in progress only with force."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    create_job(aws, "job-1", arn)
    aws.jobs.start_next_pending_job_execution(thingName=thing)
    create_job(aws, "job-2", arn)
    create_job(aws, "job-3", arn)
    for job_id, force in {"job-1": False, "job-2": True, "job-3": True}.items():
        aws.iot.cancel_job(jobId=job_id, force=force)
        assert aws.iot.describe_job(jobId=job_id)["job"]["status"] == "CANCELED"
    executions = aws.iot.list_job_executions_for_thing(thingName=thing)["executionSummaries"]
    statuses = {each["jobId"]: each["jobExecutionSummary"]["status"] for each in executions}
    assert statuses == {"job-1": "IN_PROGRESS", "job-2": "CANCELED", "job-3": "CANCELED"}


def test_a_job_is_deleted_with_its_executions(aws: AwsClients, thing: str) -> None:
    """A job in progress needs force. A single execution is deleted by its execution number."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    for job_id in ("job-1", "job-2"):
        create_job(aws, job_id, arn)
    refused("InvalidStateTransitionException", aws.iot.delete_job, jobId="job-1")
    aws.iot.delete_job(jobId="job-1", force=True)
    summaries = aws.iot.list_job_executions_for_thing(thingName=thing)["executionSummaries"]
    assert [each["jobId"] for each in summaries] == ["job-2"]
    execution = {"jobId": "job-2", "thingName": thing, "executionNumber": 1}
    aws.iot.delete_job_execution(**execution, force=True)  # type: ignore[arg-type]
    refused("ResourceNotFoundException", aws.iot.delete_job_execution, **execution)
    refused("ResourceNotFoundException", aws.iot.describe_job_execution, jobId="job-2", thingName=thing)


def test_a_job_for_a_group_has_an_execution_for_each_thing(aws: AwsClients) -> None:
    """A snapshot job is completed with the last execution, a continuous job is not."""
    group = aws.iot.create_thing_group(thingGroupName="floor")["thingGroupArn"]
    for name in ("a", "b"):
        aws.iot.create_thing(thingName=name)
        aws.iot.add_thing_to_thing_group(thingGroupName="floor", thingName=name)
    create_job(aws, "once", group)
    create_job(aws, "ever", group, targetSelection="CONTINUOUS")
    for name in ("a", "b"):
        for job_id in ("once", "ever"):
            aws.jobs.update_job_execution(thingName=name, jobId=job_id, status="FAILED")
    once, ever = (aws.iot.describe_job(jobId=job_id)["job"] for job_id in ("once", "ever"))
    assert (once["status"], ever["status"]) == ("COMPLETED", "IN_PROGRESS")
    assert once["jobProcessDetails"]["numberOfFailedThings"] == 2


def test_a_continuous_job_follows_its_dynamic_group(aws: AwsClients) -> None:
    """A snapshot job keeps its first Things. A continuous job adds new Things and removes others."""
    aws.iot.create_thing(thingName="pump-1")
    aws.control.settings(group_build_seconds=3600)
    group = create_group(aws, "pumps", "thingName:pump* -attributes.retired:true")
    job = {"jobId": "early", "targets": [group], "document": "{}"}
    refused("InvalidRequestException", aws.iot.create_job, **job)
    aws.control.settings(group_build_seconds=0)
    create_job(aws, "once", group)
    create_job(aws, "ever", group, targetSelection="CONTINUOUS")
    aws.jobs.update_job_execution(thingName="pump-1", jobId="ever", status="SUCCEEDED")
    for name in ("pump-2", "pump-3"):
        aws.iot.create_thing(thingName=name)
    counts = aws.iot.describe_job(jobId="ever")["job"]["jobProcessDetails"]
    assert (counts["numberOfSucceededThings"], counts["numberOfQueuedThings"]) == (1, 2)
    for name in ("pump-1", "pump-2"):
        aws.iot.update_thing(thingName=name, attributePayload={"attributes": {"retired": "true"}})
    counts = aws.iot.describe_job(jobId="ever")["job"]["jobProcessDetails"]
    assert (counts["numberOfSucceededThings"], counts["numberOfRemovedThings"]) == (1, 1)
    once, ever = (aws.iot.describe_job(jobId=job_id)["job"] for job_id in ("once", "ever"))
    assert once["jobProcessDetails"]["numberOfQueuedThings"] == 1
    assert (once["status"], ever["status"]) == ("IN_PROGRESS", "IN_PROGRESS")
    aws.iot.delete_thing(thingName="pump-1")
    assert aws.iot.describe_job(jobId="once")["job"]["status"] == "COMPLETED"


def test_a_job_has_no_executions_before_its_rollout(aws: AwsClients, thing: str) -> None:
    """Until the rollout it is in progress. A job cancelled before it never has an execution."""
    aws.control.settings(job_rollout_seconds=1)
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    for job_id in ("job-1", "job-2"):
        create_job(aws, job_id, arn)
    assert aws.iot.describe_job(jobId="job-1")["job"]["status"] == "IN_PROGRESS"
    execution: dict[str, Any] = {"jobId": "job-1", "thingName": thing}
    refused("ResourceNotFoundException", aws.iot.describe_job_execution, **execution)
    assert "execution" not in aws.jobs.start_next_pending_job_execution(thingName=thing)
    aws.iot.cancel_job(jobId="job-2")
    wait_until(lambda: bool(aws.iot.list_job_executions_for_job(jobId="job-1")["executionSummaries"]))
    described = aws.iot.describe_job_execution(**execution)["execution"]
    numbers = (described["executionNumber"], described["versionNumber"])
    assert (described["status"], *numbers) == ("QUEUED", 1, 1)
    assert "startedAt" not in described
    refused("ResourceNotFoundException", aws.iot.describe_job_execution, **execution | {"executionNumber": 2})
    refused("ResourceNotFoundException", aws.iot.describe_job_execution, **execution | {"jobId": "job-2"})
    assert aws.iot.describe_job(jobId="job-2")["job"]["status"] == "CANCELED"


def test_a_large_job_document_is_refused(aws: AwsClients, thing: str) -> None:
    """A document may have 32,768 characters."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    job = {"jobId": "large", "targets": [arn], "document": json.dumps("x" * 32 * 1024)}
    refused("InvalidRequestException", aws.iot.create_job, **job)


def test_jobs_and_executions_are_listed_in_pages(aws: AwsClients) -> None:
    """Each page except the last has the token of the next page."""
    group = aws.iot.create_thing_group(thingGroupName="floor")["thingGroupArn"]
    names = [f"sensor-{number}" for number in range(5)]
    for name in names:
        aws.iot.create_thing(thingName=name)
        aws.iot.add_thing_to_thing_group(thingGroupName="floor", thingName=name)
    job_ids = [f"job-{number}" for number in range(3)]
    for job_id in job_ids:
        create_job(aws, job_id, group)
    aws.iot.cancel_job(jobId="job-1")

    def listed(operation: str, of: str, **which: Any) -> list[Any]:
        pages = aws.iot.get_paginator(operation).paginate(**which, PaginationConfig={"PageSize": 2})  # type: ignore[call-overload]
        return [each for page in pages for each in page[of]]

    summaries = listed("list_job_executions_for_job", "executionSummaries", jobId="job-0")
    assert sorted(each["thingArn"].rpartition("/")[2] for each in summaries) == names
    summaries = listed("list_job_executions_for_thing", "executionSummaries", thingName="sensor-0")
    assert [each["jobId"] for each in summaries] == job_ids
    running = listed("list_jobs", "jobs", status="IN_PROGRESS")
    assert {each["jobId"] for each in running} == {"job-0", "job-2"}
    cancelled = listed("list_job_executions_for_job", "executionSummaries", jobId="job-1", status="QUEUED")
    assert cancelled == []


def test_an_ended_execution_accepts_no_report(aws: AwsClients, thing: str) -> None:
    """A device may not report CANCELED, and may report nothing about an execution that AWS has ended."""
    arn = aws.iot.describe_thing(thingName=thing)["thingArn"]
    for job_id in ("cancelled", "timed-out", "alone"):
        create_job(aws, job_id, arn)
    update, describe = aws.jobs.update_job_execution, aws.jobs.describe_job_execution
    refused("InvalidStateTransitionException", update, thingName=thing, jobId="cancelled", status="CANCELED")
    reason = {"reasonCode": "WINDOW_CLOSED", "comment": "no answer"}
    aws.iot.cancel_job(jobId="cancelled", **reason)  # type: ignore[arg-type]
    job = aws.iot.describe_job(jobId="cancelled")["job"]
    assert {name: job[name] for name in reason} == reason  # type: ignore[literal-required]
    aws.control.time_out_execution("timed-out", thing)
    cancel = aws.iot.cancel_job_execution
    aws.jobs.start_next_pending_job_execution(thingName=thing)
    refused("InvalidStateTransitionException", cancel, jobId="alone", thingName=thing)
    refused("VersionConflictException", cancel, jobId="alone", thingName=thing, expectedVersion=1, force=True)
    cancel(jobId="alone", thingName=thing, expectedVersion=2, force=True)
    refused("InvalidStateTransitionException", cancel, jobId="alone", thingName=thing, force=True)
    for job_id, status in {"cancelled": "CANCELED", "timed-out": "TIMED_OUT", "alone": "CANCELED"}.items():
        execution: dict[str, Any] = {"jobId": job_id, "thingName": thing}
        refused("InvalidStateTransitionException", update, **execution, status="SUCCEEDED")
        refused("TerminalStateException", describe, **execution)
        assert aws.iot.describe_job_execution(**execution)["execution"]["status"] == status
    assert aws.iot.describe_job(jobId="timed-out")["job"]["status"] == "COMPLETED"


# Secrets


def test_a_token_creates_one_version_of_a_secret(aws: AwsClients) -> None:
    """The same token with the same value is ignored, with another value refused. Versions have stages."""
    first, second, third = (uuid4().hex for _ in range(3))
    create, put = aws.secrets.create_secret, aws.secrets.put_secret_value
    secret = {"Name": "iot/key", "SecretString": "1", "ClientRequestToken": first}
    tags = [{"Key": "certificateId", "Value": "c"}]
    assert create(**secret, Tags=tags)["VersionId"] == first  # type: ignore[arg-type]
    assert create(**secret, Tags=tags)["VersionId"] == first  # type: ignore[arg-type]
    refused("ResourceExistsException", create, **secret | {"SecretString": "2"})
    refused("ResourceExistsException", create, **secret | {"ClientRequestToken": second})
    put(SecretId="iot/key", SecretString="2", ClientRequestToken=second)
    put(SecretId="iot/key", SecretString="2", ClientRequestToken=second)
    refused("ResourceExistsException", put, SecretId="iot/key", SecretString="3", ClientRequestToken=second)
    put(SecretId="iot/key", SecretString="3", ClientRequestToken=third)
    described = aws.secrets.describe_secret(SecretId="iot/key")
    assert described["VersionIdsToStages"] == {third: ["AWSCURRENT"], second: ["AWSPREVIOUS"]}
    assert described["Tags"] == tags
    aws.secrets.tag_resource(SecretId="iot/key", Tags=[{"Key": "certificateId", "Value": "d"}])
    assert aws.secrets.describe_secret(SecretId="iot/key")["Tags"] == [{"Key": "certificateId", "Value": "d"}]
    assert aws.secrets.get_secret_value(SecretId=described["ARN"])["SecretString"] == "3"


def test_a_secret_deleted_with_force_frees_its_name(aws: AwsClients) -> None:
    """With force nothing is left, and a repeated deletion succeeds. Without it the name stays in use."""
    create, delete = aws.secrets.create_secret, aws.secrets.delete_secret
    create(Name="iot/key", SecretString="1")
    delete(SecretId="iot/key", ForceDeleteWithoutRecovery=True)
    delete(SecretId="iot/key", ForceDeleteWithoutRecovery=True)
    refused("ResourceNotFoundException", aws.secrets.describe_secret, SecretId="iot/key")
    refused("ResourceNotFoundException", delete, SecretId="iot/key")
    create(Name="iot/key", SecretString="2")
    delete(SecretId="iot/key", RecoveryWindowInDays=7)
    refused("InvalidRequestException", create, Name="iot/key", SecretString="3")
    refused("InvalidRequestException", aws.secrets.put_secret_value, SecretId="iot/key", SecretString="3")
    refused("InvalidRequestException", aws.secrets.get_secret_value, SecretId="iot/key")
    assert "DeletedDate" in aws.secrets.describe_secret(SecretId="iot/key")
    delete(SecretId="iot/key", ForceDeleteWithoutRecovery=True)
    create(Name="iot/key", SecretString="4")


def test_a_forced_deletion_of_a_secret_takes_some_time(aws: AwsClients) -> None:
    """Its name cannot be used again at once, although the secret is not found any more."""
    create = aws.secrets.create_secret
    create(Name="iot/key", SecretString="1")
    aws.control.settings(secret_deletion_seconds=60)
    aws.secrets.delete_secret(SecretId="iot/key", ForceDeleteWithoutRecovery=True)
    refused("ResourceNotFoundException", aws.secrets.describe_secret, SecretId="iot/key")
    refused("InvalidRequestException", create, Name="iot/key", SecretString="2")
    aws.control.settings(secret_deletion_seconds=0)
    create(Name="iot/key", SecretString="2")


def test_a_large_secret_is_refused(aws: AwsClients) -> None:
    """A value over 64 KB is refused, and the error does not contain the value."""
    value = "x" * 65_537
    error = refused("ValidationException", aws.secrets.create_secret, Name="iot/key", SecretString=value)
    assert "xxx" not in str(error)


# The control endpoint


def test_a_fault_fails_the_requested_number_of_calls(aws: AwsClients) -> None:
    """The failed calls have no effect, other and later calls succeed, and all calls are counted."""
    aws.control.add_fault("iot:CreateThing", code="ThrottlingException", status=429, times=2)
    for _ in range(2):
        error = refused("ThrottlingException", aws.iot.create_thing, thingName="a")
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    refused("ResourceNotFoundException", aws.iot.describe_thing, thingName="a")
    aws.iot.create_thing(thingName="a")
    assert aws.control.calls() == {"iot:CreateThing": 3, "iot:DescribeThing": 1}
    aws.control.forget_calls()
    assert aws.control.calls() == {}


def test_a_fault_after_the_call_hides_its_success(aws: AwsClients) -> None:
    """The call has its effect, but the caller receives an error."""
    aws.control.add_fault(
        "secretsmanager:CreateSecret", code="InternalServiceError", status=500, when="after"
    )
    refused("InternalServiceError", aws.secrets.create_secret, Name="iot/key", SecretString="1")
    assert aws.secrets.get_secret_value(SecretId="iot/key")["SecretString"] == "1"


def test_a_fault_can_be_limited_to_one_resource(aws: AwsClients) -> None:
    """The resource is matched in the path, in the body, and in the header of a principal."""
    _, arn = issue(aws)
    for name in ("good", "bad"):
        aws.iot.create_thing(thingName=name)
    for resource in (arn, "iot/bad", "things/bad/shadow"):
        aws.control.add_fault("*", resource=resource, code="ServiceUnavailableException", status=503)
    unavailable = "ServiceUnavailableException"
    refused(unavailable, aws.iot.attach_thing_principal, thingName="good", principal=arn)
    refused(unavailable, aws.secrets.create_secret, Name="iot/bad", SecretString="1")
    refused(unavailable, aws.data.get_thing_shadow, thingName="bad")
    aws.secrets.create_secret(Name="iot/good", SecretString="1")
    aws.iot.describe_thing(thingName="bad")
    aws.control.clear_faults()
    aws.iot.attach_thing_principal(thingName="good", principal=arn)


def test_a_fault_without_a_code_only_delays(aws: AwsClients) -> None:
    """The call succeeds later, and does not delay other calls."""
    delay = aws.control.add_fault("iot:CreateThing", delay_seconds=2, times=1)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(aws.iot.create_thing, thingName="a")
        while aws.control.is_fault_active(delay):
            time.sleep(0.02)
        aws.iot.create_thing(thingName="b")
        assert not slow.done()
        assert slow.result()["thingName"] == "a"


def test_faults_work_in_every_protocol(aws: AwsClients) -> None:
    """boto parses the code of a fault from services with REST, JSON and XML protocols."""
    aws.control.add_fault("*", code="AccessDeniedException", status=403)
    refused("AccessDeniedException", aws.sts.get_caller_identity)
    refused("AccessDeniedException", aws.jobs.get_pending_job_executions, thingName="a")
    refused("AccessDeniedException", aws.secrets.list_secrets)
    refused("AccessDeniedException", aws.iot.list_things)
    assert aws.control.calls()["sts:GetCallerIdentity"] == 1


def test_reset_empties_the_account(aws: AwsClients, thing: str) -> None:
    """Things, secrets, shadows, faults and counts are deleted. An invalid fault is refused."""
    update_shadow(aws, thing, {"state": {"reported": {}}})
    aws.secrets.create_secret(Name="iot/key", SecretString="1")
    aws.control.add_fault("*", code="ThrottlingException")
    aws.control.reset()
    assert aws.control.calls() == {}
    assert aws.iot.list_things()["things"] == []
    assert aws.secrets.list_secrets()["SecretList"] == []
    refused("ResourceNotFoundException", aws.data.get_thing_shadow, thingName=thing)
    with pytest.raises(OSError, match="400"):
        aws.control.add_fault("*", when="never")  # type: ignore[arg-type]


def test_settings_are_changed_one_at_a_time(aws: AwsClients) -> None:
    """Other settings keep their values, an unknown name is refused, and all can be restored together."""
    aws.control.settings(dynamic_groups_at_most=0)
    aws.control.settings(detach_seconds=0)
    create = aws.iot.create_dynamic_thing_group
    refused("LimitExceededException", create, thingGroupName="group", queryString="thingName:a")
    with pytest.raises(OSError, match="400"):
        aws.control.settings(dynamic_groups=1)
    aws.control.default_settings()
    create_group(aws, "group", "thingName:a")


def test_a_quota_throttles_the_calls_above_it(aws: AwsClients) -> None:
    """A burst of one second's calls passes, the next is throttled, and other operations are not limited."""
    aws.control.limit({"iot:CreateThing": 0.001, "iot-data:GetThingShadow": 0.001})
    aws.iot.create_thing(thingName="a")
    error = refused("ThrottlingException", aws.iot.create_thing, thingName="b")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    refused("ResourceNotFoundException", aws.data.get_thing_shadow, thingName="a")
    error = refused("ThrottlingException", aws.data.get_thing_shadow, thingName="a")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    aws.iot.describe_thing(thingName="a")
    with pytest.raises(OSError, match="400"):
        aws.control.limit({"iot:CreateThing": 0})
    aws.control.limit({})
    aws.iot.create_thing(thingName="b")


def test_a_quota_refills_with_time(aws: AwsClients) -> None:
    """After a burst the quota passes calls at its rate: here a call needs a token of a tenth of a second."""
    aws.control.limit({"iot:DescribeThing": 10})
    aws.iot.create_thing(thingName="a")
    began, passed = time.monotonic(), 0
    while passed < 20:
        with suppress(aws.iot.exceptions.ThrottlingException):
            aws.iot.describe_thing(thingName="a")
            passed += 1
    assert time.monotonic() - began > 0.9
    aws.control.limit({})


# The server


def test_concurrent_calls_all_succeed(aws: AwsClients) -> None:
    """Concurrent calls can change and read the same account. In moto alone some of them fail."""

    def provision(number: int) -> None:
        name = f"sensor-{number}"
        aws.iot.create_thing(thingName=name, attributePayload={"attributes": {"deviceId": str(number)}})
        aws.secrets.create_secret(Name=name, SecretString="1")
        aws.iot.describe_thing(thingName=name)
        aws.iot.search_index(queryString=f"thingName:{name}")
        aws.secrets.describe_secret(SecretId=name)
        aws.iot.delete_thing(thingName=name)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(provision, range(60)))
    assert aws.iot.list_things()["things"] == []


@pytest.mark.parametrize(
    ("service", "method", "path", "body"),
    [
        ("iot", "POST", "/things/x", b"{"),
        ("iot", "POST", "/things/x", b"[]"),
        ("iot", "POST", "/things/x", b'{"attributePayload": {"attributes": {"a": 1}}}'),
        ("iot", "POST", "/things/x", b"[" * 100_000),
        ("iot", "PUT", "/things/x/principals", b""),
        ("iot", "GET", "/things?maxResults=many", b""),
        ("iot", "GET", "/things?nextToken=AAA", b""),
        ("iot", "GET", "/things?nextToken=%FF", b""),
        ("secretsmanager", "POST", "CreateSecret", b"{"),
        ("secretsmanager", "POST", "CreateSecret", b'{"Name": "a", "SecretString": "b"}'),
        ("secretsmanager", "POST", "Unknown", b"{}"),
        ("sqs", "POST", "SendMessage", b"{"),
    ],
)
def test_a_malformed_request_is_refused(
    aws: AwsClients, service: str, method: str, path: str, body: bytes
) -> None:
    """The answer is an error of AWS, not a failure of the emulator."""
    credential = f"embedded/20260101/eu-west-1/{service}/aws4_request"
    headers = {"authorization": f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=a"}
    if not path.startswith("/"):
        target = "AmazonSQS" if service == "sqs" else service
        headers |= {"x-amz-target": f"{target}.{path}", "content-type": "application/x-amz-json-1.0"}
        path = ""
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(aws.url + path, body, headers, method=method), timeout=10)  # noqa: S310


def test_a_stop_does_not_wait_for_a_long_poll(tmp_path: Path) -> None:
    """Otherwise the emulator would be killed before its last save."""
    with emulator(tmp_path / "aws.state") as (process, aws):
        aws.control.add_fault("iot:DescribeThing", delay_seconds=60)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(refused, "500", aws.iot.describe_thing, thingName="sensor-1")
            wait_until(lambda: "iot:DescribeThing" in aws.control.calls())
            process.terminate()
            assert process.wait(10) == 0
            call.result()


def test_a_state_file_has_one_emulator(tmp_path: Path) -> None:
    """A second emulator would overwrite the changes of the first one."""
    state = tmp_path / "aws.state"
    with emulator(state):
        port, mqtt_port = choose_ports(0, 0)
        command = emulator_command(port, mqtt_port, state)
        ended = subprocess.run(command, env=server_environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert "another process uses" in sentence


def test_a_save_that_failed_is_repeated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The account is saved once its file can be written again."""
    state = tmp_path / "aws.state"
    obstacle = tmp_path / "aws.state.incomplete"
    obstacle.mkdir()
    with emulator(state) as (process, aws):
        aws.iot.create_thing(thingName="sensor-1")
        wait_until(lambda: "cannot save" in capfd.readouterr().err)
        obstacle.rmdir()
        wait_until(lambda: state.exists() and b"sensor-1" in state.read_bytes())
        process.kill()


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    """The process ends with one sentence that names the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = emulator_command(port, port, tmp_path / "aws.state")
        ended = subprocess.run(command, env=server_environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in sentence


def test_a_killed_emulator_has_saved_recent_changes(tmp_path: Path) -> None:
    """A change is in the state file soon after. Only the owner can read the file."""
    state = tmp_path / "aws.state"
    with emulator(state) as (process, aws):
        aws.iot.create_thing(thingName="sensor-1")
        update_shadow(aws, "sensor-1", {"state": {"reported": {"on": True}}})
        aws.control.settings(group_build_seconds=0)
        create_job(aws, "job-1", create_group(aws, "sensors", "thingName:sensor*"))
        execution = {"jobId": "job-1", "thingName": "sensor-1", "executionNumber": 1}
        aws.iot.delete_job_execution(**execution, force=True)  # type: ignore[arg-type]
        aws.iot.create_thing(thingName="last-thing")
        deadline = time.monotonic() + 60
        while not (state.exists() and b"last-thing" in state.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert state.stat().st_mode & 0o777 == 0o600
    with emulator(state) as (_, aws):
        assert aws.iot.describe_thing(thingName="sensor-1")["thingName"] == "sensor-1"
        assert get_shadow(aws, "sensor-1")["state"] == {"reported": {"on": True}}
        assert aws.iot.describe_thing_group(thingGroupName="sensors")["queryString"] == "thingName:sensor*"
        assert aws.iot.list_job_executions_for_job(jobId="job-1")["executionSummaries"] == []

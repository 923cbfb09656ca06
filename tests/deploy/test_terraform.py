"""The Terraform of deploy/ fits together, and grants what the code calls and no more."""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

import hcl2.api
import pytest

import thingbridge_api
from domain.names import thing_name
from settings import Jobs, SecretNames
from tests import ROOT

FOLDER = ROOT / "deploy" / "terraform"
ENROLMENT = FOLDER / "enrolment"
LAMBDA = ROOT / "deploy" / "lambda"
MODULES = {"root": FOLDER, "enrolment": ENROLMENT}

# Granted only where a variable names what they are about.
WHERE_CONFIGURED = {"secretsmanager:GetSecretValue", "events:PutEvents", "sns:Publish"}
# Called by Secrets Manager in the bridge's name, where its secrets have a key of their own.
CALLED_BY_AWS = {"kms:Decrypt", "kms:GenerateDataKey"}
OWN_THING = "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/"
POLICY_LIMIT = 2048

KIND_OF_REFERENCE = {"aws_iot_policy.device.arn": ":policy/"}


@cache
def source(folder: Path) -> str:
    """All of a module, without its comments."""
    text = "\n".join(file.read_text() for file in sorted(folder.glob("*.tf")))
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


@cache
def blocks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A module's blocks by their kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.tf")):
        with file.open() as text:
            for kind, given in hcl2.api.load(text).items():
                found.setdefault(kind, []).extend(given)
    return found


def names(folder: Path, kind: str) -> set[str]:
    """What a module declares of a kind that bears one label."""
    return {name for block in blocks(folder).get(kind, []) for name in block}


def addresses(folder: Path, kind: str) -> set[str]:
    """What a module declares of a kind that bears a type and a name."""
    return {
        f"{type_}.{name}"
        for block in blocks(folder)[kind]
        for type_, named in block.items()
        for name in named
    }


def local_values(folder: Path) -> dict[str, Any]:
    return {name: value for block in blocks(folder)["locals"] for name, value in block.items()}


def document(folder: Path, name: str) -> dict[str, Any]:
    """A policy document's block."""
    (found,) = (
        named[name]
        for block in blocks(folder)["data"]
        for type_, named in block.items()
        if type_ == "aws_iam_policy_document" and name in named
    )
    return dict(found)


def always(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The statements that are in a policy however it is configured."""
    return list(policy.get("statement", []))


def by_variable(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The statements that a variable brings."""
    return [statement for each in policy.get("dynamic", []) for statement in each["statement"]["content"]]


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in statement["actions"]}


def in_the_readme() -> set[str]:
    """The actions that the README lists, which tests/test_readme.py holds to the code."""
    return {
        f"{service}:{action}"
        for service, cells in re.findall(
            r"^\| `(iot|secretsmanager|events|sns)` \| (.+) \|$",
            (ROOT / "README.md").read_text(),
            re.MULTILINE,
        )
        for action in re.findall(r"`([A-Z]\w+)`", cells)
    }


def expanded(folder: Path, expression: Any) -> str:
    """An expression with every local value written out."""
    text = str(expression)
    while found := re.search(r"local\.(\w+)", text):
        text = text[: found.start()] + str(local_values(folder)[found[1]]) + text[found.end() :]
    return text


@cache
def published_by_aws() -> dict[str, Any]:
    """What AWS publishes of its actions, as the emulator's cfn-lint holds it: read, not imported."""
    spec = find_spec("cfnlint")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "AdditionalSpecs" / "Policies.json"
    return dict(json.loads(file.read_text("utf-8")))


def test_the_bridges_role_has_the_actions_that_the_code_calls() -> None:
    """The role is enough, and holds nothing that no code needs."""
    policy = document(FOLDER, "bridge")
    assert actions(always(policy)) == in_the_readme() - WHERE_CONFIGURED
    assert actions(by_variable(policy)) == WHERE_CONFIGURED | CALLED_BY_AWS


@pytest.mark.parametrize(
    "statement",
    always(document(FOLDER, "bridge")),
    ids=lambda statement: statement["sid"],
)
def test_every_action_is_granted_on_the_kinds_of_resource_it_knows(statement: dict[str, Any]) -> None:
    """AWS denies an action whose statement names another kind of resource, once it is called."""
    known = published_by_aws()
    granted = expanded(FOLDER, statement["resources"])
    kinds = {f":{kind}" for kind in re.findall(r":((?:[a-z]+/)|secret:)", granted)}
    kinds |= {kind for reference, kind in KIND_OF_REFERENCE.items() if reference in granted}
    for action in statement["actions"]:
        service, name = action.split(":")
        wanted = {
            found[0]
            for kind in known[service]["Actions"][name.lower()].get("Resources", [])
            for format_ in known[service]["Resources"][kind.lower()]["ARNFormats"]
            if (found := re.search(r":(?:[a-z]+/|secret:)", format_.split("${Account}")[1]))
        }
        if not wanted:
            assert statement["resources"] == ["*"], f"{action} knows no resource"
        assert not wanted or kinds & wanted, f"{action} is for {wanted}"
        assert not wanted or action == "iot:CreateJob" or kinds <= wanted, f"{action} is for {wanted} alone"


def test_no_resource_of_the_role_is_wider_than_it_must_be() -> None:
    """Only what has no resource, or an id of AWS's own, is granted for all."""
    for statement in always(document(FOLDER, "bridge")):
        if statement["sid"] not in {"Certificates", "WithoutResources", "JobsOfThings"}:
            assert not re.search(r"/\*|^\[?'?\*", expanded(FOLDER, statement["resources"])), statement["sid"]


@pytest.mark.parametrize("serial_number", ["A", "SN-001", "x" * 94])
def test_the_role_reaches_every_thing_of_the_bridge(serial_number: str) -> None:
    """The pattern fits each name that the bridge can give."""
    pattern = local_values(FOLDER)["thing_names"]
    name = thing_name(UUID("0b5c1c0e-5a52-4a39-9b0e-7f3f0a3f1b11"), serial_number)
    assert fnmatchcase(name, pattern)
    assert not fnmatchcase("thermostat-1", pattern)


def test_the_variables_default_to_the_settings() -> None:
    """What neither side changes fits on both."""
    given = {
        name: value.get("default") for block in blocks(FOLDER)["variable"] for name, value in block.items()
    }
    assert given["secret_name_template"] == SecretNames().secret_name_template
    assert given["job_id_prefix"] == Jobs().job_id_prefix


def test_a_device_connects_as_its_own_thing_only() -> None:
    """The client id is the attached Thing's name."""
    (connect,) = (each for each in always(document(FOLDER, "device")) if "iot:Connect" in each["actions"])
    assert connect["resources"] == ["${local.iot}:client/&{iot:Connection.Thing.ThingName}"]
    (condition,) = connect["condition"]
    assert (condition["variable"], condition["values"]) == ("iot:Connection.Thing.IsAttached", ["true"])


def test_a_device_reaches_no_other_things_topics() -> None:
    """Wildcards stand behind the device's own Thing, in its shadows and jobs."""
    policy = document(FOLDER, "device")
    assert "dynamic" not in policy
    for statement in always(policy):
        assert set(statement["actions"]) <= {"iot:Connect", "iot:Publish", "iot:Receive", "iot:Subscribe"}
        if statement["actions"] != ["iot:Connect"]:
            for resource in statement["resources"]:
                own = resource.replace(":topicfilter/", ":topic/").removeprefix(OWN_THING)
                assert re.fullmatch(r"(shadow|jobs)/[a-z/*-]+", own), resource


def test_the_device_policy_is_not_too_long_for_aws() -> None:
    """AWS IoT takes 2,048 characters, and some regions have long names."""
    longest = "arn:aws-us-gov:iot:us-gov-west-1:123456789012"
    statements = [
        {
            "Sid": each["sid"],
            "Effect": "Allow",
            "Action": each["actions"],
            "Resource": [text.replace("${local.iot}", longest) for text in each["resources"]],
            "Condition": {"Bool": {"iot:Connection.Thing.IsAttached": "true"}} if "condition" in each else {},
        }
        for each in always(document(FOLDER, "device"))
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    assert len(json.dumps(policy, separators=(",", ":"))) <= POLICY_LIMIT


def test_a_claim_certificate_cannot_take_a_devices_connection() -> None:
    """It connects under client ids that are no Thing's name, and asks for nothing but to enrol here."""
    prefix = local_values(ENROLMENT)["claim_client_id_prefix"]
    assert not re.match("t[0-9a-f]|[$]", prefix)
    connect, *rest = always(document(ENROLMENT, "claim"))
    assert connect["resources"] == ["${local.iot}:client/${local.claim_client_id_prefix}*"]
    for resource in (resource for statement in rest for resource in statement["resources"]):
        assert re.fullmatch(
            r"\$\{local\.iot\}:topic(filter)?/\$aws/"
            r"(certificates/create(-from-csr)?|provisioning-templates/\$\{var\.name\}/provision)/\*",
            resource,
        )


def test_the_template_is_the_one_that_the_functions_are_for() -> None:
    """The template in the functions' README, with the names that Terraform fills in."""
    (documented,) = re.findall(r"```json\n(.*?)```", (LAMBDA / "README.md").read_text(), re.DOTALL)
    text = (ENROLMENT / "provisioning-template.json.tftpl").read_text()
    filled = text.replace("${device_policy_name}", "device-policy")
    assert json.loads(filled.replace("${thing_type_name}", "thingbridge-device")) == json.loads(documented)


def test_the_rule_is_the_one_that_the_functions_are_for() -> None:
    """The statement in the functions' README, for this tenant."""
    (documented,) = re.findall(r"```sql\n(.*?)```", (LAMBDA / "README.md").read_text(), re.DOTALL)
    (rule,) = re.findall(r"<<-SQL\n(.*?)SQL", source(ENROLMENT), re.DOTALL)
    wanted = documented.replace("t0123456789abcdef0123456789abcdef-", "${local.thing_prefix}")
    assert rule.split() == wanted.split()


def test_the_functions_are_there_and_are_told_what_they_read() -> None:
    """Handlers and variables are those of deploy/lambda."""
    functions = local_values(ENROLMENT)["functions"]
    for function in functions.values():
        module, handler = function["handler"].split(".")
        assert f"def {handler}(" in (LAMBDA / f"{module}.py").read_text()
    assert functions["hook"]["timeout"] == 5
    told = set(re.findall(r"\bTHINGBRIDGE_\w+", source(ENROLMENT)))
    assert told == {
        thingbridge_api.URL_VARIABLE,
        thingbridge_api.KEY_SECRET_VARIABLE,
        thingbridge_api.TENANT_ID_VARIABLE,
    }


def test_the_registrations_role_has_the_actions_that_it_calls() -> None:
    """The registry's reads, and what every function needs."""
    code = (LAMBDA / "registration.py").read_text()
    called = set(re.findall(r"self\._iot\.(describe_\w+)\(", code))
    called |= set(re.findall(r'get_paginator\("(\w+)"\)', code))
    granted = actions(always(document(ENROLMENT, "registration")))
    pascal = {"iot:" + "".join(word.capitalize() for word in name.split("_")) for name in called}
    assert {action for action in granted if action.startswith("iot:")} == pascal
    assert actions(always(document(ENROLMENT, "both"))) == {"secretsmanager:GetSecretValue"}


@pytest.mark.parametrize("module", MODULES)
def test_every_variable_is_declared_and_used(module: str) -> None:
    """A variable misspelt, or left over, is found before Terraform is run."""
    folder = MODULES[module]
    assert set(re.findall(r"\bvar\.(\w+)", source(folder))) == names(folder, "variable")


@pytest.mark.parametrize("module", MODULES)
def test_every_reference_is_to_something_declared(module: str) -> None:
    """Locals, data, resources and modules are there under the names used."""
    folder = MODULES[module]
    text = source(folder)
    assert set(re.findall(r"\blocal\.(\w+)", text)) == set(local_values(folder))
    assert set(re.findall(r"\bdata\.(\w+\.\w+)", text)) == addresses(folder, "data")
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)", text)) <= addresses(folder, "resource")
    assert set(re.findall(r"\bmodule\.(\w+)", text)) <= names(folder, "module")


def test_the_enrolments_module_is_given_what_it_needs() -> None:
    """Every argument is a variable of it, and every variable is given; the outputs read are its own."""
    (call,) = (module["enrolment"] for module in blocks(FOLDER)["module"])
    assert set(call) - {"source", "for_each"} == names(ENROLMENT, "variable")
    assert set(re.findall(r"\benrolment\.(\w+)", source(FOLDER))) == names(ENROLMENT, "output")


@pytest.mark.parametrize("module", MODULES)
def test_providers_are_pinned(module: str) -> None:
    """No provider's next major release is taken unseen."""
    (terraform,) = blocks(MODULES[module])["terraform"]
    assert all(re.search(r"~>|<", version) for version in versions(terraform))


def versions(terraform: Mapping[str, Any]) -> Iterator[str]:
    yield str(terraform["required_version"])
    for providers in terraform["required_providers"]:
        yield from (str(provider["version"]) for provider in providers.values())

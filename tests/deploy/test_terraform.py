"""The Terraform modules in deploy/ are consistent, and grant exactly the actions that the code calls."""

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

# Granted only if a variable names their resource.
OPTIONAL_ACTIONS = {"secretsmanager:GetSecretValue", "events:PutEvents", "sns:Publish"}
# Called by Secrets Manager on behalf of the bridge, if the secrets have their own KMS key.
CALLED_BY_AWS = {"kms:Decrypt", "kms:GenerateDataKey"}
OWN_THING = "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/"
POLICY_LIMIT = 2048

KIND_OF_REFERENCE = {"aws_iot_policy.device.arn": ":policy/"}


@cache
def source(folder: Path) -> str:
    """Return the source of a module without comments."""
    text = "\n".join(file.read_text() for file in sorted(folder.glob("*.tf")))
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


@cache
def blocks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the blocks of a module by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.tf")):
        with file.open() as text:
            for kind, members in hcl2.api.load(text).items():
                found.setdefault(kind, []).extend(members)
    return found


def names(folder: Path, kind: str) -> set[str]:
    """Return the names that a module declares, for a kind of block with one label."""
    return {name for block in blocks(folder).get(kind, []) for name in block}


def addresses(folder: Path, kind: str) -> set[str]:
    """Return the addresses that a module declares, for a kind of block with type and name."""
    return {
        f"{type_}.{name}"
        for block in blocks(folder)[kind]
        for type_, named in block.items()
        for name in named
    }


def local_values(folder: Path) -> dict[str, Any]:
    return {name: value for block in blocks(folder)["locals"] for name, value in block.items()}


def document(folder: Path, name: str) -> dict[str, Any]:
    """Return the block of a policy document."""
    (found,) = (
        named[name]
        for block in blocks(folder)["data"]
        for type_, named in block.items()
        if type_ == "aws_iam_policy_document" and name in named
    )
    return dict(found)


def fixed_statements(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a policy that do not depend on a variable."""
    return list(policy.get("statement", []))


def optional_statements(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a policy that depend on a variable."""
    return [statement for each in policy.get("dynamic", []) for statement in each["statement"]["content"]]


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in statement["actions"]}


def actions_in_readme() -> set[str]:
    """Return the actions in the README. tests/test_readme.py compares these with the code."""
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
    """Replace every reference to a local value in an expression by the value."""
    text = str(expression)
    while found := re.search(r"local\.(\w+)", text):
        text = text[: found.start()] + str(local_values(folder)[found[1]]) + text[found.end() :]
    return text


@cache
def iam_actions() -> dict[str, Any]:
    """Return the IAM actions published by AWS, from a data file of cfn-lint, a dependency of the emulator."""
    spec = find_spec("cfnlint")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "AdditionalSpecs" / "Policies.json"
    return dict(json.loads(file.read_text("utf-8")))


def test_the_bridges_role_has_the_actions_that_the_code_calls() -> None:
    """The role has all actions that the code calls and no others."""
    policy = document(FOLDER, "bridge")
    assert actions(fixed_statements(policy)) == actions_in_readme() - OPTIONAL_ACTIONS
    assert actions(optional_statements(policy)) == OPTIONAL_ACTIONS | CALLED_BY_AWS


@pytest.mark.parametrize(
    "statement",
    fixed_statements(document(FOLDER, "bridge")),
    ids=lambda statement: statement["sid"],
)
def test_every_action_is_granted_on_its_kinds_of_resource(statement: dict[str, Any]) -> None:
    """AWS denies the call if the statement names another kind of resource."""
    published = iam_actions()
    granted = expanded(FOLDER, statement["resources"])
    kinds = {f":{kind}" for kind in re.findall(r":((?:[a-z]+/)|secret:)", granted)}
    kinds |= {kind for reference, kind in KIND_OF_REFERENCE.items() if reference in granted}
    for action in statement["actions"]:
        service, name = action.split(":")
        supported = {
            match[0]
            for kind in published[service]["Actions"][name.lower()].get("Resources", [])
            for format_ in published[service]["Resources"][kind.lower()]["ARNFormats"]
            if (match := re.search(r":(?:[a-z]+/|secret:)", format_.split("${Account}")[1]))
        }
        if not supported:
            assert statement["resources"] == ["*"], f"{action} supports no resource"
        assert not supported or kinds & supported, f"{action} supports {supported}"
        is_exact = action == "iot:CreateJob" or kinds <= supported
        assert not supported or is_exact, f"{action} supports only {supported}"


def test_the_role_has_no_unnecessary_wildcard() -> None:
    """Only actions without a resource, or on ids assigned by AWS, are granted on all resources."""
    for statement in fixed_statements(document(FOLDER, "bridge")):
        if statement["sid"] not in {"Certificates", "WithoutResources", "JobsOfThings"}:
            assert not re.search(r"/\*|^\[?'?\*", expanded(FOLDER, statement["resources"])), statement["sid"]


@pytest.mark.parametrize("serial_number", ["A", "SN-001", "x" * 94])
def test_the_role_matches_every_thing_name_of_the_bridge(serial_number: str) -> None:
    """The pattern matches each possible name of the bridge, and no name of another form."""
    pattern = local_values(FOLDER)["thing_names"]
    name = thing_name(UUID("0b5c1c0e-5a52-4a39-9b0e-7f3f0a3f1b11"), serial_number)
    assert fnmatchcase(name, pattern)
    assert not fnmatchcase("thermostat-1", pattern)


def test_variables_have_the_defaults_of_the_settings() -> None:
    """The templates of names are equal on both sides unless an operator changes one."""
    defaults = {
        name: value.get("default") for block in blocks(FOLDER)["variable"] for name, value in block.items()
    }
    assert defaults["secret_name_template"] == SecretNames().secret_name_template
    assert defaults["job_id_prefix"] == Jobs().job_id_prefix


def test_a_device_can_connect_only_as_its_own_thing() -> None:
    """Its client id must be the name of the attached Thing."""
    (connect,) = (
        each for each in fixed_statements(document(FOLDER, "device")) if "iot:Connect" in each["actions"]
    )
    assert connect["resources"] == ["${local.iot}:client/&{iot:Connection.Thing.ThingName}"]
    (condition,) = connect["condition"]
    assert (condition["variable"], condition["values"]) == ("iot:Connection.Thing.IsAttached", ["true"])


def test_a_device_can_use_only_topics_of_its_own_thing() -> None:
    """Wildcards are allowed only below the shadows and jobs of its own Thing."""
    policy = document(FOLDER, "device")
    assert "dynamic" not in policy
    for statement in fixed_statements(policy):
        assert set(statement["actions"]) <= {"iot:Connect", "iot:Publish", "iot:Receive", "iot:Subscribe"}
        if statement["actions"] != ["iot:Connect"]:
            for resource in statement["resources"]:
                own = resource.replace(":topicfilter/", ":topic/").removeprefix(OWN_THING)
                assert re.fullmatch(r"(shadow|jobs)/[a-z/*-]+", own), resource


def test_the_device_policy_is_within_the_size_limit() -> None:
    """AWS IoT allows 2,048 characters, also in regions with long names."""
    longest = "arn:aws-us-gov:iot:us-gov-west-1:123456789012"
    statements = [
        {
            "Sid": each["sid"],
            "Effect": "Allow",
            "Action": each["actions"],
            "Resource": [text.replace("${local.iot}", longest) for text in each["resources"]],
            "Condition": {"Bool": {"iot:Connection.Thing.IsAttached": "true"}} if "condition" in each else {},
        }
        for each in fixed_statements(document(FOLDER, "device"))
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    assert len(json.dumps(policy, separators=(",", ":"))) <= POLICY_LIMIT


def test_a_claim_certificate_can_only_enrol() -> None:
    """Its client ids are never Thing names, and its topics are only those of the enrolment."""
    prefix = local_values(ENROLMENT)["claim_client_id_prefix"]
    assert not re.match("t[0-9a-f]|[$]", prefix)
    connect, *rest = fixed_statements(document(ENROLMENT, "claim"))
    assert connect["resources"] == ["${local.iot}:client/${local.claim_client_id_prefix}*"]
    for resource in (resource for statement in rest for resource in statement["resources"]):
        assert re.fullmatch(
            r"\$\{local\.iot\}:topic(filter)?/\$aws/"
            r"(certificates/create(-from-csr)?|provisioning-templates/\$\{var\.name\}/provision)/\*",
            resource,
        )


def test_the_template_is_the_one_in_the_lambda_readme() -> None:
    """They are equal after the names are filled in."""
    (documented,) = re.findall(r"```json\n(.*?)```", (LAMBDA / "README.md").read_text(), re.DOTALL)
    text = (ENROLMENT / "provisioning-template.json.tftpl").read_text()
    filled = text.replace("${device_policy_name}", "device-policy")
    assert json.loads(filled.replace("${thing_type_name}", "thingbridge-device")) == json.loads(documented)


def test_the_rule_is_the_one_in_the_lambda_readme() -> None:
    """They are equal after the tenant is filled in."""
    (documented,) = re.findall(r"```sql\n(.*?)```", (LAMBDA / "README.md").read_text(), re.DOTALL)
    (rule,) = re.findall(r"<<-SQL\n(.*?)SQL", source(ENROLMENT), re.DOTALL)
    expected = documented.replace("t0123456789abcdef0123456789abcdef-", "${local.thing_prefix}")
    assert rule.split() == expected.split()


def test_the_functions_have_their_handlers_and_variables() -> None:
    """Handlers and environment variables are those of deploy/lambda."""
    functions = local_values(ENROLMENT)["functions"]
    for function in functions.values():
        module, handler = function["handler"].split(".")
        assert f"def {handler}(" in (LAMBDA / f"{module}.py").read_text()
    assert functions["hook"]["timeout"] == 5
    variables = set(re.findall(r"\bTHINGBRIDGE_\w+", source(ENROLMENT)))
    assert variables == {
        thingbridge_api.URL_VARIABLE,
        thingbridge_api.KEY_SECRET_VARIABLE,
        thingbridge_api.TENANT_ID_VARIABLE,
    }


def test_the_registration_role_has_the_actions_that_it_calls() -> None:
    """It has the registry actions of its code, and the secret of both functions."""
    code = (LAMBDA / "registration.py").read_text()
    called = set(re.findall(r"self\._iot\.(describe_\w+)\(", code))
    called |= set(re.findall(r'get_paginator\("(\w+)"\)', code))
    granted = actions(fixed_statements(document(ENROLMENT, "registration")))
    pascal = {"iot:" + "".join(word.capitalize() for word in name.split("_")) for name in called}
    assert {action for action in granted if action.startswith("iot:")} == pascal
    assert actions(fixed_statements(document(ENROLMENT, "both"))) == {"secretsmanager:GetSecretValue"}


@pytest.mark.parametrize("module", MODULES)
def test_every_variable_is_declared_and_used(module: str) -> None:
    """A misspelt or unused variable is found without running Terraform."""
    folder = MODULES[module]
    assert set(re.findall(r"\bvar\.(\w+)", source(folder))) == names(folder, "variable")


@pytest.mark.parametrize("module", MODULES)
def test_every_reference_is_declared(module: str) -> None:
    """Every referenced local, data source, resource and module is declared."""
    folder = MODULES[module]
    text = source(folder)
    assert set(re.findall(r"\blocal\.(\w+)", text)) == set(local_values(folder))
    assert set(re.findall(r"\bdata\.(\w+\.\w+)", text)) == addresses(folder, "data")
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)", text)) <= addresses(folder, "resource")
    assert set(re.findall(r"\bmodule\.(\w+)", text)) <= names(folder, "module")


def test_the_enrolment_module_gets_all_its_variables() -> None:
    """The arguments are exactly its variables, and the outputs read are exactly its outputs."""
    (call,) = (module["enrolment"] for module in blocks(FOLDER)["module"])
    assert set(call) - {"source", "for_each"} == names(ENROLMENT, "variable")
    assert set(re.findall(r"\benrolment\.(\w+)", source(FOLDER))) == names(ENROLMENT, "output")


@pytest.mark.parametrize("module", MODULES)
def test_providers_are_pinned(module: str) -> None:
    """A new major release of Terraform or a provider is not used automatically."""
    (terraform,) = blocks(MODULES[module])["terraform"]
    assert all(re.search(r"~>|<", version) for version in versions(terraform))


def versions(terraform: Mapping[str, Any]) -> Iterator[str]:
    yield str(terraform["required_version"])
    for providers in terraform["required_providers"]:
        yield from (str(provider["version"]) for provider in providers.values())

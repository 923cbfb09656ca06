"""The tables of the README match the code."""

import re

import pytest
from starlette.routing import Route

from api.app import create_app
from domain.failure import FailureCode
from settings import ApiSettings
from tests import ROOT

README = (ROOT / "README.md").read_text()
SERVICE_OF_CLIENT = {"secrets": "secretsmanager", "iot_data": "iot", "_events": "events", "_sns": "sns"}
# The packages that call AWS.
ROOMS = ("activities", "aws", "events")
# The table of sinks has rows with a similar beginning.
LISTED = re.compile(r"^\| `(events|iot|secretsmanager|sns)` \| ((?:`\w+`(?:, )?)+) \|$", re.MULTILINE)
# CreateSecret also tags the secret, for which AWS requires another permission.
CALLED_IMPLICITLY = {"secretsmanager:TagResource"}


def test_the_listed_iam_actions_are_the_ones_the_code_calls() -> None:
    """A role with the actions of the README can run the bridge, and each of them is needed."""
    source = "\n".join(file.read_text() for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    called = {
        f"{SERVICE_OF_CLIENT.get(client, client)}:{in_pascal_case(operation)}"
        for client, operation in re.findall(r"\.(_events|iot|iot_data|secrets|_sns)\.([a-z_]+)\b", source)
        if operation != "get_paginator"
    } | {
        f"iot:{in_pascal_case(operation)}"
        for operation in re.findall(r'get_paginator\("([a-z_]+)"\)', source)
    }
    listed = {
        f"{service}:{action}"
        for service, actions in LISTED.findall(README)
        for action in re.findall(r"`(\w+)`", actions)
    }
    assert listed == called | CALLED_IMPLICITLY


def test_the_table_of_failures_lists_every_failure_code() -> None:
    """An operator finds the failure code of a binding in the table."""
    listed = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[A-Z]\w+`.*?) \|", README, re.MULTILINE)))
    assert set(listed) == {code.value for code in FailureCode}


def test_the_table_of_http_calls_lists_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists every path of the API and no other."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://unused/unused")
    existing = {route.path for route in create_app(ApiSettings.load()).routes if isinstance(route, Route)}
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE)\b.*?) \|", README, re.MULTILINE)
    listed = set(re.findall(r"(/[\w/{}.-]+)`", "\n".join(rows)))
    # Path parameters that are {id} in the README have longer names in OpenAPI.
    assert {re.sub(r"{\w+}", "{}", path) for path in listed} == {
        re.sub(r"{\w+}", "{}", path) for path in existing
    }


def in_pascal_case(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))

"""What the README promises of the code is so."""

import re

import pytest
from starlette.routing import Route

from api.app import create_app
from domain.failure import FailureCode
from settings import ApiSettings
from tests import ROOT

README = (ROOT / "README.md").read_text()
SERVICE_OF_CLIENT = {"secrets": "secretsmanager", "iot_data": "iot", "_events": "events", "_sns": "sns"}
# The table of sinks has rows that begin alike.
LISTED = re.compile(r"^\| `(events|iot|secretsmanager|sns)` \| ((?:`\w+`(?:, )?)+) \|$", re.MULTILINE)
# CreateSecret tags what it creates, for which AWS asks another permission.
NOT_CALLED_BY_NAME = {"secretsmanager:TagResource"}


def test_the_listed_iam_actions_are_the_ones_the_code_calls() -> None:
    """A role with the README's actions is enough, and more than none of them."""
    source = "\n".join(
        file.read_text() for room in ("aws", "activities", "events") for file in (ROOT / room).rglob("*.py")
    )
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
    assert listed == called | NOT_CALLED_BY_NAME


def test_every_failure_code_has_its_remedy_in_the_table() -> None:
    """An operator who is paged finds the code that the binding names."""
    listed = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[A-Z]\w+`.*?) \|", README, re.MULTILINE)))
    assert set(listed) == {code.value for code in FailureCode}


def test_the_table_of_http_calls_has_every_path_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for a call finds it there, and none that is gone."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://of.nobody/none")
    there = {route.path for route in create_app(ApiSettings.load()).routes if isinstance(route, Route)}
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE)\b.*?) \|", README, re.MULTILINE)
    listed = set(re.findall(r"(/[\w/{}.-]+)`", "\n".join(rows)))
    # What the README calls {id} bears a longer name in OpenAPI.
    assert {re.sub(r"{\w+}", "{}", path) for path in listed} == {
        re.sub(r"{\w+}", "{}", path) for path in there
    }


def in_pascal_case(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))

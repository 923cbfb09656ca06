"""Whether the bridge is alive and ready is to be had over HTTP."""

import os
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from embedded.stack import Addresses
from settings import ApiSettings
from tests.harness.bridge import Bridge


@pytest.fixture
def http(stack: Addresses, bridge: Bridge) -> Iterator[TestClient]:
    with TestClient(create_app(ApiSettings.load())) as client:
        yield client


def test_it_is_alive_and_ready_where_all_answers(http: TestClient) -> None:
    """Database, Temporal and the AWS credentials, which boto3's default chain always has, are each named."""
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"database": "ok", "temporal": "ok", "aws_credentials": "ok"},
    )


def test_what_does_not_answer_is_named(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Temporal is away it is alive but not ready, and says why; the database is not blamed."""
    monkeypatch.setitem(os.environ, "TEMPORAL_ADDRESS", "127.0.0.1:1")
    ready = http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["database"] == "ok"
    assert "127.0.0.1:1" in ready.json()["temporal"]
    assert http.get("/healthz").status_code == 200


def test_a_database_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password is not."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://bridge:hunter2@127.0.0.1:1/none")
    with TestClient(create_app(ApiSettings.load())) as http:
        ready = http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["database"] != "ok"
    assert "hunter2" not in ready.text

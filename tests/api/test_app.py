"""Liveness and readiness over HTTP."""

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


def test_readiness_names_every_dependency(http: TestClient) -> None:
    """They are the database, Temporal and the AWS credentials, which boto3's default chain always has."""
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"database": "ok", "temporal": "ok", "aws_credentials": "ok"},
    )


def test_readiness_without_temporal_is_503_with_the_reason(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stays alive, and only Temporal is reported as unavailable."""
    monkeypatch.setitem(os.environ, "TEMPORAL_ADDRESS", "127.0.0.1:1")
    ready = http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["database"] == "ok"
    assert "127.0.0.1:1" in ready.json()["temporal"]
    assert http.get("/healthz").status_code == 200


def test_readiness_without_the_database_is_503_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is reported, but no part of the connection's secret."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://bridge:hunter2@127.0.0.1:1/none")
    with TestClient(create_app(ApiSettings.load())) as http:
        ready = http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["database"] != "ok"
    assert "hunter2" not in ready.text

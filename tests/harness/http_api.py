"""Clients of the HTTP API for tests: with a tenant's key, with an operator's key, or without one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx2
from sqlalchemy import Engine
from sqlmodel import Session
from starlette.applications import Starlette

from api.app import create_app
from db.api_keys import create_key
from settings import ApiSettings

PROBLEM = "application/problem+json"


@asynccontextmanager
async def open_http_api(engine: Engine, app: Starlette | None = None) -> AsyncIterator["HttpApi"]:
    """Run an application, by default one with the present settings, and return access to it."""
    app = app or create_app(ApiSettings.load())
    async with app.router.lifespan_context(app):
        yield HttpApi(app, engine)


class HttpApi:
    """An application in this process, with clients and keys for it."""

    def __init__(self, app: Starlette, engine: Engine) -> None:
        self.app = app
        self._engine = engine

    def key(self, tenant_id: UUID | None) -> str:
        """Create a tenant's key, or an operator's for None, and return it."""
        with Session(self._engine) as session, session.begin():
            return create_key(session, tenant_id, "a test")

    def tenant(self, tenant_id: UUID) -> httpx2.AsyncClient:
        """Return a client with a new key of a tenant."""
        return self.client(self.key(tenant_id))

    def operator(self) -> httpx2.AsyncClient:
        """Return a client with a new key of an operator."""
        return self.client(self.key(None))

    def client(self, key: str | None = None) -> httpx2.AsyncClient:
        """Return a client with this key, or without a key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://bridge.test", headers=headers)


def problem(response: httpx2.Response) -> dict[str, Any]:
    """Return the problem in a response, and check its media type, status and fields."""
    assert response.headers["content-type"] == PROBLEM, response.text
    found: dict[str, Any] = response.json()
    assert found["status"] == response.status_code
    assert {"type", "title", "detail"} <= found.keys()
    return found


def faults(response: httpx2.Response) -> dict[str, str]:
    """Return the reason for each field at fault."""
    return {fault["field"]: fault["reason"] for fault in problem(response).get("errors", [])}

"""The tests' way through the HTTP doors: clients with a key of a tenant, of an operator, or with none."""

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
    """The doors while their application runs; without one, by the settings that now stand."""
    app = app or create_app(ApiSettings.load())
    async with app.router.lifespan_context(app):
        yield HttpApi(app, engine)


class HttpApi:
    """An application in this process, and the keys to it."""

    def __init__(self, app: Starlette, engine: Engine) -> None:
        self.app = app
        self._engine = engine

    def key(self, tenant_id: UUID | None) -> str:
        """A new key: a tenant's, or an operator's."""
        with Session(self._engine) as session, session.begin():
            return create_key(session, tenant_id, "a test")

    def tenant(self, tenant_id: UUID) -> httpx2.AsyncClient:
        """A client with a new key of a tenant."""
        return self.client(self.key(tenant_id))

    def operator(self) -> httpx2.AsyncClient:
        """A client with a new key of an operator."""
        return self.client(self.key(None))

    def client(self, key: str | None = None) -> httpx2.AsyncClient:
        """A client with this key, or with none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://bridge.test", headers=headers)


def problem(response: httpx2.Response) -> dict[str, Any]:
    """The problem a response tells of, which says the same status as the response."""
    assert response.headers["content-type"] == PROBLEM, response.text
    told: dict[str, Any] = response.json()
    assert told["status"] == response.status_code
    assert {"type", "title", "detail"} <= told.keys()
    return told


def faults(response: httpx2.Response) -> dict[str, str]:
    """Each field at fault, with the reason."""
    return {fault["field"]: fault["reason"] for fault in problem(response).get("errors", [])}

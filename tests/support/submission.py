"""A mesh that tasks are submitted to over HTTP, and what is asked of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh


@dataclass
class Bench:
    """A mesh that several cases share, each with a tenant of its own."""

    mesh: Mesh
    connection: Connection
    client: httpx.AsyncClient

    async def post(
        self, text: str, tenant: str, *, key: str | None = None, wait: int | None = None, **fields: object
    ) -> httpx.Response:
        """`POST /v1/tasks`"""
        sent = {"Mesh-Tenant": tenant}
        if key is not None:
            sent["Idempotency-Key"] = key
        if wait is not None:
            sent["Prefer"] = f"wait={wait}"
        return await self.client.post("/v1/tasks", json={"input": text, **fields}, headers=sent, timeout=30)

    async def accepted(self, text: str, tenant: str, *, key: str | None = None) -> str:
        """Post a task that must be accepted; its id."""
        response = await self.post(text, tenant, key=key)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    async def finished(self, text: str, tenant: str) -> str:
        """Post a task, and wait for its end; its id."""
        response = await self.post(text, tenant, wait=20)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    async def task(self, task: str, tenant: str) -> dict[str, Any]:
        """`GET /v1/tasks/{id}`"""
        response = await self.client.get(f"/v1/tasks/{task}", headers={"Mesh-Tenant": tenant})
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def page(self, tenant: str, **query: str | int) -> dict[str, Any]:
        """`GET /v1/tasks`"""
        response = await self.client.get("/v1/tasks", params=query, headers={"Mesh-Tenant": tenant})
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def listed(self, tenant: str, **query: str | int) -> list[str]:
        """Ids of a tenant's tasks, from all pages."""
        page = await self.page(tenant, **query)
        found = [task["id"] for task in page["tasks"]]
        while page["cursor"] is not None:
            page = await self.page(tenant, **query, cursor=page["cursor"])
            found += [task["id"] for task in page["tasks"]]
        return found

    async def last(self, stream: str) -> int:
        """The last sequence that a stream has given out."""
        return await last_sequence(self.connection.requests, stream)

    def task_has(self, task: str, tenant: str, status: str) -> Callable[[], Awaitable[bool]]:
        """A condition for `until`."""

        async def condition() -> bool:
            response = await self.client.get(f"/v1/tasks/{task}", headers={"Mesh-Tenant": tenant})
            return response.status_code == 200 and response.json()["status"] == status

        return condition


@asynccontextmanager
async def open_bench(
    tmp_path_factory: pytest.TempPathFactory, name: str, *services: str, **variables: str
) -> AsyncIterator[Bench]:
    """A running mesh, a connection to its broker, a client of its ingress."""
    async with (
        running_mesh(tmp_path_factory.mktemp(name), *services, **variables) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        yield Bench(mesh, connection, client)
        assert mesh.tracebacks() == []

"""Tasks as those see them who submit them over HTTP: the 202, and the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.http_client import PatientClient
from tests.support.processes import Mesh
from tests.support.waiting import until


@dataclass
class Submitter:
    """Submits to a mesh, for any tenant."""

    mesh: Mesh
    client: PatientClient

    async def post(self, text: str = "hello", tenant: str = "default", **fields: Any) -> httpx.Response:
        """The answer to a submission."""
        return await self.client.post("/v1/tasks", json={"input": text, **fields}, headers={"Mesh-Tenant": tenant})

    async def accepted(self, text: str = "hello", tenant: str = "default", **fields: Any) -> dict[str, Any]:
        """A task's 202."""
        answer = await self.post(text, tenant, **fields)
        assert answer.status_code == 202, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def record(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task as it is now."""
        answer = await self.client.get(f"/v1/tasks/{task['id']}", headers={"Mesh-Tenant": task["tenant"]})
        record: dict[str, Any] = answer.json()
        return record

    async def until_status(self, task: dict[str, Any], *statuses: str) -> dict[str, Any]:
        """Wait until a task has one of these; its record."""

        async def has() -> bool:
            return (await self.record(task))["status"] in statuses

        await until(has)
        return await self.record(task)

"""Servers between which a pool chooses, each with a time that it takes, and tasks that come to them all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, ModelServer, chunk, usage
from tests.support.processes import Mesh

INPUT_TOKENS, OUTPUT_TOKENS = 100, 50
"""What each call has used."""


@dataclass
class Asked:
    """A call that came to one of the servers. `seconds`: how long it took there; None if it has not ended."""

    server: str
    at: float
    seconds: float | None = None


class Server:
    """Answers after its time, or not at all. `asked` has the calls of all servers of a test, in their order."""

    def __init__(self, name: str, asked: list[Asked], seconds: float) -> None:
        self.seconds = seconds
        self.fails = False
        self._name = name
        self._asked = asked

    async def __call__(self, exchange: Exchange) -> None:
        """As any server with chat completions answers, in one piece."""
        asked = Asked(self._name, time.monotonic())
        self._asked.append(asked)
        if self.fails:
            await exchange.refuse(503, {"error": {"message": "the engine is dead"}})
        else:
            await asyncio.sleep(self.seconds)
            await exchange.begin()
            told = usage(INPUT_TOKENS, OUTPUT_TOKENS)
            await exchange.say(chunk({"content": "Hello"}), chunk(finish_reason="stop"), told)
            await exchange.send(DONE)
            await exchange.end()
        asked.seconds = time.monotonic() - asked.at


class Load:
    """Tasks that are submitted and followed to their end."""

    def __init__(self, mesh: Mesh, recorded: Recorded, **request: object) -> None:
        self._mesh = mesh
        self._recorded = recorded
        self._request = request
        self._is_over = False
        self.tasks: list[str] = []

    async def one(self, client: PatientClient) -> str:
        """A task, from its submission to its end."""
        task = await submit(client, self._mesh.ingress_url, self._recorded, "hello", **self._request)
        self.tasks.append(task)
        self._recorded.histories.append(await Viewer(str(self._mesh.settings.edge_address), task).follow())
        return task

    async def paced(self, client: PatientClient, seconds: float, per_second: float) -> None:
        """So many in a second, for so long, however long each takes; then until all have ended."""
        async with asyncio.TaskGroup() as group:
            began_at = time.monotonic()
            for number in range(int(seconds * per_second)):
                await asyncio.sleep(max(0.0, began_at + number / per_second - time.monotonic()))
                group.create_task(self.one(client))

    @asynccontextmanager
    async def under_way(self, at_once: int) -> AsyncIterator[None]:
        """A block during which so many go on, one after another. Those that were begun come to their end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._run())
            try:
                yield
            finally:
                self._is_over = True

    async def _run(self) -> None:
        async with PatientClient(timeout=30) as client:
            while not self._is_over:
                await self.one(client)


def configured(folder: Path, servers: dict[str, ModelServer], pools: str, more: str = "") -> dict[str, str]:
    """A mesh.toml with these providers, and a hurried breaker before each; the variables that name it."""
    providers = "".join(
        f'[providers.{name}]\nkind = "openai"\nbase_url = "{server.base_url}"\n'
        "breaker = { samples_min = 4, window_seconds = 10, open_seconds = 1, open_seconds_max = 2 }\n"
        f"{more}\n"
        for name, server in servers.items()
    )
    (folder / "mesh.toml").write_text(providers + pools)
    return {"MESH_CONFIG": str(folder / "mesh.toml")}

"""Servers between which a pool chooses, each with a time that it takes, and tasks that come to them all the time."""

from __future__ import annotations

import asyncio
import json
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
    """Answers after its time, or not at all. `asked` has the calls of all servers of a test, in their order.

    `places`: calls that it works on at once; the others wait.
    """

    def __init__(self, name: str, asked: list[Asked], seconds: float, places: int = 1_000) -> None:
        self.seconds = seconds
        self._places = asyncio.Semaphore(places)
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
            async with self._places:
                await asyncio.sleep(self.seconds)
            await exchange.begin()
            told = usage(INPUT_TOKENS, OUTPUT_TOKENS)
            await exchange.say(chunk({"content": "Hello"}), chunk(finish_reason="stop"), told)
            await exchange.send(DONE)
            await exchange.end()
        asked.seconds = time.monotonic() - asked.at


class Remembering:
    """A server that reads of a prompt only what it has not read before, and tells how much it had of it.

    A task has `turns`: in all but the last one its model calls a tool that nobody has.
    """

    def __init__(self, name: str, asked: list[Asked], turns: int, seconds_per_token: float) -> None:
        self.input_tokens = self.cached_tokens = self.repeated_tokens = 0
        """What came in all; what of it was read before; and what of it some earlier turn's prompt had, anywhere."""
        self._name = name
        self._asked = asked
        self._turns = turns
        self._seconds_per_token = seconds_per_token
        self._read: set[tuple[str, ...]] = set()

    async def __call__(self, exchange: Exchange) -> None:
        """One turn, in one piece."""
        asked = Asked(self._name, time.monotonic())
        self._asked.append(asked)
        messages = [json.dumps(message, sort_keys=True) for message in exchange.body["messages"]]
        tokens = [len(message) // 4 for message in messages]
        prefixes = [tuple(messages[:length]) for length in range(len(messages), -1, -1)]
        had = next((len(prefix) for prefix in prefixes if prefix in self._read), 0)
        cached, said = sum(tokens[:had]), sum('"role": "assistant"' in message for message in messages)
        self._read.update(prefixes)
        self.input_tokens += sum(tokens)
        self.cached_tokens += cached
        if said:
            last = max(at for at, message in enumerate(messages) if '"role": "assistant"' in message)
            self.repeated_tokens += sum(tokens[:last])
        await asyncio.sleep((sum(tokens) - cached) * self._seconds_per_token)
        await exchange.begin()
        if said + 1 < self._turns:
            function = {"name": "nothing", "arguments": "{}"}
            call = {"index": 0, "id": f"call_{said}", "type": "function", "function": function}
            await exchange.say(chunk({"tool_calls": [call]}), chunk({}, "tool_calls"))
        else:
            await exchange.say(chunk({"content": "Hello"}), chunk(finish_reason="stop"))
        told = usage(sum(tokens), OUTPUT_TOKENS)
        told["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
        await exchange.say(told)
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

    async def one(self, client: PatientClient, text: str = "hello") -> str:
        """A task, from its submission to its end."""
        task = await submit(client, self._mesh.ingress_url, self._recorded, text, **self._request)
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

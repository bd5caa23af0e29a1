"""Tasks that are submitted, followed and read all the time, by clients that try nothing twice: what fails is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.waiting import until

AT_ONCE = 4
SCRIPT = "!rate 30\n!say 45"
"""1.5 s of tokens."""
AGENT = '!rate 30\n!say 15\n!call add {"a": 1, "b": 2}\n!then\n!rate 30\n!say 15'


class SteadyLoad:
    """`faults` are one line each."""

    def __init__(self, ingress_url: str, edge_url: str) -> None:
        self.faults: list[str] = []
        self.is_over = False
        self._tried = 0
        self._ingress_url = ingress_url
        self._edge = urlsplit(edge_url).netloc

    async def run(self, number: int) -> None:
        """Submit one task after another, until `is_over`."""
        async with PatientClient(base_url=self._ingress_url, timeout=60) as client:
            while not self.is_over:
                agent = {"tools": ["add"]} if number % 2 else {}
                try:
                    await self._one(client, {"input": AGENT if agent else SCRIPT, **agent})
                except (httpx.HTTPError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self.faults.append(f"{type(error).__name__}: {error}")
                self._tried += 1

    async def until_more(self) -> None:
        """Wait until as many more tasks were followed to their end, or in vain, as there are clients."""
        wanted = self._tried + AT_ONCE
        await until(lambda: self._tried >= wanted)

    async def _one(self, client: httpx.AsyncClient, request: dict[str, object]) -> None:
        answer = await client.post("/v1/tasks", json=request)
        if answer.status_code != 202:
            self.faults.append(f"POST: {answer.status_code} {answer.text}")
            return
        task = answer.json()["id"]
        viewer = Viewer(self._edge, task)
        following = asyncio.create_task(viewer.follow())
        while not following.done():
            read = await client.get(f"/v1/tasks/{task}")
            if read.status_code != 200:
                self.faults.append(f"GET: {read.status_code} {read.text}")
            await asyncio.wait([following], timeout=0.1)
        history = await following
        types = [frame.type for frame in history.frames]
        turns = [json.loads(frame.data) for frame in history.frames if frame.type == "turn.completed"]
        said = "".join(json.loads(frame.data)["text"] for frame in history.frames if frame.type == "output.delta")
        if viewer.connections != 1:
            self.faults.append(f"{task}: its stream broke {viewer.connections - 1} times")
        if types[-1] != "task.completed" or {"turn.restarted", "task.retrying", "stream.gap"} & set(types):
            self.faults.append(f"{task}: {types}")
        if said != "".join(turn["text"] for turn in turns):
            self.faults.append(f"{task}: {said!r} was streamed, {turns} is what came of it")


@asynccontextmanager
async def under_load(ingress_url: str, edge_url: str) -> AsyncIterator[SteadyLoad]:
    """Load during the body, and before and after it for as long as each of its clients has a task."""
    load = SteadyLoad(ingress_url, edge_url)
    tasks = [asyncio.create_task(load.run(number)) for number in range(AT_ONCE)]
    try:
        await load.until_more()
        yield load
        await load.until_more()
    finally:
        load.is_over = True
        await asyncio.gather(*tasks)

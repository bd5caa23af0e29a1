"""Clients that come to tasks that have ended: whatever is done with those meanwhile, each answer stays the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import cycle
from typing import Any

import httpx

from mesh.background import background
from tests.chaos.clients import answered, post
from tests.support.checker import ClientHistory, StoredEvent, check_followed
from tests.support.clients import StreamRefused, Viewer

PAUSE_SECONDS = 0.2
FOLLOW_SECONDS = 30.0
LIST_LIMIT = 100


class Visitor:
    """Comes to one task. `journal`: all of it, as it was stored. `kept_seconds`: None is for ever."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        ingress_url: str,
        edge_address: str,
        journal: Sequence[StoredEvent],
        submitted: tuple[str, dict[str, Any]] | None,
        kept_seconds: float | None,
    ) -> None:
        self.task = journal[-1].task
        self.problems: list[str] = []
        self.visits = 0
        self._client = client
        self._url = ingress_url
        self._edge_address = edge_address
        self._journal = list(journal)
        self._submitted = submitted
        self._gone_at = _time(journal[-1]) + kept_seconds if kept_seconds is not None else None
        self._record: Any = None
        self._letters: Any = None
        self._cursors = cycle(_cursors(self._journal))

    @property
    def is_late(self) -> bool:
        """Whether the task may be gone by now."""
        return self._gone_at is not None and time.time() >= self._gone_at

    async def run(self) -> None:
        """Come again until cancelled, or until something was wrong."""
        while not self.problems:
            await self.visit()
            await asyncio.sleep(PAUSE_SECONDS)

    async def visit(self) -> None:
        """Read it, follow it from some cursor, and submit it again under its key."""
        self.visits += 1
        await self._read()
        await self._follow(next(self._cursors))
        if self._gone_at is None:
            await self._submit_again()
            await self._list()

    async def farewell(self) -> None:
        """It is gone: nobody finds it."""
        answer = await self._get(f"/v1/tasks/{self.task}")
        if answer.status_code != 404:
            self.problems.append(f"I1: it should be gone, and GET answers {answer.status_code}")
        history = await self._followed(0)
        if history is not None:
            self.problems.append(f"I1: it should be gone, and is followed: {[each.type for each in history.frames]}")

    async def _read(self) -> None:
        answer = await self._get(f"/v1/tasks/{self.task}")
        if answer.status_code != 200:
            self._missed(f"GET answers {answer.status_code}: {answer.text[:200]}")
            return
        self._record = self._same("its record", self._record, answer.json())
        answer = await self._get(f"/v1/dead-letters/{self.task}")
        if answer.status_code != 200:
            self._missed(f"GET of its dead letters answers {answer.status_code}: {answer.text[:200]}")
        elif self._gone_at is None:
            self._letters = self._same("its dead letters", self._letters, answer.json())

    def _same(self, what: str, before: Any, now: Any) -> Any:
        if before is not None and before != now:
            changed = {
                key: (before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)
            }
            self.problems.append(f"I1: {what} is another one than before: {json.dumps(changed)[:600]}")
        return before or now

    async def _follow(self, after: int) -> None:
        history = await self._followed(after)
        if history is None:
            self._missed(f"following from {after} answers 404")
        else:
            self.problems += [f"{problem} (from {after})" for problem in check_followed(history, self._journal)]

    async def _followed(self, after: int) -> ClientHistory | None:
        viewer = Viewer(self._edge_address, self.task)
        viewer.cursor = after or None
        viewer.history.after = after
        try:
            return await viewer.follow(seconds=FOLLOW_SECONDS)
        except TimeoutError:
            viewer.history.saw_end = False
            self.problems.append(f"I3: followed from {after} for {FOLLOW_SECONDS:.0f} s, and it did not end")
            return viewer.history
        except StreamRefused as refused:
            if refused.status != 404:
                raise
            return None

    async def _submit_again(self) -> None:
        if self._submitted is None:
            return
        key, body = self._submitted
        answer = await post(self._client, f"{self._url}/v1/tasks", body, key)
        if answer.status_code != 202 or answer.json()["id"] != self.task:
            self.problems.append(f"I1: submitted again under its key: {answer.status_code}, {answer.text[:200]}")
        answer = await post(self._client, f"{self._url}/v1/tasks", {**body, "input": "other"}, key)
        if answer.status_code != 422:
            self.problems.append(f"I1: another task under its key: {answer.status_code}, {answer.text[:200]}")

    async def _list(self) -> None:
        answer = await self._get(f"/v1/tasks?limit={LIST_LIMIT}")
        if answer.status_code != 200:
            self.problems.append(f"I1: a list answers {answer.status_code}: {answer.text[:200]}")
            return
        if all(each["id"] != self.task for each in answer.json()["tasks"]):
            self.problems.append("I1: a list does not have it")

    async def _get(self, path: str) -> httpx.Response:
        """The answer, once there is one that is not for later."""
        return await answered(lambda: self._client.get(f"{self._url}{path}"))

    def _missed(self, problem: str) -> None:
        if not self.is_late:
            self.problems.append(f"I1: {problem}")


@asynccontextmanager
async def visiting(visitors: Sequence[Visitor]) -> AsyncIterator[None]:
    """A block in which they come and go."""
    async with background(*(visitor.run() for visitor in visitors)):
        yield


def _cursors(journal: Sequence[StoredEvent]) -> list[int]:
    """From the beginning, from the first and the last delta, from each milestone but the end, and from that."""
    deltas = [each.sequence for each in journal if each.event["type"] == "output.delta"]
    completed = [each.sequence for each in journal if each.event["type"] == "turn.completed"]
    return [0, *deltas[:1], *deltas[-1:], *completed[:1], journal[-1].sequence]


def _time(stored: StoredEvent) -> float:
    return datetime.fromisoformat(stored.event["time"]).timestamp()

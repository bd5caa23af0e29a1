"""Waking: work that waits while nobody has asked for it is announced, so that whoever could do it asks again.

An idle worker's pull stays open for minutes. A pull can be lost without a word, with the leader of its consumer in a
cluster; and while a breaker is open nobody pulls at all until somebody looks. Then messages wait and no pull does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog

from contracts import subjects
from mesh.background import repeatedly
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.requests import Requests
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.waking")

QUEUES = ("TASKS", "TURNS", "TOOLS", "CONTROL")
LOOK_SECONDS = 5.0
LOOKS_MAX = 16
"""A lane whose workers are all busy, or away, is announced less often each time: at most after so many looks."""


@dataclass(slots=True)
class _Unasked:
    """A consumer whose messages nobody has asked for, since `looks` looks."""

    delivered: int
    looks: int = 0
    announce_at: int = 1


class Unasked:
    """Finds the consumers where messages wait, no pull does, and nothing was delivered since the last look. Pure."""

    def __init__(self) -> None:
        self._seen: dict[str, _Unasked] = {}

    def look(self, consumers: list[dict[str, Any]]) -> list[str]:
        """The names of those to announce now; each is as `CONSUMER.INFO` describes it."""
        before, self._seen = self._seen, {}
        due: list[str] = []
        for consumer in consumers:
            if not int(consumer["num_pending"]) or int(consumer["num_waiting"]):
                continue
            name, delivered = consumer["name"], int(consumer["delivered"]["consumer_seq"])
            seen = before.get(name)
            if seen is None or seen.delivered != delivered:
                self._seen[name] = _Unasked(delivered)
                continue
            self._seen[name] = seen
            seen.looks += 1
            if seen.looks >= seen.announce_at:
                seen.announce_at = seen.looks + min(seen.looks * 2, LOOKS_MAX)
                due.append(name)
        return due


class Waking:
    """Announces what waits at the work queues and is not asked for."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._unasked = {stream: Unasked() for stream in QUEUES}

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await repeatedly(self.look, LOOK_SECONDS, LoopHealth(log, "waking.unavailable"))

    async def look(self) -> None:
        """Look at each queue once. Raises `TaskmeshError`."""
        for stream, unasked in self._unasked.items():
            waits = (await self._requests.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
            for consumer in unasked.look(await all_consumers(self._requests, stream) if waits else []):
                await self._requests.announce(subjects.lane_waiting(stream, consumer))

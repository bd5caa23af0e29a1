"""Keeping the mesh's clock: the broker is asked for its time at the start, after each reconnect, and now and then.

The answer with a stream's state carries the server's time. It is that of the leader of EVENTS, which stamps the events.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime
from typing import NamedTuple

import structlog

from contracts.errors import TaskmeshError
from contracts.streams import EVENTS
from mesh.background import first_of
from mesh.broker.requests import Requests
from mesh.clock import MESH_CLOCK, lease_clock

log = structlog.get_logger("mesh.broker.clock_keeper")

TRIES_MAX = 3
"""Of these the one with the shortest round trip counts."""
NARROW_SECONDS = 0.02
"""A round trip that needs no second try."""
ANSWER_SECONDS_MAX = 2.0
"""How long a process that starts waits for an answer: where none comes its own clock stands in."""
AGAIN_SECONDS = 120.0
"""Machines' clocks drift by 12 ms in that time; and a thousand idle processes ask eight times a second."""
AGAIN_SPREAD = 0.25
SOON_SECONDS = 1.0
"""How long its own clock stands in before the broker is asked again."""
OFF_SECONDS = 1.0
"""A clock that is further off than that, or has changed by more, is said in the log."""


class _Answer(NamedTuple):
    """The broker's time, and when it was asked for and came, by the lease clock."""

    told: datetime
    asked_at: float
    answered_at: float

    @property
    def round_trip_seconds(self) -> float:
        return self.answered_at - self.asked_at


class ClockKeeper:
    """Asks the broker for its time, for this process."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._asked_for = asyncio.Event()
        self._said_seconds = 0.0
        """How far off this machine's clock was when that was last said."""

    def ask_again(self) -> None:
        """Ask as soon as may be: the broker may be another one."""
        self._asked_for.set()

    async def learn(self) -> bool:
        """Learn the broker's time; False if it does not tell it, since it or the stream is not there."""
        answers: list[_Answer] = []
        try:
            while len(answers) < TRIES_MAX and not (answers and answers[-1].round_trip_seconds <= NARROW_SECONDS):
                answers.append(await self._ask())
        except (TaskmeshError, KeyError, TypeError, ValueError):
            pass  # Whatever answers there, it tells no time.
        if not answers:
            return False
        best = min(answers, key=lambda answer: answer.round_trip_seconds)
        MESH_CLOCK.learn(best.told, best.asked_at, best.answered_at)
        self._say()
        return True

    async def keep(self) -> None:
        """Keep asking until cancelled."""
        learnt = MESH_CLOCK.is_learnt
        while True:
            seconds = AGAIN_SECONDS if learnt else SOON_SECONDS
            await first_of(self._asked_for, seconds=seconds * random.uniform(1 - AGAIN_SPREAD, 1 + AGAIN_SPREAD))
            self._asked_for.clear()
            learnt = await self.learn()

    async def _ask(self) -> _Answer:
        asked_at = lease_clock()
        info = await self._requests.api(f"STREAM.INFO.{EVENTS.name}", timeout_seconds=ANSWER_SECONDS_MAX)
        return _Answer(datetime.fromisoformat(info["ts"]), asked_at, lease_clock())

    def _say(self) -> None:
        ahead_seconds = MESH_CLOCK.own_clock_ahead_seconds()
        if abs(ahead_seconds - self._said_seconds) > OFF_SECONDS:
            # Nothing hangs on it, but for what people and other programs of this machine do.
            log.warning("clock.off", ahead_seconds=round(ahead_seconds, 3))
            self._said_seconds = ahead_seconds

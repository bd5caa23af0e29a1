"""What a process has in hand: the deliveries that it was given, which of them were begun, and how it lets go of them.

A drain lets what was begun end, for as long as such things take; hands over what does not; and gives back at once what
was not begun.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from mesh.background import first_of
from mesh.broker.deliveries import Delivery
from mesh.broker.places import Places
from mesh.broker.step_times import StepTimes

log = structlog.get_logger("mesh.broker.in_hand")

PATIENCE_LOOK_SECONDS = 0.5
"""How often a wait without a bound looks whether it still has none."""
RECALL_SECONDS_MAX = 1.5
"""How long a handler may take to let go of a delivery that is recalled: an append, a publish and an ack."""


@dataclass(eq=False, slots=True)
class _Held:
    delivery: Delivery
    begun_at: float | None = None


class InHand:
    """The deliveries in this process's hands, each with the task that handles it."""

    def __init__(self, at_once_max: int, drain_seconds: float, places: Places | None = None) -> None:
        self.is_closed = False
        """Whether the process stops: what comes now, or was not begun, goes back."""
        self._at_once_max = at_once_max
        self._drain_seconds = drain_seconds
        self._places = places
        self._running = 0
        self._running_of: Counter[str] = Counter()
        """By pool."""
        self._changed = asyncio.Event()
        self._held: dict[asyncio.Task[None], _Held] = {}
        self._times = StepTimes()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """The task has this delivery, until `remove`."""
        self._held[task] = _Held(delivery)

    def remove(self, task: asyncio.Task[None]) -> None:
        """It is out of hand."""
        self._held.pop(task, None)

    async def place(self, pool: str = "") -> bool:
        """Wait until one more may be begun, of that pool; False if none may be any more, since the process stops."""
        while not self._has_room(pool) and not self.is_closed:
            self._changed.clear()
            await self._changed.wait()
        return not self.is_closed

    def look_again(self) -> None:
        """There may be more room than before."""
        self._changed.set()

    def _has_room(self, pool: str) -> bool:
        if self._running >= self._at_once_max:
            return False
        return self._places is None or self._places.has_room(pool, self._running_of)

    @contextmanager
    def begun(self, delivery: Delivery, pool: str = "") -> Iterator[None]:
        """A delivery is handled in the body, and a drain waits for it. How long it takes is noted if it has an end."""
        loop, held = asyncio.get_running_loop(), self._held_by_this_task(delivery)
        begun_at = held.begun_at = loop.time()
        self._running += 1
        self._running_of[pool] += 1
        try:
            yield
            self._times.add(delivery.consumer, loop.time() - begun_at)
        finally:
            self._running -= 1
            self._running_of[pool] -= 1
            held.begun_at = None
            self._changed.set()

    def close(self) -> None:
        """Begin nothing any more."""
        self.is_closed = True
        self._changed.set()

    async def let_end(self, hurrying: asyncio.Event, patient: asyncio.Event | None = None) -> None:
        """Wait for what was begun, for as long as it may take, or until somebody hurries.

        While `patient` is set the wait has no bound; from its end on it is as long as it would have been at first.
        """
        await self._let_end_patiently(hurrying, patient or asyncio.Event())
        loop = asyncio.get_running_loop()
        running = [
            (held.delivery.consumer, loop.time() - held.begun_at)
            for held in self._held.values()
            if held.begun_at is not None
        ]
        patience_seconds = self._times.patience_seconds(running, self._drain_seconds)
        if running:
            log.info("drain.waiting", steps=len(running), seconds_max=round(patience_seconds, 3))
        ended = asyncio.Event()
        waiting = asyncio.create_task(self._wait(ended, patience_seconds))
        try:
            await first_of(ended, hurrying, seconds=None)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _let_end_patiently(self, hurrying: asyncio.Event, patient: asyncio.Event) -> None:
        if patient.is_set() and self._held:
            log.info("drain.waiting", steps=len(self._held))
        while patient.is_set() and self._held and not hurrying.is_set():
            ended = asyncio.create_task(self._until_ended(PATIENCE_LOOK_SECONDS))
            hurried = asyncio.create_task(hurrying.wait())
            try:
                await asyncio.wait({ended, hurried}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                hurried.cancel()
                await asyncio.gather(ended, hurried, return_exceptions=True)

    async def _until_ended(self, seconds: float) -> None:
        if self._held:
            await asyncio.wait(self._held, timeout=seconds)

    async def recall(self) -> None:
        """Have the handlers let go of what is left, in a moment."""
        for held in self._held.values():
            held.delivery.recalled.set()
        if self._held:
            await asyncio.wait(self._held, timeout=RECALL_SECONDS_MAX)

    async def cancel(self) -> None:
        """Cancel what is still there, and wait for its end."""
        for task in self._held:
            task.cancel()
        if self._held:
            await asyncio.wait(self._held)

    def _held_by_this_task(self, delivery: Delivery) -> _Held:
        task = asyncio.current_task()
        return (self._held.get(task) if task is not None else None) or _Held(delivery)

    async def _wait(self, ended: asyncio.Event, seconds: float) -> None:
        if self._held:
            await asyncio.wait(self._held, timeout=seconds)
        ended.set()

"""The moves of one lane: from BACKLOG into TASKS or TURNS, in fair order, as long as little lies ready there.

A move is: read, publish under the message's own id, delete. Whoever dies in between leaves a message that is moved
again: within the duplicate window TASKS says that it knows it, and later the journal makes one of two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from contracts import headers, subjects
from contracts.errors import TaskmeshError
from contracts.messages.work import TurnWork, decode_work
from contracts.streams import BACKLOG, TASKS, TURNS, lane_consumer
from mesh import faults
from mesh.admission.backlog import destination
from mesh.admission.estimate import OUTPUT_TOKENS
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests
from mesh.errors import BrokerError, NoRoom
from steward.admission.fair_order import Ahead, FairOrder, Turns

log = structlog.get_logger("steward.admission")

HEADS_MIN: Final = 4
HEADS_MAX: Final = 64
"""Messages of a tenant that are read ahead: the more, the fewer tenants share what there is room for."""
HEADS_BYTES_MAX: Final = 256 * 1024
READ_AHEAD_BYTES_MAX: Final = 16 * 1024 * 1024
"""What a lane keeps of messages that were read and have not gone. Of more all is read again."""
MOVES_AT_ONCE_MAX: Final = 64
READS_AT_ONCE_MAX: Final = 16
UNKNOWN_TOKENS: Final = 2 * OUTPUT_TOKENS
"""What a task counts for that brings no estimate: an older ingress has accepted it, or it is a sub-task."""
_CONSUMER_NOT_FOUND: Final = 10014

Keeps = Callable[[], Awaitable[bool]]
"""Keeps the right to move; false once another has it."""


@dataclass(slots=True)
class _Head:
    """A message that may go next. `tokens`: what it counts for; None of a later turn, which is counted when it ends."""

    message: Stored
    subject: str
    tokens: int | None


@dataclass(slots=True)
class _Queue:
    """A tenant's messages: those read ahead, and the sequence of the last one read."""

    heads: deque[_Head] = field(default_factory=deque)
    after: int = 0

    @property
    def size_bytes(self) -> int:
        """What those read ahead take."""
        return sum(len(head.message.payload) for head in self.heads)


class LaneMoves:
    """One lane of one pool."""

    def __init__(self, requests: Requests, pool: str, priority: str) -> None:
        self._requests = requests
        self.pool, self.priority = pool, priority
        self.order = FairOrder()
        self._ahead = Ahead()
        self._queues: dict[str, _Queue] = {}
        self._heads_max = HEADS_MIN

    def forget(self) -> None:
        """Somebody else has moved messages meanwhile: what was read ahead may be gone."""
        self._queues.clear()

    async def room(self) -> int:
        """How many messages may go on at this look. Raises `BrokerUnavailable`, `BrokerError`."""
        ready = await self._ready()
        return 0 if ready is None else self._ahead.look(ready)

    async def move(self, room: int, weights: Mapping[str, float], left: dict[str, int], keeps: Keeps) -> int:
        """Move so many messages of these tenants; returns how many went.

        `left`: how many more turns of a tenant may be worked on, of those that have a bound: lanes share it, and what
        goes is taken from it. Raises `BrokerUnavailable`, `BrokerError`.
        """
        for gone in self._queues.keys() - weights.keys():
            del self._queues[gone]
        may_go = [name for name in weights if left.get(name, 1) > 0]
        if not may_go:
            return 0
        self.order.wait(may_go)
        self._heads_max = min(HEADS_MAX, max(HEADS_MIN, -(-2 * room // len(may_go))))
        turns = self.order.turns(may_go)
        moved = 0
        while moved < room and await keeps():
            picked = await self._pick(turns, min(MOVES_AT_ONCE_MAX, room - moved), weights, left)
            went = await self._move_all(picked, left)
            moved += went
            if not picked or went < len(picked):
                break
        if sum(queue.size_bytes for queue in self._queues.values()) > READ_AHEAD_BYTES_MAX:
            self._queues.clear()
        return moved

    async def _pick(
        self, turns: Turns, count: int, weights: Mapping[str, float], left: dict[str, int]
    ) -> list[tuple[str, _Head]]:
        """The messages that go next, in order: they count as gone from here on."""
        soon = [name for name in turns.soon(count) if not self._queue(name).heads]
        for begin in range(0, len(soon), READS_AT_ONCE_MAX):
            await asyncio.gather(*map(self._read, soon[begin : begin + READS_AT_ONCE_MAX]))
        picked: list[tuple[str, _Head]] = []
        try:
            while len(picked) < count and (name := turns.next()) is not None:
                queue = self._queue(name)
                if not queue.heads:
                    await self._read(name)
                if not queue.heads or left.get(name, 1) <= 0:
                    turns.leave()
                    continue
                head = queue.heads.popleft()
                picked.append((name, head))
                if head.tokens is None:
                    turns.passed(UNKNOWN_TOKENS, weights[name])
                else:
                    turns.went(head.tokens, weights[name])
                if name in left:
                    left[name] -= 1
        except TaskmeshError:
            self._take_back(picked, left)
            raise
        return picked

    def _take_back(self, picked: Iterable[tuple[str, _Head]], left: dict[str, int]) -> None:
        """These have not gone."""
        for name, head in picked:
            self._queues.pop(name, None)  # Read anew, from the beginning.
            if head.tokens is not None:
                self.order.took_back(name)
            if name in left:
                left[name] += 1

    async def _move_all(self, picked: list[tuple[str, _Head]], left: dict[str, int]) -> int:
        """How many of them went. Raises what kept all of them; what keeps one keeps no other tenant."""
        results = await asyncio.gather(*(self._move(head) for _, head in picked), return_exceptions=True)
        failed = [(each, error) for each, error in zip(picked, results, strict=True) if error is not None]
        self._take_back([each for each, _ in failed], left)
        for (name, _), error in failed:
            if isinstance(error, NoRoom):
                continue
            if len(failed) == len(picked) or not isinstance(error, BrokerError):
                raise error
            log.warning("backlog.not_moved", pool=self.pool, priority=self.priority, tenant=name, error=str(error))
        return len(picked) - len(failed)

    async def _ready(self) -> int | None:
        """How many messages of the lane lie there for whoever comes first; None where nobody could take them.

        Later turns are among them: they are taken before any in TASKS. The lane of a pool that was taken away has no
        consumer. What waits for it stays in BACKLOG: TASKS is for those who are served.
        """
        try:
            infos = await asyncio.gather(
                *(
                    self._requests.api(
                        f"CONSUMER.INFO.{each.name}.{lane_consumer(each.name, self.pool, self.priority)}"
                    )
                    for each in (TASKS, TURNS)
                )
            )
        except BrokerError as error:
            if error.number != _CONSUMER_NOT_FOUND:
                raise
            return None
        ready = sum(int(info["num_pending"]) for info in infos)
        self.order.under_way(ready + sum(int(info["num_ack_pending"]) for info in infos))
        return ready

    def _queue(self, tenant: str) -> _Queue:
        return self._queues.setdefault(tenant, _Queue())

    async def _read(self, tenant: str) -> None:
        """Read ahead of a tenant that has nothing in hand."""
        queue = self._queue(tenant)
        subject = subjects.backlog(self.pool, self.priority, tenant)
        page = await read_page(
            self._requests,
            BACKLOG.name,
            subject,
            queue.after,
            self._heads_max,
            self._requests.fitting(HEADS_BYTES_MAX),
        )
        # If there is none its messages were read, and are still being deleted; or the stream was made anew.
        queue.after = page.messages[-1].sequence if page.messages else 0
        queue.heads.extend(map(_head_of, page.messages))

    async def _move(self, head: _Head) -> None:
        """Have the message go on. Raises `NoRoom`, `BrokerUnavailable`, `BrokerError`."""
        message = head.message
        message_headers = {
            name: message.headers[name]
            for name in (headers.MESSAGE_ID, headers.TRACEPARENT)
            if name in message.headers and (name != headers.MESSAGE_ID or faults.MESSAGE_ID_ON)
        }
        faults.reach("before-move", head.subject)
        await self._requests.publish(head.subject, message.payload, message_headers or None)
        faults.reach("after-move", head.subject)
        await self._requests.delete_message(BACKLOG.name, message.sequence)


def _head_of(message: Stored) -> _Head:
    tokens: int | None = UNKNOWN_TOKENS
    try:
        work = decode_work(message.payload, message.subject)
        if isinstance(work, TurnWork) and work.request is None:
            tokens = None
        elif isinstance(work, TurnWork) and work.estimate is not None:
            tokens = work.estimate.tokens
    except TaskmeshError as error:
        log.warning("backlog.unreadable", subject=message.subject, sequence=message.sequence, error=str(error))
    return _Head(message, destination(message), tokens)

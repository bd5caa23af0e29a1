"""The moves of one lane: from BACKLOG into TASKS, in fair order, as long as little lies ready there.

A move is: read, publish under the message's own id, delete. Whoever dies in between leaves a message that is moved
again: within the duplicate window TASKS says that it knows it, and later the journal makes one of two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import structlog

from contracts import headers, subjects
from contracts.errors import TaskmeshError
from contracts.messages.work import TurnWork, decode_work
from contracts.streams import BACKLOG, TASKS, lane_consumer
from mesh import faults
from mesh.admission.backlog import destination
from mesh.admission.estimate import OUTPUT_TOKENS
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests
from mesh.errors import BrokerError, NoRoom
from steward.admission.fair_order import Ahead, FairOrder

log = structlog.get_logger("steward.admission")

HEADS_MAX: Final = 16
"""Messages of a tenant that are read ahead."""
HEADS_BYTES_MAX: Final = 256 * 1024
MOVES_AT_ONCE_MAX: Final = 64
UNKNOWN_TOKENS: Final = 2 * OUTPUT_TOKENS
"""What a task counts for that brings no estimate: an older ingress has accepted it, or it is a sub-task."""
_CONSUMER_NOT_FOUND: Final = 10014


class Allowance(NamedTuple):
    """What a tenant's settings come to at a look. `tasks`: how many more may go on; None is any number."""

    weight: float
    tasks: int | None = None


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


class LaneMoves:
    """One lane of one pool."""

    def __init__(self, requests: Requests, pool: str, priority: str) -> None:
        self._requests = requests
        self.pool, self.priority = pool, priority
        self.order = FairOrder()
        self._ahead = Ahead()
        self._queues: dict[str, _Queue] = {}

    async def move(self, waiting: Mapping[str, int], allowance_of: Callable[[str], Allowance | None]) -> int:
        """Move what there is room for; returns how many messages went.

        `waiting`: how many messages each tenant has. `allowance_of`: None for a tenant that must not go on now. Raises
        `BrokerUnavailable`, `BrokerError`.
        """
        for done in self._queues.keys() - waiting.keys():
            del self._queues[done]
        room = self._ahead.look(await self._ready())
        allowances = {name: allowed for name in waiting if (allowed := allowance_of(name)) is not None}
        may_go = [name for name, allowed in allowances.items() if allowed.tasks != 0]
        self.order.wait(may_go)
        turns = self.order.turns(may_go)
        gone: dict[str, int] = {}
        picked: list[tuple[str, _Head]] = []
        while len(picked) < room and (name := turns.next()) is not None:
            weight, tasks = allowances[name]
            head = None if tasks is not None and gone.get(name, 0) >= tasks else await self._head(name)
            if head is None:
                turns.leave()
                continue
            gone[name] = gone.get(name, 0) + 1
            self._queues[name].heads.popleft()
            picked.append((name, head))
            turns.went(head.tokens or 0, weight)
        moved = 0
        while picked:
            some, picked = picked[:MOVES_AT_ONCE_MAX], picked[MOVES_AT_ONCE_MAX:]
            results = await asyncio.gather(*(self._move(head) for _, head in some), return_exceptions=True)
            moved += sum(result is True for result in results)
            failed = [(name, error) for (name, _), error in zip(some, results, strict=True) if error is not True]
            if failed:
                for name in [name for name, _ in (*failed, *picked)]:
                    self._queues.pop(name, None)  # Read anew, from the beginning.
                    self.order.took_back(name)
                for _, error in failed:
                    if isinstance(error, BaseException) and not isinstance(error, NoRoom):
                        raise error
                break
        return moved

    async def _ready(self) -> int:
        """How many messages of the lane lie in TASKS for whoever comes first."""
        try:
            info = await self._requests.api(
                f"CONSUMER.INFO.{TASKS.name}.{lane_consumer(TASKS.name, self.pool, self.priority)}"
            )
        except BrokerError as error:
            if error.number != _CONSUMER_NOT_FOUND:
                raise
            return 0  # A pool that was taken away. What comes back waits there.
        return int(info["num_pending"])

    async def _head(self, tenant: str) -> _Head | None:
        queue = self._queues.setdefault(tenant, _Queue())
        if not queue.heads:
            subject = subjects.backlog(self.pool, self.priority, tenant)
            page = await read_page(
                self._requests, BACKLOG.name, subject, queue.after, HEADS_MAX, self._requests.fitting(HEADS_BYTES_MAX)
            )
            if not page.messages:
                # Its messages were read, and are still being deleted; or the stream was made anew.
                queue.after = 0
                return None
            queue.after = page.messages[-1].sequence
            queue.heads.extend(map(_head_of, page.messages))
        return queue.heads[0]

    async def _move(self, head: _Head) -> bool:
        """Whether the message went on. Raises `NoRoom`, `BrokerUnavailable`, `BrokerError`."""
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
        return True


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

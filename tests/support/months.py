"""Months of tasks: many ended ones, written as fast as one connection goes, each as the mesh would have left it.

Nobody else may write into EVENTS meanwhile: a record says at which sequence its journal ends, and that is known before
the broker has answered. Each answer is counted, and held against it.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.records.status import Status
from mesh.broker.connection import Connection
from tests.support.ended_tasks import EVENTS_OF_TASK, STATUSES, EndedTasks, journal_subjects
from tests.support.patience import within

WINDOW = 1_000
"""Messages on their way at once: as many as keep the broker busy, each of which is answered."""
TASKS_AT_ONCE = 32
"""Written together."""
ANSWER_SECONDS_MAX = 60.0
"""For all that are on their way."""
LOOK_EVERY = 1_024
"""Tasks between two looks at how many there are: stewards pack no more in the time in which they are written."""
LOOK_SECONDS = 0.05
BIG_TENANT = "acme"
SMALL_TENANTS = tuple(f"small-{number:02}" for number in range(1, 20))
TENANTS = (BIG_TENANT, *SMALL_TENANTS)
TENANT_WEIGHTS = (len(SMALL_TENANTS), *[1] * len(SMALL_TENANTS))
"""Half of all is the big one's."""
STATUS_WEIGHTS = (90, 4, 4, 2)
READ_BYTES = 256 * 1024
_ID_CHARACTERS = 26
_INBOX = "_INBOX.months"
_ANSWER = re.compile(rb"MSG _INBOX\.months\.(\d+) 1 \d+\r\n([^\r\n]*)\r\n|PING\r\n|(-ERR [^\r\n]*)\r\n")
_STORED = re.compile(rb'^\{"stream":"[A-Za-z_]+",\s*"seq":(\d+)\}$')


class Task(NamedTuple):
    """One that was written."""

    tenant: str
    id: str
    status: Status
    order: int
    """Its `metadata.order`, which no other has."""


@dataclass
class Ledger:
    """All that were written, in their order, in 28 bytes each."""

    _ids: bytearray = field(default_factory=bytearray)
    _tenants: bytearray = field(default_factory=bytearray)
    _statuses: bytearray = field(default_factory=bytearray)

    def add(self, tenant: int, task: str, status: int) -> None:
        """Note one down; tenant and status by their places in `TENANTS` and `STATUSES`."""
        self._ids += task.encode()
        self._tenants.append(tenant)
        self._statuses.append(status)

    def __len__(self) -> int:
        return len(self._tenants)

    def __getitem__(self, number: int) -> Task:
        task = self._ids[number * _ID_CHARACTERS : (number + 1) * _ID_CHARACTERS].decode()
        return Task(TENANTS[self._tenants[number]], task, STATUSES[self._statuses[number]], number)


class Filler:
    """Writes tasks. `address`: of the broker; `seed`: of what varies, ids are new each time."""

    def __init__(self, connection: Connection, address: str, seed: int = 0) -> None:
        self.ledger = Ledger()
        self._connection = connection
        self._address = address
        self._random = random.Random(seed)
        self._tasks = EndedTasks(seed)
        self._next_sequence = 0

    async def fill(
        self,
        count: int,
        *,
        hot_tasks_max: int | None = None,
        tasks_per_second: float | None = None,
        at_looks: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Write so many. Raises `RuntimeError` if not exactly these were stored.

        `hot_tasks_max`: wait while there are more that nobody has packed. `at_looks` is told now and then how many
        these are.
        """
        first = self._next_sequence = await self._last_sequence() + 1
        began_at = time.monotonic()
        written = looked_at = 0
        async with _pipe(self._address) as pipe:
            while written < count:
                if written >= looked_at:
                    looked_at += LOOK_EVERY
                    await self._look(hot_tasks_max, at_looks)
                several = min(TASKS_AT_ONCE, count - written)
                if tasks_per_second is not None:
                    allowed = int((time.monotonic() - began_at) * tasks_per_second) - written
                    if (several := min(several, allowed)) <= 0:
                        await asyncio.sleep(1 / tasks_per_second)
                        continue
                await pipe.send([message for _ in range(several) for message in self._messages()])
                written += several
            await pipe.until_answered()
        stored = await self._last_sequence() + 1 - first
        if stored != count * EVENTS_OF_TASK:
            raise RuntimeError(f"{stored} events were stored, and {count * EVENTS_OF_TASK} should be")

    async def hot_tasks(self) -> int:
        """How many there are that nobody has packed."""
        return int((await self._connection.requests.api("STREAM.INFO.KV_tasks"))["state"]["messages"])

    async def _look(self, hot_tasks_max: int | None, told: Callable[[int], Awaitable[None]] | None) -> None:
        if hot_tasks_max is None and told is None:
            return
        while True:
            hot = await self.hot_tasks()
            if told is not None:
                await told(hot)
            if hot_tasks_max is None or hot <= hot_tasks_max:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _last_sequence(self) -> int:
        return int((await self._connection.requests.api("STREAM.INFO.EVENTS"))["state"]["last_seq"])

    def _messages(self) -> list[tuple[int, bytes]]:
        """What is sent for one task: each with the sequence that it has to get, or 0 where that does not matter."""
        (tenant,) = self._random.choices(range(len(TENANTS)), TENANT_WEIGHTS)
        (status,) = self._random.choices(range(len(STATUSES)), STATUS_WEIGHTS)
        end = self._next_sequence + EVENTS_OF_TASK - 1
        made = self._tasks.make(TENANTS[tenant], STATUSES[status], len(self.ledger), end)
        self.ledger.add(tenant, made.task, status)
        trace = os.urandom(16 + 8 * EVENTS_OF_TASK).hex()
        log, delta = journal_subjects(made)
        messages: list[tuple[int, bytes]] = []
        for number, (is_delta, payload) in enumerate(made.events):
            sequence = self._next_sequence + number
            if is_delta:
                messages.append((sequence, _plain(delta, sequence, payload)))
            else:
                span = trace[32 + 16 * number : 48 + 16 * number]
                messages.append((sequence, _traced(log, sequence, payload, f"00-{trace[:32]}-{span}-01")))
        self._next_sequence = end + 1
        messages.append((0, _plain(f"$KV.tasks.{made.tenant}.{made.task}", 0, made.record)))
        return messages


class _Pipe:
    """A connection on which answers are counted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._in_flight = 0
        self._room = asyncio.Event()
        self._failure = ""

    async def send(self, messages: list[tuple[int, bytes]]) -> None:
        """Send messages, once few enough are on their way."""
        await self._until_in_flight(WINDOW - len(messages))
        self._in_flight += len(messages)
        self._writer.write(b"".join([message for _, message in messages]))
        await self._writer.drain()

    async def until_answered(self) -> None:
        """Wait for the last answer."""
        await self._until_in_flight(0)

    async def read(self) -> None:
        """Count answers for as long as there is a connection."""
        rest = b""
        while data := await self._reader.read(READ_BYTES):
            data = rest + data
            end = 0
            for found in _ANSWER.finditer(data):
                end = found.end()
                self._answered(found)
            rest = data[end:]
            self._room.set()
        self._failure = self._failure or "the broker is gone"
        self._room.set()

    def _answered(self, found: re.Match[bytes]) -> None:
        expected, answer, error = found.groups()
        if error is not None:
            self._failure = error.decode()
        elif expected is None:
            self._writer.write(b"PONG\r\n")
        else:
            self._in_flight -= 1
            stored = _STORED.match(answer)
            if stored is None or expected not in (b"0", stored[1]):
                self._failure = f"{answer.decode()}, and sequence {expected.decode()} was to be stored"

    async def _until_in_flight(self, most: int) -> None:
        if self._in_flight > most:
            async with within(ANSWER_SECONDS_MAX):
                while self._in_flight > most and not self._failure:
                    self._room.clear()
                    await self._room.wait()
        if self._failure:
            raise RuntimeError(self._failure)


@asynccontextmanager
async def _pipe(address: str) -> AsyncIterator[_Pipe]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=READ_BYTES)
    await reader.readline()  # INFO
    writer.write(b'CONNECT {"verbose":false,"headers":true,"name":"months"}\r\n')
    writer.write(f"SUB {_INBOX}.* 1\r\n".encode())
    pipe = _Pipe(reader, writer)
    reading = asyncio.create_task(pipe.read())
    try:
        yield pipe
    finally:
        reading.cancel()
        writer.close()
        await asyncio.gather(reading, return_exceptions=True)


def _plain(subject: str, expected: int, payload: bytes) -> bytes:
    return b"PUB %b %b.%d %d\r\n%b\r\n" % (subject.encode(), _INBOX.encode(), expected, len(payload), payload)


def _traced(subject: str, expected: int, payload: bytes, traceparent: str) -> bytes:
    block = f"NATS/1.0\r\ntraceparent: {traceparent}\r\n\r\n".encode()
    sizes = b"%d %d" % (len(block), len(block) + len(payload))
    return b"HPUB %b %b.%d %b\r\n%b%b\r\n" % (subject.encode(), _INBOX.encode(), expected, sizes, block, payload)

"""What clients of a mesh with much stored wait for: a task, a page of a list, their POST, the first token, a resume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from contracts.records.status import STATUSES
from tests.benchmarks.bench import Run, Stage, run_load
from tests.benchmarks.figures import Figure, beside, interleaved, percentile
from tests.benchmarks.load import FIRST_TOKEN, connect
from tests.benchmarks.resume import Tail
from tests.support.clients import PostingConnection, open_stream
from tests.support.months import BIG_TENANT, SMALL_TENANTS, Task
from tests.support.patience import within

HOT_MILLISECONDS_MAX = 3.0
PACKED_MILLISECONDS_MAX = 10.0
PAGE_MILLISECONDS_MAX = 20.0
RATIO_MAX = 1.2
LIST_PAGES = 20
"""Pages of one list, each from its cursor on, or of another task where there is no other."""
POSTS_PER_SECOND = 50.0
LOOK_SECONDS = 0.1
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Of ids."""
BODY = msgspec.json.encode({"input": "!say 3"})


class Answer(NamedTuple):
    """One answer over HTTP."""

    status: int
    body: bytes
    milliseconds: float


class Reader:
    """A kept-alive connection that asks one thing after the other."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str, tenant: str) -> Answer:
        """One GET, from its request to the last byte of its answer."""
        if self._connection is None:
            self._connection = await connect(self._address)
        reader, writer = self._connection
        began_at = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._address}\r\nMesh-Tenant: {tenant}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        start = head.lower().index(b"content-length:") + 15
        body = await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        return Answer(int(head[9:12]), body, (time.perf_counter() - began_at) * 1000)

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection[1].close()


async def get_tasks(on: Stage, name: str, tasks: Iterable[Task], limit: float, note: str = "") -> list[Figure]:
    """`GET /v1/tasks/{id}` of each, one after the other."""
    reader = Reader(on.process("ingress").address)
    took: list[float] = []
    for task in tasks:
        answer = await reader.get(f"/v1/tasks/{task.id}", task.tenant)
        if answer.status != 200 or task.status.encode() not in answer.body:
            raise RuntimeError(f"{task}: {answer}")
        took.append(answer.milliseconds)
    reader.close()
    return within_limit(f"GET of a task, {name}", took, limit, f"{len(took)} at random{note}")


def within_limit(name: str, took: list[float], limit: float, note: str = "") -> list[Figure]:
    """Median and p95 of milliseconds, beside what they may be at most."""
    return [
        Figure(
            name, "ms", percentile(took, 50), target=f"≤ {limit:g} ms", met=percentile(took, 50) <= limit, note=note
        ),
        Figure(
            f"  {name}, p95", "ms", percentile(took, 95), target=f"≤ {limit:g} ms", met=percentile(took, 95) <= limit
        ),
    ]


@dataclass(frozen=True)
class List:
    """A list that people ask for. `query`: what follows `/v1/tasks?`, given a task of the tenant."""

    name: str
    tenant: str
    query: Callable[[Task], str]


def lists() -> list[List]:
    """Each filter that there is. Filters that come later are added here."""
    return [
        List("of a big tenant", BIG_TENANT, lambda _: "limit=100"),
        List("of a small tenant", SMALL_TENANTS[0], lambda _: "limit=100"),
        *(List(f"by status {status}", BIG_TENANT, _by_status(status)) for status in STATUSES),
        List("by metadata", BIG_TENANT, lambda task: f"limit=100&metadata.order={task.order}"),
        List("by metadata that none has", BIG_TENANT, lambda task: f"limit=100&metadata.order=x-{task.order}"),
        List("since a time", BIG_TENANT, lambda task: f"limit=100&since={_time_of(task)}"),
        List("until a time", BIG_TENANT, lambda task: f"limit=100&until={_time_of(task)}"),
        List("failed until a time", BIG_TENANT, lambda task: f"limit=100&status=failed&until={_time_of(task)}"),
    ]


def _by_status(status: str) -> Callable[[Task], str]:
    return lambda _: f"limit=100&status={status}"


def _time_of(task: Task) -> str:
    """When it was submitted, by its id."""
    milliseconds = 0
    for character in task.id[:10]:
        milliseconds = milliseconds << 5 | ALPHABET.index(character)
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def until_listed(on: Stage, seconds_max: float) -> float:
    """Seconds until lists are answered: an ingress that begins has to build its index."""
    reader, began_at = Reader(on.process("ingress").address), time.perf_counter()
    async with within(seconds_max):
        while (await reader.get("/v1/tasks?limit=1", BIG_TENANT)).status != 200:  # noqa: ASYNC110 - it is over there
            await asyncio.sleep(LOOK_SECONDS)
    reader.close()
    return time.perf_counter() - began_at


async def list_tasks(on: Stage, sample: Callable[[str], Task]) -> list[Figure]:
    """Pages of each list, and the counts. `sample` gives a task of a tenant, which a filter may look for."""
    reader = Reader(on.process("ingress").address)
    figures: list[Figure] = []
    for each in lists():
        took: list[float] = []
        tasks, cursor, task = 0, None, sample(each.tenant)
        for _ in range(LIST_PAGES):
            query = each.query(task) + (f"&cursor={quote(cursor)}" if cursor is not None else "")
            answer = await reader.get(f"/v1/tasks?{query}", each.tenant)
            if answer.status != 200:
                raise RuntimeError(f"the list {each.name} is answered by {answer}")
            took.append(answer.milliseconds)
            page = msgspec.json.decode(answer.body)
            tasks, cursor = tasks + len(page["tasks"]), page["cursor"]
            if cursor is None:
                task = sample(each.tenant)
        note = f"{tasks:,} tasks on {LIST_PAGES} pages of up to 100; the slowest {max(took):.1f} ms"
        figures += within_limit(f"list {each.name}, a page", took, PAGE_MILLISECONDS_MAX, note)
    counts = [await reader.get("/v1/tasks/counts", BIG_TENANT) for _ in range(LIST_PAGES)]
    reader.close()
    took = [answer.milliseconds for answer in counts]
    return [*figures, *within_limit("counts by status", took, PAGE_MILLISECONDS_MAX, counts[-1].body.decode()[:200])]


async def posts_beside_lists(on: Stage, run: Run, sample: Callable[[str], Task]) -> Figure:
    """How long POSTs take while one client lists all the while, against when nobody does."""

    async def posts() -> list[float]:
        spec: dict[str, Any] = {"address": on.process("ingress").address, "path": "/v1/tasks", "headers": ""}
        spec |= {"body": BODY.decode(), "clients": 16, "rate": POSTS_PER_SECOND, "seconds": run.scale(5, 2)}
        return [seconds * 1000 for seconds in (await run_load("open_loop", **spec))["latencies"]]

    async def list_on() -> None:
        reader = Reader(on.process("ingress").address)
        try:
            while True:
                for each in lists():
                    await reader.get(f"/v1/tasks?{each.query(sample(each.tenant))}", each.tenant)
        finally:
            reader.close()

    alone, beside_lists = [], []
    for _ in range(run.scale(3, 1)):
        alone += await posts()
        listing = asyncio.create_task(list_on())
        beside_lists += await posts()
        listing.cancel()
        with suppress(asyncio.CancelledError):
            await listing
        await on.connection.requests.api("STREAM.PURGE.TASKS")
    medians = f"p50 {percentile(beside_lists, 50):.1f} and {percentile(alone, 50):.1f} ms"
    return Figure(
        "POST p99 while one client lists",
        "ms",
        percentile(beside_lists, 99),
        "ms, nobody lists",
        percentile(alone, 99),
        note=f"{POSTS_PER_SECOND:.0f} a second; {medians}",
        rounds={"subject": beside_lists, "limit": alone},
    )


async def against_empty(run: Run, full: Stage, empty: Stage) -> list[Figure]:
    """Accept, first token and resume with much stored and with nothing, in turns."""
    stages = (full, empty)
    rounds = run.scale(200, 40)
    accepts = await interleaved(rounds, *(_accepting(on) for on in stages))
    for on in stages:
        await on.connection.requests.api("STREAM.PURGE.TASKS")
        await on.start("inference_worker")
    tokens = await interleaved(rounds, *(_first_token(on) for on in stages))
    tails = [await Tail.write(on, 100) for on in stages]
    resumes = await interleaved(rounds, *(tail.resume for tail in tails))
    figures = []
    for name, (subject, limit) in (("accept", accepts), ("first token", tokens), ("resume of 100 events", resumes)):
        figure = beside(f"{name}, with much stored", "ms", subject, "ms, an empty store", limit, f"≤ {RATIO_MAX}")
        figure.met = figure.ratio is not None and figure.ratio <= RATIO_MAX
        figures.append(figure)
    return figures


def _accepting(on: Stage) -> Callable[[], Any]:
    connection = PostingConnection(on.process("ingress").address)

    async def accept() -> float:
        began_at = time.perf_counter()
        status, _, body = await connection.post(BODY)
        if status != 202:
            raise RuntimeError(f"POST was answered by {status}: {body!r}")
        return (time.perf_counter() - began_at) * 1000

    return accept


def _first_token(on: Stage) -> Callable[[], Any]:
    connection = PostingConnection(on.process("ingress").address)

    async def first_token() -> float:
        began_at = time.perf_counter()
        _, _, body = await connection.post(BODY)
        task = msgspec.json.decode(body)["id"]
        _, reader, writer = await open_stream(on.process("stream_edge").address, task, None)
        await reader.readuntil(FIRST_TOKEN)
        took = (time.perf_counter() - began_at) * 1000
        await reader.readuntil(b"event: task.completed")
        writer.close()
        return took

    return first_token


async def follow_packed(on: Stage, tasks: Sequence[Task]) -> list[Figure]:
    """The stream of a packed task, from its opening to its end."""
    took: list[float] = []
    for task in tasks:
        reader, writer = await connect(on.process("stream_edge").address)
        path = f"/v1/tasks/{task.id}/events"
        began_at = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nMesh-Tenant: {task.tenant}\r\n\r\n".encode())
        await reader.readuntil(f"event: task.{task.status}".encode())
        took.append((time.perf_counter() - began_at) * 1000)
        writer.close()
    return within_limit("SSE of a packed task, to its end", took, PACKED_MILLISECONDS_MAX, f"{len(took)} at random")

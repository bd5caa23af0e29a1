"""The run `ledger`: eight ingresses under load, somebody killed every second or so, and accounts that agree in the end.

There are four of them: what the model server has counted by itself, what journals say, what the counters of USAGE have,
and what records tell of their tasks. Calls fail, break off, are hedged, redirected, cancelled, handed over, and told
nothing of; tasks are packed meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec

from contracts.identifiers import new_id
from contracts.journal.events import TERMINAL_TYPES
from contracts.records.usage import Counter as UsageCounter
from contracts.records.usage import counter_of, is_month
from mesh import faults
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import subjects_of
from mesh.ledger import counters
from tests.chaos import ledger
from tests.chaos.accounts import SPAWN, AccountedModel, Books, compare
from tests.chaos.cluster import Load
from tests.chaos.points import Point, give_order, order_is_open, take_back
from tests.chaos.slot import start_again
from tests.support.broker import free_port
from tests.support.checker import read_stored
from tests.support.http_client import PatientClient
from tests.support.model_server import model_server
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until, until_no_work_is_left

INGRESSES = 8
OTHERS = ("inference_worker",) * 3 + ("steward",) * 2 + ("tool_runner",)
DRAINED = ("inference_worker", "tool_runner")
BROKER, STEWARD = "nats-server", "steward"
POINTS = "points"
"""The folder by which stewards are told where to die."""
COUNTED_AT = ("before-count:ledger", "after-count:ledger")
COUNTS_WITHIN_SECONDS = 10.0
THREADS = 32
KILL_SECONDS = 1.2
"""Between two deaths, on average."""
POSTED_TWICE, CANCELLED, REDIRECTED, SPAWNING, HEDGING = 0.1, 0.08, 0.08, 0.1, 0.15
"""Parts of the tasks."""
SAID_WITHIN_SECONDS = 2.0
POST_SECONDS_MAX = 90.0
END_SECONDS_MAX = 120.0
RETRY_SECONDS = 0.2
VARIABLES = {
    "MESH_ACK_WAIT_SECONDS": "2",
    "MESH_DRAIN_SECONDS": "0.5",
    "MESH_MAX_TRIES": "100",
    "MESH_MAX_DELIVER": "100",
    "MESH_PACK_AFTER_HOURS": f"{5 / 3_600:.8f}",
    "MESH_RECONCILE_AFTER_SECONDS": "5",
}
INPUT, CACHED, OUTPUT = 3, 1, 15
"""Prices, in millionths a token."""
FILE = f"""
[providers.local]
kind = "openai"
base_url = "{{url}}"
breaker = {{{{ enabled = false }}}}
prices = {{{{ "priced" = {{{{ input = {INPUT}, cached_input = {CACHED}, output = {OUTPUT} }}}} }}}}
[providers.other]
kind = "openai"
base_url = "{{url}}"
breaker = {{{{ enabled = false }}}}
[pools.default]
provider = "local"
model = "priced"
[pools.hedging]
provider = "local"
model = "priced"
fallbacks = [{{{{ provider = "other", model = "unpriced" }}}}]
on_slow = "hedge"
slow_seconds = 0.4
"""


Journals = dict[str, list[dict[str, Any]]]
LOAD, QUICK_LOAD = Load(8, 60), Load(5, 12)


@dataclass
class LedgerReport:
    """What came of it."""

    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    """What the model's calls came to."""
    books: Books = field(default_factory=Books)
    turns: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Its figures, for people."""
        books = self.books
        killed = ", ".join(f"{count} {name}" for name, count in sorted(self.killed.items()))
        ends = ", ".join(f"{count} {end.removeprefix('task.')}" for end, count in sorted(self.ended.items()))
        return [
            f"{self.accepted} tasks accepted by {INGRESSES} ingresses, and their sub-tasks: {ends}; killed: {killed}",
            f"the model: {', '.join(f'{count} {how}' for how, count in sorted(self.how.items()))}",
            f"{books.known_tokens:,} tokens of {books.known} calls are in the model's account, journals, counters and"
            f" records alike, of {self.turns} turns",
            f"{books.lost_tokens:,} tokens of {books.lost} calls only the model knows: their tasks say that there are"
            f" such calls; {books.phantoms} more that they say so of were never made",
        ]


async def run_ledger(folder: Path, load: Load, seed: int) -> LedgerReport:
    """Run it, and judge it."""
    report, model, chance = LedgerReport(), AccountedModel(seed), Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mesh.toml"
    began_at = time.monotonic()
    # Each process that starts holds a thread until it is ready, and none is while the broker waits for a thread.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    async with model_server(model.behave) as server:
        file.write_text(FILE.format(url=server.base_url))
        async with running_mesh(folder, **VARIABLES, MESH_CONFIG=str(file)) as mesh:
            addresses = [f"127.0.0.1:{free_port()}" for _ in range(INGRESSES)]
            (folder / POINTS).mkdir()
            points = {faults.POINTS_VARIABLE: str(folder / POINTS)}
            starting: list[Coroutine[Any, Any, Process]] = [
                mesh.start(each, **(points if each == "steward" else {})) for each in OTHERS
            ]
            starting += [mesh.start("ingress", MESH_INGRESS_ADDRESS=address) for address in addresses]
            await asyncio.gather(*starting)
            clients = _Clients(addresses, load, chance, report)
            async with _deaths(mesh, chance, report):
                await clients.run()
            async with connect(mesh.settings, "chaos") as connection:
                await _to_the_end(connection, report)
                journals = await _judge(connection, model, report)
                report.violations += [f"I1: task {task} is nowhere" for task in clients.tasks - journals.keys()]
                _keep(folder, model, journals)
            report.violations += [f"an unhandled exception in {log}" for log in mesh.tracebacks()]
    report.seconds = time.monotonic() - began_at
    return report


class _Clients:
    """Post at a rate, each task to an ingress of its own choice, and again elsewhere until it is taken."""

    def __init__(self, addresses: list[str], load: Load, chance: Random, report: LedgerReport) -> None:
        self.tasks: set[str] = set()
        self._addresses = addresses
        self._load = load
        self._chance = chance
        self._report = report
        self._client = PatientClient(trust_env=False)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        async with self._client, asyncio.TaskGroup() as group:
            for number in range(int(self._load.rate * self._load.seconds)):
                await asyncio.sleep(max(0.0, began_at + number / self._load.rate - loop.time()))
                group.create_task(self._one(number))
        self._report.accepted = len(self.tasks)

    async def _one(self, number: int) -> None:
        spawns = self._chance.random() < SPAWNING
        body: dict[str, Any] = {"input": f"task {number} {SPAWN if spawns else ''}"}
        body["pool"] = "hedging" if self._chance.random() < HEDGING else "default"
        if spawns:
            body["tools"] = ["spawn_task"]
        key = new_id()
        task = await self._post(body, key)
        if task is None:
            return
        self.tasks.add(task)
        if self._chance.random() < POSTED_TWICE:
            again = await self._post(body, key)
            if again not in (None, task):
                self._report.violations.append(f"task {task} was accepted once more, as {again}")
        await asyncio.sleep(self._chance.uniform(0, SAID_WITHIN_SECONDS))
        said = self._chance.random()
        if said < CANCELLED:
            await self._say(f"/v1/tasks/{task}/cancel", {})
        elif said < CANCELLED + REDIRECTED:
            said_so = {"kind": "message", "text": "something else", "mode": "redirect"}
            await self._say(f"/v1/tasks/{task}/inputs", said_so)

    async def _post(self, body: dict[str, Any], key: str) -> str | None:
        give_up_at = time.monotonic() + POST_SECONDS_MAX
        while time.monotonic() < give_up_at:
            answer = await self._ask("/v1/tasks", body, key)
            if answer is not None and answer.status_code == httpx.codes.ACCEPTED:
                return str(answer.json()["id"])
            await asyncio.sleep(RETRY_SECONDS)
        self._report.violations.append(f"a task was not taken in {POST_SECONDS_MAX:.0f} s")
        return None

    async def _say(self, path: str, body: dict[str, Any]) -> None:
        """What becomes of it is no matter: its task may be at its end."""
        await self._ask(path, body, new_id())

    async def _ask(self, path: str, body: dict[str, Any], key: str) -> httpx.Response | None:
        url = f"http://{self._chance.choice(self._addresses)}{path}"
        try:
            return await self._client.post(url, json=body, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            return None


@asynccontextmanager
async def _deaths(mesh: Mesh, chance: Random, report: LedgerReport) -> AsyncIterator[None]:
    """A block in which somebody dies now and then, and is started again. At its end all live."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_kill(mesh, chance, report, over))
        try:
            yield
        finally:
            over.set()


async def _kill(mesh: Mesh, chance: Random, report: LedgerReport, over: asyncio.Event) -> None:
    """Kill one after the other, of each kind as often, until it is over; who was killed is started beside that."""
    dead: dict[asyncio.Task[None], Sequence[Process | None]] = {}
    kinds = [BROKER, *dict.fromkeys(each.service for each in mesh.processes)]
    async with asyncio.TaskGroup() as group:
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.5, 1.5) * KILL_SECONDS):
                    await over.wait()
                    return
            kind = chance.choice(kinds)
            busy = [each for task, who in dead.items() if not task.done() for each in who]
            of_kind = [None] if kind == BROKER else [each for each in mesh.processes if each.service == kind]
            living = [each for each in of_kind if each not in busy]
            if kind == STEWARD and living == of_kind and chance.choice((False, True, True)):
                # Which of them counts nobody knows.
                what = chance.choice(COUNTED_AT)
                report.killed[f"{kind} {what}"] += 1
                dead[group.create_task(_kill_as_it_counts(mesh, what))] = living
            elif living:
                drains = kind in DRAINED and chance.choice((False, True))
                report.killed[f"{kind} drained" if drains else kind] += 1
                victim = chance.choice(living)
                dead[group.create_task(_replace(mesh, victim, drains=drains))] = [victim]


async def _replace(mesh: Mesh, victim: Process | None, *, drains: bool) -> None:
    if victim is None:
        await mesh.broker.kill()
        await mesh.broker.start()
        return
    if drains:
        victim.signal(signal.SIGTERM)
        await until(lambda: not victim.is_running)
    else:
        await victim.kill()
    await start_again(victim)


async def _kill_as_it_counts(mesh: Mesh, what: str) -> None:
    """Have the steward that counts die at a point of that, and start it again. Without anything to count none dies."""
    stewards, folder = [each for each in mesh.processes if each.service == STEWARD], mesh.folder / POINTS
    give_order(folder, new_id(), Point("kill", STEWARD, what, 1), 0)
    with suppress(TimeoutError):
        await until(lambda: not order_is_open(folder), COUNTS_WITHIN_SECONDS)
    take_back(folder)
    await asyncio.gather(*(start_again(each) for each in stewards if not each.is_running))


async def _to_the_end(connection: Connection, report: LedgerReport) -> None:
    """Wait until nothing is left to do, and all that has ended is packed: what is read then stands still."""
    try:
        await until_no_work_is_left(connection, END_SECONDS_MAX)
    except TimeoutError:
        report.violations.append(f"I3: work is left {END_SECONDS_MAX:.0f} s after the load")
    left: dict[str, int] = {}

    async def all_packed() -> bool:
        left.clear()
        left.update(await subjects_of(connection.requests, "EVENTS", "events.>"))
        return not left

    try:
        await until(all_packed, END_SECONDS_MAX)
    except TimeoutError:
        report.violations.append(f"I3: {len(left)} journals are not packed, such as {min(left)}")


async def _judge(connection: Connection, model: AccountedModel, report: LedgerReport) -> Journals:
    requests = connection.requests
    stored = await read_stored(requests)
    journals = {task: [each.event for each in journal] for task, journal in stored.journals.items()}
    report.ended = Counter(journal[-1]["type"] for journal in journals.values())
    report.violations += [
        f"I3: task {task} is not at its end, but at {journal[-1]['type']}"
        for task, journal in journals.items()
        if journal[-1]["type"] not in TERMINAL_TYPES
    ]
    report.how = Counter(call.how for call in model.calls)
    report.books = compare(model.calls, journals)
    report.violations += report.books.problems

    async with ledger.counted(requests) as found:
        counted = await _all_days(connection)
    report.turns = found.turns
    report.violations += ledger.told(found.differences)
    if found.unreadable:
        report.violations.append(f"{found.unreadable} events or packed tasks can't be read")
    for name, of_journals in sums_of(journals).items():
        of_counters = sum(value for counter, value in counted.items() if counter.what == name)
        if of_counters != of_journals:
            report.violations.append(f"{name}: journals say {of_journals}, counters {of_counters}")
    # Those that are packed: a projection that came late may lie in the bucket until it is swept.
    records = {each.task: msgspec.to_builtins(each.record) for each in stored.archive.tasks.values()}
    report.violations += _wrong_records(journals, records)
    return journals


def _keep(folder: Path, model: AccountedModel, journals: Journals) -> None:
    """Write down what was judged, for whoever looks into it."""
    (folder / "journals.json").write_text(json.dumps(journals))
    (folder / "calls.json").write_text(json.dumps([asdict(call) for call in model.calls]))


async def _all_days(connection: Connection) -> dict[UsageCounter, int]:
    """The counters of all days."""
    every = [counter_of(name) for name in await subjects_of(connection.requests, "USAGE", "usage.>")]
    return await counters.read_from_leader(
        connection.requests, [each for each in every if not is_month(each.place.period)]
    )


def sums_of(journals: Journals) -> dict[str, int]:
    """What journals say in all, and what that costs: counted here once more, in another way than the mesh does."""
    sums: Counter[str] = Counter()
    for event in (event for journal in journals.values() for event in journal):
        sums["untold"] += len(event.get("lost") or ())
        if event["type"] in ("turn.completed", "model.spent"):
            usage = event["usage"]
            read, cached, put_out = usage["input_tokens"], usage.get("cached_tokens", 0), usage["output_tokens"]
            sums["turns"] += event["type"] == "turn.completed"
            sums["input"] += read
            sums["cached"] += cached
            sums["output"] += put_out
            sums["untold"] += usage.get("untold_calls", 0)
            if event.get("provider") == "local":
                sums["cost"] += (read - cached) * INPUT + cached * CACHED + put_out * OUTPUT
            else:
                sums["unpriced"] += read + put_out
    return dict(sums)


def _wrong_records(journals: Journals, records: dict[str, dict[str, Any]]) -> list[str]:
    """Records whose usage is not what their journal says."""
    problems: list[str] = []
    for task, journal in journals.items():
        told = records.get(task, {}).get("usage") or {}
        said = sums_of({task: journal})
        of_record = {
            "input": told.get("input_tokens", 0),
            "output": told.get("output_tokens", 0),
            "cached": told.get("cached_tokens", 0),
            "cost": told.get("cost_micros", 0),
            "untold": told.get("untold_calls", 0),
        }
        if any(said.get(name, 0) != value for name, value in of_record.items()):
            problems.append(f"the record of task {task} says {of_record}, its journal {said}")
    return problems

"""The soak: a steady load, clients that follow each task to its end, and a process killed every half minute."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from contracts.errors import TaskmeshError
from contracts.identifiers import new_id
from contracts.journal.events import TERMINAL_TYPES
from mesh.broker.connection import Connection, connect
from tests.soak.levels import Levels
from tests.support.checker import ClientHistory
from tests.support.clients import Viewer
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import QUEUES, until

SERVICES = (
    "ingress",
    "stream_edge",
    *("steward",) * 2,
    *("inference_worker",) * 2,
    *("tool_runner",) * 2,
)
BROKER = "nats-server"
KILL_SECONDS = 30.0
"""Between two kills, on average."""
SAMPLE_SECONDS = 2.0
RETRY_SECONDS = 0.25
TASK_SECONDS_MAX = 120.0
"""How long a client asks for a task, and how long it follows it."""
END_SECONDS_MAX = 120.0
_MIB = 1024 * 1024
VARIABLES = {
    # What has ended is packed, and dropped, within the run: so that what is there at a time does not grow.
    "MESH_PACK_AFTER_HOURS": f"{20 / 3_600:.8f}",
    "MESH_DELTA_RETENTION_HOURS": f"{10 / 3_600:.8f}",
    "MESH_RETENTION_DAYS": f"{120 / 86_400:.8f}",
    "MESH_ACK_WAIT_SECONDS": "10",
}


class Kind(NamedTuple):
    """A kind of task: what is asked, and what its output must be, if that is known."""

    text: str
    output: str | None


KINDS = (
    Kind("!say 5\n", "".join(f"t{number} " for number in range(5))),
    Kind("!rate 20\n!say 60\n", "".join(f"t{number} " for number in range(60))),
    Kind('!call calculator {"expression": "6*7"}\n!then\n!say 3\n', "".join(f"t{number} " for number in range(3))),
)
WEIGHTS = (6, 2, 2)


@dataclass
class SoakReport:
    """What came of a soak."""

    seconds: float = 0.0
    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    levels: Levels = field(default_factory=Levels)
    violations: list[str] = field(default_factory=list)


async def soak(folder: Path, seconds: float, rate: float, seed: int) -> SoakReport:
    """Run it, and judge it."""
    report, chance = SoakReport(seconds), random.Random(seed)
    async with running_mesh(folder, *SERVICES, **VARIABLES) as mesh, connect(mesh.settings, "soak") as connection:
        began_at = time.monotonic()
        async with (
            httpx.AsyncClient(timeout=TASK_SECONDS_MAX) as client,
            _beside(_kill(mesh, chance, report), _sample(mesh, connection, began_at, report)),
        ):
            await _submit_all(client, mesh, chance, rate, seconds, report)
            report.seconds = time.monotonic() - began_at
        report.violations += report.levels.growing(report.seconds)
        if not await _comes_to_an_end(connection):
            report.violations.append(f"I10: left in the queues: {await _left(connection)}")
        dead = await connection.requests.api("STREAM.INFO.DEAD_LETTERS")
        if dead["state"]["messages"]:
            report.violations.append(f"I3: {dead['state']['messages']} dead letters")
        report.violations += [f"an unhandled exception in {log}" for log in mesh.tracebacks()]
    return report


@asynccontextmanager
async def _beside(*jobs: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()  # Whoever ended early has failed.
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# Clients


async def _submit_all(
    client: httpx.AsyncClient, mesh: Mesh, chance: random.Random, rate: float, seconds: float, report: SoakReport
) -> None:
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began_at + number / rate - loop.time()))
            group.create_task(_one(client, mesh, chance.choices(KINDS, WEIGHTS)[0], report))


async def _one(client: httpx.AsyncClient, mesh: Mesh, kind: Kind, report: SoakReport) -> None:
    """Submit a task until it is taken, follow it to its end, and judge what came."""
    task = await _post(client, mesh, kind, report)
    if task is None:
        report.violations.append(f"I3: a task was not taken in {TASK_SECONDS_MAX:.0f} s")
        return
    report.accepted += 1
    viewer = Viewer(str(mesh.settings.edge_address), task)
    try:
        await viewer.follow(seconds=TASK_SECONDS_MAX)
    except TimeoutError:
        report.violations.append(f"I3: task {task} came to no end in {TASK_SECONDS_MAX:.0f} s")
        return
    report.violations += [f"{problem} (task {task})" for problem in judged(viewer.history, kind)]
    report.ended[viewer.history.frames[-1].type] += 1


async def _post(client: httpx.AsyncClient, mesh: Mesh, kind: Kind, report: SoakReport) -> str | None:
    key = {"Idempotency-Key": new_id()}
    give_up_at = time.monotonic() + TASK_SECONDS_MAX
    while time.monotonic() < give_up_at:
        try:
            answer = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": kind.text}, headers=key)
        except httpx.HTTPError:
            report.refused["no answer"] += 1
        else:
            if answer.status_code == 202:
                return str(answer.json()["id"])
            report.refused[f"{answer.status_code} {answer.json()['code']}"] += 1
            if answer.status_code != 503:
                report.violations.append(f"a post was answered {answer.status_code}: {answer.text[:200]}")
        await asyncio.sleep(RETRY_SECONDS)
    return None


def judged(history: ClientHistory, kind: Kind) -> list[str]:
    """What is wrong with all that a client has received of one task."""
    problems: list[str] = []
    events = [msgspec.json.decode(frame.data) for frame in history.frames]
    if any(frame.type == "stream.gap" for frame in history.frames):
        problems.append("I5: a gap, and nothing of it was dropped")
    numbers = [event["n"] for event in events]
    if numbers != list(range(len(numbers))):
        problems.append(
            f"I4: n is not dense: {next(pair for pair in pairwise([-1, *numbers]) if pair[1] != pair[0] + 1)}"
        )
    ends = [frame.type for frame in history.frames if frame.type in TERMINAL_TYPES]
    if ends != ["task.completed"]:
        problems.append(f"I2: it ended with {ends}")
    said = [event["text"] for event in events if event["type"] == "turn.completed"]
    if kind.output is not None and (not said or said[-1] != kind.output):
        problems.append(f"I6: it said {said[-1:]}")
    results = Counter(event["call"] for event in events if event["type"] in ("tool.completed", "tool.failed"))
    problems += [f"I8: call {call} has {count} results" for call, count in results.items() if count > 1]
    return problems


# What happens to the mesh


async def _kill(mesh: Mesh, chance: random.Random, report: SoakReport) -> None:
    """Kill somebody at random, and start it again, until cancelled."""
    while True:
        await asyncio.sleep(chance.uniform(0.5, 1.5) * KILL_SECONDS)
        victim: Process | None = chance.choice([None, *mesh.processes])
        report.killed[victim.service if victim is not None else BROKER] += 1
        # Whoever is killed is started again, also if this is cancelled in between.
        await asyncio.shield(asyncio.create_task(_replace(mesh, victim)))


async def _replace(mesh: Mesh, victim: Process | None) -> None:
    if victim is None:
        await mesh.broker.kill()
        await mesh.broker.start()
    else:
        await victim.kill()
        await victim.start()


async def _sample(mesh: Mesh, connection: Connection, began_at: float, report: SoakReport) -> None:
    """Take a sample every two seconds until cancelled. What is just being started again is left out."""
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        try:
            await _sample_once(mesh, connection, time.monotonic() - began_at, report.levels)
        except (OSError, RuntimeError, TaskmeshError, KeyError):
            continue


async def _sample_once(mesh: Mesh, connection: Connection, at: float, levels: Levels) -> None:
    broker = mesh.broker.process
    if broker is None or broker.poll() is not None or not all(process.is_running for process in mesh.processes):
        return
    page: dict[str, Any] = await connection.requests.api("STREAM.LIST")
    levels.add("consumers", at, sum(each["state"]["consumer_count"] for each in page["streams"]))
    levels.add("memory of services", at, sum(process.resident_bytes() for process in mesh.processes) / _MIB)
    levels.add("descriptors", at, sum(process.descriptors() for process in mesh.processes))
    levels.add("memory of nats-server", at, _resident_bytes(broker.pid) / _MIB)
    levels.add("disk", at, await asyncio.to_thread(_bytes_below, mesh.broker.store) / _MIB)


def _resident_bytes(pid: int) -> int:
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue  # It is gone since.
    return total


async def _left(connection: Connection) -> dict[str, int]:
    infos = {name: await connection.requests.api(f"STREAM.INFO.{name}") for name in QUEUES}
    return {name: info["state"]["messages"] for name, info in infos.items() if info["state"]["messages"]}


async def _comes_to_an_end(connection: Connection) -> bool:
    async def nothing_left() -> bool:
        return not await _left(connection)

    try:
        await until(nothing_left, END_SECONDS_MAX)
    except TimeoutError:
        return False
    return True

"""The run `cluster`: a mesh on three servers under load, and what happens to servers in the middle of it.

Clients post tasks at a steady rate, each again under its key until it is taken. Some follow long generations, token by
token, and note the longest silence. When the load ends all must come to its end: then what clients have seen and what
is stored is judged, as after any run.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx

from contracts.errors import TaskmeshError
from contracts.identifiers import new_id
from contracts.streams import BACKLOG
from mesh.broker.connection import Connection, connect
from tests.chaos import ledger
from tests.chaos.separation import Cables, can_separate, separate
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer
from tests.support.cluster import Cluster, Node
from tests.support.cluster_mesh import REPLICAS, ClusterMesh, provision
from tests.support.waiting import QUEUES, until

SERVICES = ("ingress", "stream_edge", "steward", "steward", "inference_worker", "inference_worker")
TEXT = "!say 5\n"
FLOOD_TEXT = "!hang 8\nwell"
FLOOD_CLIENTS = 16
FLOOD_WAITING_MIN = 50
FOLLOWERS = 4
TOKENS_A_SECOND = 10
RETRY_SECONDS = 0.5
POST_SECONDS_MAX = 60.0
"""How long a client goes on asking for one task."""
END_SECONDS_MAX = 120.0
"""How long after the load all may take to its end."""
QUORUM_LOST_SECONDS = 20.0
CUT_SECONDS = 20.0
GAP_SECONDS = 3.0
"""After a death there is no leader for 4 to 9 s, and previews come each second; a dead line is left after 2 s."""
GAP_SECONDS_PLANNED = 1.0
GAP_WORDS = "a follower heard nothing for"


@dataclass
class Stage:
    """What an incident happens to."""

    mesh: ClusterMesh
    connection: Connection
    chance: random.Random
    cables: Cables | None = None
    warned: int = 0
    """How many services were at a node that has said that it is about to stop."""

    async def leader(self) -> Node:
        """The node that leads EVENTS."""
        await self.mesh.cluster.until_led("EVENTS")
        found = await self.mesh.cluster.leader_of("EVENTS")
        assert found is not None
        return found

    async def back(self, node: Node) -> None:
        """Start a node, and wait until it has caught up."""
        await node.start()
        await self.mesh.cluster.until_serving(60.0)


async def kill_leader(stage: Stage) -> None:
    """`kill -9` of the node that leads EVENTS; it is started again."""
    node = await stage.leader()
    await node.kill()
    await stage.mesh.cluster.until_led("EVENTS", "TASKS")
    await stage.back(node)


async def kill_where_all_are(stage: Stage) -> None:
    """`kill -9` of the node that all are connected to."""
    node = stage.mesh.cluster.nodes[-1]
    await node.kill()
    await stage.mesh.cluster.until_led("EVENTS", "TASKS")
    await stage.back(node)


async def rolling_restart(stage: Stage) -> None:
    """SIGTERM to one node after the other; each is started again, and has caught up, before the next."""
    for node in stage.mesh.cluster.nodes:
        await node.stop()
        await stage.back(node)


async def lame_duck(stage: Stage) -> None:
    """The node that leads EVENTS says that it is about to stop, is ended after that, and started again."""
    node = await stage.leader()
    told = await node.monitored("/connz")
    assert told is not None
    names = [str(each.get("name")) for each in told["connections"]]
    stage.warned = sum(name == f"taskmesh-{service}" for service in SERVICES for name in names)
    node.signal(signal.SIGUSR2)
    await until(lambda: _leads_no_more(stage, node))
    await node.stop()
    await stage.back(node)


async def _leads_no_more(stage: Stage, node: Node) -> bool:
    return await stage.mesh.cluster.leader_of("EVENTS") not in (None, node)


async def quorum_lost(stage: Stage) -> None:
    """`kill -9` of two nodes, for twenty seconds."""
    two = stage.chance.sample(stage.mesh.cluster.nodes, 2)
    await asyncio.gather(*(node.kill() for node in two))
    await asyncio.sleep(QUORUM_LOST_SECONDS)  # It is the incident that lasts so long.
    await asyncio.gather(*(node.start() for node in two))
    await stage.mesh.cluster.until_serving(60.0)


async def partition(stage: Stage) -> None:
    """The node that all are connected to is cut off from the services, not from the other nodes."""
    if stage.cables is not None:
        stage.cables.cut()
        await asyncio.sleep(CUT_SECONDS)
        stage.cables.mend()
        return
    # For want of a namespace it stands still, which the other nodes see as well.
    node = stage.mesh.cluster.nodes[-1]
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(CUT_SECONDS)
    node.signal(signal.SIGCONT)


async def kill_leader_of_backlog(stage: Stage) -> None:
    """`kill -9` of the node that leads BACKLOG, while that is full of a tenant's tasks; it is started again."""
    await stage.mesh.cluster.until_led(BACKLOG.name)
    node = await stage.mesh.cluster.leader_of(BACKLOG.name)
    assert node is not None
    await node.kill()
    await stage.mesh.cluster.until_led("EVENTS", "TASKS", BACKLOG.name)
    await stage.back(node)


class Incident(NamedTuple):
    """Something that happens to servers. `gap_seconds_max`: how long a follower may hear nothing for it."""

    act: Callable[[Stage], Awaitable[None]]
    gap_seconds_max: float
    connects_to_last: bool = False
    """Whether the services are told of the last node alone, and are all connected to that."""
    flood: int = 0
    """So many tasks a tenant queues before it."""


INCIDENTS = {
    "kill leader": Incident(kill_leader, GAP_SECONDS),
    "kill where all are": Incident(kill_where_all_are, GAP_SECONDS, connects_to_last=True),
    "rolling restart": Incident(rolling_restart, GAP_SECONDS_PLANNED),
    "lame duck": Incident(lame_duck, GAP_SECONDS_PLANNED),
    "quorum lost": Incident(quorum_lost, GAP_SECONDS),
    "partition": Incident(partition, GAP_SECONDS, connects_to_last=True),
    "flood": Incident(kill_leader_of_backlog, GAP_SECONDS, flood=400),
}


class Load(NamedTuple):
    """Tasks a second, for how many seconds."""

    rate: float
    seconds: float


@dataclass
class ClusterReport:
    """What came of one incident."""

    incident: str
    accepted: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """How often posts were answered so: `202`, `503 broker-unavailable`, `no answer`."""
    gap_seconds: float = 0.0
    gap_before_seconds: float = 0.0
    """The longest silence before the incident: what the machine by itself comes to."""
    previews: int = 0
    """How often followers were told what could not be stored."""
    restarted: int = 0
    """Turns that began again."""
    took_seconds: float = 0.0
    """From the end of the load until nothing was left to do."""
    lines: Counter[str] = field(default_factory=Counter)
    """How often the services said what of note."""
    warned: int = 0
    """How many services were at a node that has said that it is about to stop."""
    waited: int = 0
    """Of a flood, how many tasks waited in BACKLOG at the incident."""
    violations: list[str] = field(default_factory=list)


class Listener(Viewer):
    """Follows a long generation, and notes when each frame came. Previews tell it as much as events."""

    query = "?previews=true"

    def __init__(self, address: str, task: str) -> None:
        super().__init__(address, task)
        self.times: list[float] = []
        self.previews = 0

    def _record(self, event: str, identifier: str, data: str) -> None:
        self.times.append(time.monotonic())
        if event == "output.preview":
            self.previews += 1  # It is no part of the journal.
        else:
            super()._record(event, identifier, data)

    def longest(self, since: float, until_: float) -> float:
        """The longest silence that ended between two times."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - sooner for sooner, later in pairs if since <= later < until_), default=0.0)


async def run_cluster(folder: Path, name: str, load: Load, seed: int) -> ClusterReport:
    """One incident, in the middle of a load."""
    incident, report = INCIDENTS[name], ClusterReport(name)
    async with _stage(folder, incident, seed) as stage:
        mesh, recorded = stage.mesh, Recorded()
        async with httpx.AsyncClient(timeout=POST_SECONDS_MAX) as client:
            talk = f"!rate {TOKENS_A_SECOND}\n!say {int(TOKENS_A_SECOND * load.seconds)}\n"
            listeners = [
                Listener(str(mesh.settings.edge_address), await _post(client, mesh, talk, recorded, report))
                for _ in range(FOLLOWERS)
            ]
            end_seconds = load.seconds + END_SECONDS_MAX
            following = [asyncio.create_task(each.follow(seconds=end_seconds)) for each in listeners]
            posting = asyncio.create_task(_post_all(client, mesh, load, recorded, report))
            await until(lambda: all(len(each.times) > TOKENS_A_SECOND for each in listeners))
            began_at = time.monotonic()
            flooding = asyncio.create_task(_flood(client, stage, incident.flood, recorded, report))
            await asyncio.sleep(load.seconds / 4)  # The load goes on, and nothing happens: this is what it costs.
            if incident.flood:
                await until(lambda: _waits(stage, report), POST_SECONDS_MAX)
            acted_at = time.monotonic()
            await incident.act(stage)
            await posting
            await flooding
            ended_at = time.monotonic()
            for task in await asyncio.gather(*following, return_exceptions=True):
                if isinstance(task, BaseException):
                    report.violations.append(f"I3: a follower came to no end: {task!r}")
            if not await _comes_to_an_end(stage):
                report.violations.append(
                    f"I3: not at an end {END_SECONDS_MAX:.0f} s after the load: {await _left(stage)}"
                )
            report.took_seconds = time.monotonic() - ended_at
        report.gap_before_seconds = max(each.longest(began_at, acted_at) for each in listeners)
        report.gap_seconds = max(each.longest(acted_at, time.monotonic()) for each in listeners)
        report.previews = sum(each.previews for each in listeners)
        recorded.histories += [each.history for each in listeners]
        await _judge(stage, recorded, report, incident)
    return report


async def _judge(stage: Stage, recorded: Recorded, report: ClusterReport, incident: Incident) -> None:
    stored = await read_stored(stage.connection.requests)
    async with ledger.counted(stage.connection.requests) as found:
        report.violations += ledger.told(found.differences)
    report.accepted = len(recorded.accepted)
    report.violations += check(recorded, stored)
    report.violations += [f"I3: a dead letter: {letter}" for letter in stored.dead_letters]
    events = [each.event["type"] for journal in stored.journals.values() for each in journal]
    report.restarted = events.count("turn.restarted")
    if report.gap_seconds > incident.gap_seconds_max:
        most = f"of at most {incident.gap_seconds_max:.1f}"
        report.violations.append(f"{GAP_WORDS} {report.gap_seconds:.1f} s, {most}")
    wrong = {answer: count for answer, count in report.answers.items() if answer.startswith("500")}
    report.violations += [f"{count} posts were answered {answer}" for answer, count in wrong.items()]
    report.violations += [f"an unhandled exception in {log}" for log in stage.mesh.tracebacks()]
    report.warned = stage.warned
    report.lines = Counter(
        str(line["event"]) for line in stage.mesh.logs() if line.get("level") in ("warning", "error")
    )


@asynccontextmanager
async def _stage(folder: Path, incident: Incident, seed: int) -> AsyncIterator[Stage]:
    cluster = Cluster(folder / "cluster", REPLICAS)
    async with AsyncExitStack() as stack:
        cables: Cables | None = None
        if incident.act is partition and can_separate():
            cables = Cables()
            stack.callback(cables.take_away)
            cables.lay()
            separate(cluster, folder / "cluster", cables)
        url = cluster.nodes[-1].url if incident.connects_to_last else cluster.url
        mesh = ClusterMesh(folder, cluster, {"MESH_NATS_URL": url})
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        connection = await stack.enter_async_context(connect(mesh.settings, "chaos"))
        await provision(connection.requests, mesh.settings)
        stack.push_async_callback(_stop, mesh)
        for service in SERVICES:
            await mesh.start(service)
        yield Stage(mesh, connection, random.Random(seed), cables)


async def _stop(mesh: ClusterMesh) -> None:
    await asyncio.gather(*(process.stop() for process in mesh.processes))


async def _post_all(
    client: httpx.AsyncClient, mesh: ClusterMesh, load: Load, recorded: Recorded, report: ClusterReport
) -> None:
    """Post at the rate, whatever is answered meanwhile."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(load.rate * load.seconds)):
            await asyncio.sleep(max(0.0, began_at + number / load.rate - loop.time()))
            group.create_task(_post(client, mesh, TEXT, recorded, report))


async def _flood(
    client: httpx.AsyncClient, stage: Stage, count: int, recorded: Recorded, report: ClusterReport
) -> None:
    """Post more at once than the workers have places for."""
    numbers = iter(range(count))

    async def some() -> None:
        for _ in numbers:
            await _post(client, stage.mesh, FLOOD_TEXT, recorded, report, "flood")

    await asyncio.gather(*(some() for _ in range(FLOOD_CLIENTS)))


async def _waits(stage: Stage, report: ClusterReport) -> bool:
    """Whether enough waits in BACKLOG for an incident to show something."""
    info = await stage.connection.requests.api(f"STREAM.INFO.{BACKLOG.name}")
    report.waited = int(info["state"]["messages"])
    return report.waited >= FLOOD_WAITING_MIN


async def _post(
    client: httpx.AsyncClient,
    mesh: ClusterMesh,
    text: str,
    recorded: Recorded,
    report: ClusterReport,
    tenant: str = "default",
) -> str:
    """Post a task until it is taken; its id. "" if it never was."""
    key = {"Idempotency-Key": new_id(), "Mesh-Tenant": tenant}
    give_up_at = time.monotonic() + POST_SECONDS_MAX
    while time.monotonic() < give_up_at:
        try:
            answer = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": text}, headers=key)
        except httpx.HTTPError:
            report.answers["no answer"] += 1
        else:
            code = str(answer.json().get("code", "")) if answer.status_code >= 400 else ""
            report.answers[f"{answer.status_code} {code}".strip()] += 1
            if answer.status_code == 202:
                task = str(answer.json()["id"])
                recorded.accepted.add(task)
                return task
        await asyncio.sleep(RETRY_SECONDS)
    report.violations.append(f"I3: a task was not taken in {POST_SECONDS_MAX:.0f} s")
    return ""


async def _left(stage: Stage) -> dict[str, int]:
    infos = {name: await stage.connection.requests.api(f"STREAM.INFO.{name}") for name in QUEUES}
    return {name: info["state"]["messages"] for name, info in infos.items() if info["state"]["messages"]}


async def _comes_to_an_end(stage: Stage) -> bool:
    async def nothing_left() -> bool:
        try:
            return not await _left(stage)
        except TaskmeshError:
            return False

    try:
        await until(nothing_left, END_SECONDS_MAX)
    except TimeoutError:
        return False
    return True


def row(report: ClusterReport) -> str:
    """One line of figures."""
    refused = ", ".join(f"{count} of {answer}" for answer, count in sorted(report.answers.items()) if answer != "202")
    return (
        f"{report.incident:<20} {report.accepted:>6} tasks  gap {report.gap_seconds:>5.2f} s"
        f" (before {report.gap_before_seconds:.2f}, {report.previews} previews)  {report.restarted} turns again"
        f"  ended {report.took_seconds:.1f} s after{f'  {report.waited} waited' if report.waited else ''}"
        f"  {len(report.violations)} violations  {refused or 'none refused'}"
    )

"""A cluster of real nats-servers on loopback: each node can be killed, stopped, frozen and started again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.broker import Broker, free_port
from tests.support.waiting import until

READY_SECONDS = 30.0
"""How long three servers may take until they have elected who keeps the list of streams."""
_ANSWER_SECONDS = 1.0
_EXTRA = """
server_name: {name}
cluster {{
  name: {cluster}
  listen: 127.0.0.1:{port}
  routes: [{routes}]
}}
{extra}
"""


class Node(Broker):
    """One server of a cluster. `name` is what the others, and a stream's `cluster.leader`, call it."""

    def __init__(self, folder: Path, name: str, cluster: str, ports: Sequence[int], number: int, extra: str) -> None:
        """`ports`: where each node of the cluster takes routes; `number`: which of them is this one's."""
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in ports)
        settings = _EXTRA.format(name=name, cluster=cluster, port=ports[number], routes=routes, extra=extra)
        super().__init__(folder, extra=settings)
        self.name = name
        self.route_port = ports[number]

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP freezes it, SIGUSR2 makes it a lame duck."""
        assert self.process is not None
        self.process.send_signal(number)

    async def monitored(self, path: str) -> dict[str, Any] | None:
        """What its monitoring answers on a path such as `/jsz`, whatever the status; None if it gives no answer."""
        try:
            async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as client:
                answer = await client.get(f"http://127.0.0.1:{self.monitoring_port}{path}")
                found: dict[str, Any] = answer.json()
                return found
        except (httpx.HTTPError, ValueError):
            return None

    async def is_healthy(self) -> bool:
        """Whether its JetStream is up, knows a leader, and has caught up with all its streams and consumers."""
        told = await self.monitored("/healthz")
        return told is not None and told.get("status") == "ok"


class Cluster:
    """Some nodes that are one broker. `url` names all of them, as MESH_NATS_URL does."""

    def __init__(self, folder: Path, size: int = 3, name: str = "test", extra: str = "") -> None:
        """`extra`: more lines of each node's configuration, such as users."""
        ports = [free_port() for _ in range(size)]
        self.nodes = [
            Node(folder / f"n{number + 1}", f"n{number + 1}", name, ports, number, extra) for number in range(size)
        ]

    @property
    def url(self) -> str:
        """The URLs of all nodes, with commas."""
        return ",".join(node.url for node in self.nodes)

    @property
    def living(self) -> list[Node]:
        """The nodes whose process lives."""
        return [node for node in self.nodes if node.is_running]

    def node(self, name: str) -> Node:
        """A node by its name."""
        return next(node for node in self.nodes if node.name == name)

    async def start(self) -> None:
        """Start all nodes, and wait until they serve."""
        await asyncio.gather(*(node.start() for node in self.nodes))
        await self.until_serving()

    async def until_serving(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the nodes that live have a leader, and each has caught up."""

        async def serving() -> bool:
            if await self.meta_leader() is None:
                return False
            return all(await asyncio.gather(*(node.is_healthy() for node in self.living)))

        await until(serving, seconds)

    async def meta_leader(self) -> Node | None:
        """The node that keeps the list of streams; None while there is none that lives, as without quorum."""
        for node in self.living:
            told = await node.monitored("/jsz")
            leader = ((told or {}).get("meta_cluster") or {}).get("leader")
            if leader and self.node(leader).is_running:
                return self.node(leader)
        return None

    async def leader_of(self, stream: str, consumer: str | None = None) -> Node | None:
        """The node that leads a stream, or one of its consumers, as the nodes say; None while there is none."""
        query = "/jsz?streams=1" + ("&consumers=1" if consumer else "")
        for node in self.living:
            told = await node.monitored(query)
            for account in (told or {}).get("account_details") or []:
                for detail in account.get("stream_detail") or []:
                    if detail["name"] != stream:
                        continue
                    of = [each for each in detail.get("consumer_detail") or [] if each["name"] == consumer]
                    leader = ((of[0] if consumer and of else detail).get("cluster") or {}).get("leader")
                    if leader and self.node(leader).is_running:
                        return self.node(leader)
        return None

    async def _leaders(self) -> dict[tuple[str, str | None], str | None]:
        """Who leads each stream of any account, and each durable consumer, as the nodes that live say.

        None while nobody does who lives.
        """
        leaders: dict[tuple[str, str | None], str | None] = {}
        for node in self.living:
            told = await node.monitored("/jsz?consumers=1&config=1")
            for account in (told or {}).get("account_details") or []:
                for stream in account.get("stream_detail") or []:
                    for each in (stream, *(stream.get("consumer_detail") or [])):
                        consumer = None if each is stream else each["name"]
                        if consumer is not None and not each["config"].get("durable_name"):
                            continue
                        leader = (each.get("cluster") or {}).get("leader")
                        if leader and self.node(leader).is_running:
                            leaders[stream["name"], consumer] = leader
                        else:
                            leaders.setdefault((stream["name"], consumer), None)
        return leaders

    async def until_led(self, *streams: str, seconds: float = READY_SECONDS) -> None:
        """Wait until each of these streams, all without any, has a leader that lives; and their consumers have.

        After a kill: 4 to 9 s. A list of consumers waits for their leaders for as long as a request may take.
        """

        async def led() -> bool:
            leaders = {
                key: leader for key, leader in (await self._leaders()).items() if not streams or key[0] in streams
            }
            return {stream for stream, _ in leaders} >= set(streams) and bool(leaders) and None not in leaders.values()

        await until(led, seconds)

    async def stop(self) -> None:
        """End all nodes, however they stand."""
        for node in self.living:
            node.signal(signal.SIGCONT)
        await asyncio.gather(*(node.stop() for node in self.nodes))


@asynccontextmanager
async def running_cluster(folder: Path, size: int = 3, name: str = "test", extra: str = "") -> AsyncIterator[Cluster]:
    """A cluster that serves; it is stopped at the end."""
    cluster = Cluster(folder, size, name, extra)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()

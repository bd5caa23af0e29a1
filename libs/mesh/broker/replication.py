"""How many copies of each stream there are: `[storage] replicas`, or three on a cluster. And whether all are current.

Facts, tried with nats-server 2.15.1: a server that is none of a cluster refuses more than one replica (10074), and so
does a cluster with fewer servers (10005). A stream that gets more replicas answers all the while; a work queue, and its
consumers, take some ten seconds longer until all copies are current.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mesh.broker.consumer_lists import all_consumers
from mesh.broker.levels import stream_info
from mesh.broker.requests import Requests
from mesh.configuration.mesh_toml import Configuration
from mesh.errors import BrokerError, SettingsError

REPLICAS_OF_A_CLUSTER = 3
"""With three copies one server may be away. Two can't tell which of them is right, and five make writes dearer."""
NOT_CLUSTERED, NO_PEERS = 10074, 10005
CURRENT_SECONDS_MAX = 60.0
"""How long `meshctl streams apply` waits for new copies: longer than an empty mesh takes, while a full one goes on."""
LOOK_SECONDS = 0.5
PLACE_SECONDS_MAX = 10.0
"""How long a cluster may count a server as away that has just started: it hears of it within seconds."""
SILENT_SECONDS = 5.0
"""A copy that its leader has not heard of for so long is away. It hears of each about once a second."""
_NANOSECONDS = 1_000_000_000


class Replication(NamedTuple):
    """How many copies are wanted, and whether somebody asked for so many."""

    replicas: int = 1
    is_asked_for: bool = False

    def of_existing(self, existing: int) -> int:
        """What a stream with so many copies is to have: more than nobody asked against are as good."""
        return self.replicas if self.is_asked_for else max(self.replicas, existing)


class Copies(NamedTuple):
    """The copies of a stream: how many there are to be, and what is not well with them; empty if all is.

    `is_on_cluster`: whether its server is one of a cluster, where there could be more than one.
    """

    stream: str
    replicas: int
    behind: str
    is_on_cluster: bool


def find_replicas(requests: Requests, configuration: Configuration) -> Replication:
    """How many copies the streams are to have. Raises `SettingsError` if the broker can't have more than one."""
    asked = configuration.storage.replicas
    if asked is None:
        return Replication(REPLICAS_OF_A_CLUSTER if requests.servers >= REPLICAS_OF_A_CLUSTER else 1)
    if asked > 1 and requests.servers == 1:
        raise SettingsError(
            f"{configuration.source}: storage.replicas: {asked} copies need a cluster of {asked} servers, and the"
            " broker is one server alone"
        )
    return Replication(asked, is_asked_for=True)


async def read_copies(requests: Requests, streams: Iterable[str]) -> list[Copies]:
    """The copies of each of these streams that is there. Raises `BrokerError`, `BrokerUnavailable`."""
    infos = await asyncio.gather(*(stream_info(requests, stream) for stream in streams))
    return [copies_of(info) for info in infos if info is not None]


def copies_of(info: dict[str, Any]) -> Copies:
    """The copies of a stream, or of a consumer's state, by its `INFO` answer. Pure."""
    config = info["config"]
    name, replicas = str(config.get("name") or config.get("durable_name")), int(config.get("num_replicas") or 1)
    cluster = info.get("cluster")
    return Copies(name, replicas, _behind(cluster, replicas), bool(cluster and cluster.get("name")))


def _behind(cluster: dict[str, Any] | None, replicas: int) -> str:
    if not cluster or replicas <= 1:
        return ""
    if not cluster.get("leader"):
        return "no leader"
    followers = cluster.get("replicas") or []
    late = [each["name"] for each in followers if not each.get("current") or each.get("offline")]
    if late:
        return f"{', '.join(sorted(late))} behind"
    missing = replicas - 1 - len(followers)
    return f"{missing} of {replicas} copies missing" if missing > 0 else ""


def lacks_quorum(info: Mapping[str, Any]) -> str | None:
    """Why a stream can store nothing, by its own state (the answer to `STREAM.INFO`); None if it can. Pure.

    Where there is no leader a follower answers, after some seconds of silence, and names none. A leader that is left
    alone goes on for 10 to 20 s as if nothing were wrong: it answers for the stream's state, and no publish (measured
    with nats-server 2.15).
    """
    cluster: Mapping[str, Any] = info.get("cluster") or {}
    replicas: list[Mapping[str, Any]] = cluster.get("replicas") or []
    if not replicas:
        return None
    if not cluster.get("leader"):
        there = sum(1 for each in replicas if each.get("current"))
        return f"no leader: {there} of {len(replicas)} copies answer"
    away = [each for each in replicas if each.get("offline") or each.get("active", 0) > SILENT_SECONDS * _NANOSECONDS]
    count = len(replicas) + 1
    if count - len(away) > count // 2:
        return None
    names = ", ".join(sorted(str(each.get("name", "?")) for each in away))
    return f"no quorum: of {count} copies these are away: {names}"


async def until_current(requests: Requests, streams: Iterable[str], seconds: float = CURRENT_SECONDS_MAX) -> list[str]:
    """Wait until all copies of these streams, and of their consumers, are current; so long at most.

    Returns what is not by then: `TASKS: n3 behind`. Raises `BrokerError`, `BrokerUnavailable`.
    """
    names = list(streams)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + seconds
    while True:
        late = [f"{copies.stream}: {copies.behind}" for copies in await read_copies(requests, names) if copies.behind]
        late = late or await _late_consumers(requests, names)
        if not late or loop.time() >= give_up_at:
            return late
        await asyncio.sleep(LOOK_SECONDS)


async def _late_consumers(requests: Requests, streams: Iterable[str]) -> list[str]:
    late: list[str] = []
    for stream in streams:
        info = await stream_info(requests, stream)
        if info is None or not info["state"].get("consumer_count"):
            continue
        replicas = int(info["config"].get("num_replicas") or 1)
        for consumer in await all_consumers(requests, stream):
            behind = _behind(consumer.get("cluster"), int(consumer["config"].get("num_replicas") or replicas))
            late += [f"{stream}/{consumer['name']}: {behind}"] if behind else []
    return late


async def placed(requests: Requests, replicas: int, act: Callable[[], Awaitable[None]]) -> None:
    """Create or change a stream: again for a while if the cluster has the servers, and counts one of them as away.

    A cluster that has just started does so, and one whose list of streams has just got another leader. Raises what
    `act` does; for want of servers `BrokerError` with what to do.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PLACE_SECONDS_MAX
    while True:
        try:
            return await act()
        except BrokerError as error:
            if error.number not in (NOT_CLUSTERED, NO_PEERS) or replicas <= 1:
                raise
            if loop.time() >= give_up_at or requests.servers < replicas:
                said = (
                    f"no {replicas} servers with room: start them, or set storage.replicas in mesh.toml: {error.said}"
                )
                raise BrokerError(error.number, said) from None
            await asyncio.sleep(LOOK_SECONDS)

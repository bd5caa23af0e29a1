"""A node of a cluster behind two cables of its own: one to clients, which can be cut, and one to the other nodes.

It lives in a network namespace, which root can make (Linux). A cable that is cut swallows what is sent over it, both
ways, and breaks no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.support import children
from tests.support.broker import PROGRAM
from tests.support.cluster import Cluster, Node
from tests.support.patience import POLL_SECONDS, within

READY_SECONDS = 10.0
_ANSWER_SECONDS = 1.0
_LOCAL = "127.0.0.1"


def can_separate() -> bool:
    """Whether this process may make network namespaces."""
    try:
        return os.geteuid() == 0 and children.run_blocking(["ip", "netns"]).returncode == 0
    except FileNotFoundError:
        return False


class Cables:
    """A namespace with two cables to it. Addresses are of 10.0.0.0/8, at random: others may do the same."""

    def __init__(self) -> None:
        self.name = f"mesh-{os.getpid()}-{random.randrange(10_000)}"
        self._tag = f"m{random.randrange(16**6):06x}"
        net = f"10.{random.randrange(64, 250)}.{random.randrange(250)}"
        self.clients = f"{net}.2"
        self.routes = f"{net}.6"
        self._ours = (f"{net}.1", f"{net}.5")

    def lay(self) -> None:
        """Make all of it."""
        _ip("netns", "add", self.name)
        self._inside("link", "set", "lo", "up")
        for side, ours, theirs in (("c", self._ours[0], self.clients), ("r", self._ours[1], self.routes)):
            near, far = f"{self._tag}{side}0", f"{self._tag}{side}1"
            _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
            _ip("addr", "add", f"{ours}/30", "dev", near)
            _ip("link", "set", near, "up")
            self._inside("addr", "add", f"{theirs}/30", "dev", far)
            self._inside("link", "set", far, "up")

    def cut(self) -> None:
        """Cut the cable to clients."""
        self._inside("link", "set", f"{self._tag}c1", "down")

    def mend(self) -> None:
        """Join it again."""
        self._inside("link", "set", f"{self._tag}c1", "up")

    def take_away(self) -> None:
        """End it; its cables go with it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.name)

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)


class SeparateNode(Node):
    """A node in the namespace of these cables."""

    def __init__(self, folder: Path, node: Node, cables: Cables) -> None:
        """In place of `node`, which has not been started."""
        self.__dict__.update(node.__dict__)
        self.cables = cables
        self.url = f"nats://{cables.clients}:{self.port}"
        config = (folder / "nats.conf").read_text()
        config = config.replace(f"listen: {_LOCAL}:{self.port}", f"listen: {cables.clients}:{self.port}")
        config = config.replace(f"http: {_LOCAL}", f"http: {cables.routes}")
        config = config.replace(f"listen: {_LOCAL}:{self.route_port}", f"listen: {cables.routes}:{self.route_port}")
        (folder / "nats.conf").write_text(config)

    async def start(self, seconds: float = READY_SECONDS) -> None:
        """Start it in its namespace."""
        with self.log.open("ab") as log:
            command = ["ip", "netns", "exec", self.cables.name, PROGRAM, "-c", str(self._config)]
            self.process = children.start(command, stdout=log, stderr=log)
        async with within(seconds):
            while await self.monitored("/varz") is None:
                if self.process.poll() is not None:
                    raise RuntimeError(f"nats-server ended: {self.log.read_text()[-2000:]}")
                await asyncio.sleep(POLL_SECONDS)

    async def monitored(self, path: str) -> dict[str, Any] | None:
        """As of any node, over the cable that is not cut."""
        try:
            async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as client:
                answer = await client.get(f"http://{self.cables.routes}:{self.monitoring_port}{path}")
                found: dict[str, Any] = answer.json()
                return found
        except (httpx.HTTPError, ValueError):
            return None


def separate(cluster: Cluster, folder: Path, cables: Cables) -> SeparateNode:
    """Put the last node of a cluster that has not been started behind these cables."""
    *others, last = cluster.nodes
    for node in others:
        config = folder / node.name / "nats.conf"
        text = config.read_text()
        config.write_text(
            text.replace(f"nats-route://{_LOCAL}:{last.route_port}", f"nats-route://{cables.routes}:{last.route_port}")
        )
    alone = SeparateNode(folder / last.name, last, cables)
    cluster.nodes[-1] = alone
    return alone


def _ip(*arguments: str) -> None:
    children.run_blocking(["ip", *arguments]).check_returncode()

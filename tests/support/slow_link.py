"""A slow link between a service and the broker, or anything else that listens here: it can be cut, and restored.

    async with slow_link(broker.port, rtt_seconds=0.02) as link:
        await mesh.start("steward", MESH_NATS_URL=link.url)
        await link.cut()

`distant_mesh(folder, 0.02, …)` puts all services of a mesh behind one; the test itself stays next to the broker. For
`meshctl up` it is the broker that `MESH_NATS_URL` names. A link takes some hundreds of connections.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support import children
from tests.support.broker import free_port
from tests.support.patience import within

ANSWER_SECONDS = 10.0
_PROXY = Path(__file__).with_name("slow_link_proxy.py")


class SlowLink:
    """A link that runs. `url` is the broker's, as it is seen from its far end."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"nats://127.0.0.1:{port}"

    async def set_rtt(self, rtt_seconds: float) -> None:
        """Have a round trip take this long from now on. What is under way arrives as before."""
        await self._order(f"delay {rtt_seconds / 2}")

    async def cut(self) -> None:
        """Break every connection, and refuse new ones until it is restored: both sides learn of it at once."""
        await self._order("cut")

    async def silence(self) -> None:
        """Let nothing pass until it is restored, and then all that was sent meanwhile: no connection breaks."""
        await self._order("silence")

    async def restore(self) -> None:
        """Let everything pass again."""
        await self._order("restore")

    async def _order(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        await self.answered()

    async def answered(self) -> None:
        """Wait until it has done what it was told."""
        assert self.process.stdout is not None
        async with within(ANSWER_SECONDS):
            if not await self.process.stdout.readline():
                raise RuntimeError("the slow link has ended")


@asynccontextmanager
async def slow_link(port: int, rtt_seconds: float) -> AsyncIterator[SlowLink]:
    """A link to what listens at a port of loopback, in a process of its own."""
    own_port = free_port()
    command = [sys.executable, "-I", "-S", str(_PROXY), str(port), str(own_port), str(rtt_seconds / 2)]
    process = await children.begin(command, stdin=children.PIPE, stdout=children.PIPE)
    link = SlowLink(process, own_port)
    try:
        await link.answered()
        yield link
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()

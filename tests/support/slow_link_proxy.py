"""The proxy of a slow link: `slow_link_proxy.py <port behind it> <port of its own> <half a round trip in seconds>`.

Each byte arrives half a round trip later than it was sent, in either direction, in order; no fewer arrive in a second.
So do the ends of connections. Commands come as lines on its input, and each is answered by a line. It ends with its
input. A program of its own, so that a busy test does not distort it. Imports nothing of taskmesh.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections import deque
from contextlib import suppress
from enum import Enum, auto

UNDER_WAY_BYTES_MAX = 16 * 1024 * 1024
"""How much may be under way on a connection in one direction; then its sender waits, as for a full window of TCP."""


class Link:
    """What all connections share: the delay, and whether anything passes."""

    def __init__(self, port_behind: int, port: int, delay_seconds: float) -> None:
        self.port_behind = port_behind
        self.port = port
        self.delay_seconds = delay_seconds
        self.is_cut = False
        self.is_silent = False
        self.ends: set[End] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take connections."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: End(self), "127.0.0.1", self.port)

    async def obey(self, command: str, *arguments: str) -> None:
        """Carry out a command: `delay <seconds>`, `cut`, `silence`, `restore`."""
        if command == "delay":
            self.delay_seconds = float(arguments[0])
            return
        self.is_cut, self.is_silent = command == "cut", command == "silence"
        if self.is_cut and self._server is not None:
            # Refused, as where nobody listens: a client may leak what is taken and then broken.
            self._server.close()
            self._server = None
        elif not self.is_cut:
            await self.listen()
        for end in list(self.ends):
            if self.is_cut:
                end.transport.abort()
            else:
                end.pass_on()


class Over(Enum):
    """That the other end sends no more; that it is gone."""

    SENDING = auto()
    ALL = auto()


class End(asyncio.Protocol):
    """One end of a connection. `other` is the one that its bytes go to."""

    transport: asyncio.Transport

    def __init__(self, link: Link, other: End | None = None) -> None:
        self.link = link
        self.other = other
        self.waiting: deque[tuple[float, bytes | Over]] = deque()
        """What is under way to this end, and when each part is due."""
        self.waiting_bytes = 0
        self.is_gone = False
        self._halves_over = 0
        self._is_full = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.link.ends.add(self)
        if self.link.is_cut:
            transport.abort()
        elif self.other is None:
            # Nothing is read before there is somebody to send it to. A connection is a round trip old when it is made.
            transport.pause_reading()
            self._loop.call_later(2 * self.link.delay_seconds, self._connect)

    def _connect(self) -> None:
        self._connecting = self._loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            _, self.other = await self._loop.create_connection(
                lambda: End(self.link, self), "127.0.0.1", self.link.port_behind
            )
        except OSError:
            self.transport.abort()
            return
        if self.is_gone or self.link.is_cut:
            self.other.transport.abort()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def eof_received(self) -> bool:
        self._send(Over.SENDING)
        self._end_half()
        return True  # What comes the other way still passes.

    def _end_half(self) -> None:
        self._halves_over += 1
        if self._halves_over == 2:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True
        self.link.ends.discard(self)
        self.waiting.clear()
        if self.other is not None:
            self._send(Over.ALL)

    def _send(self, sent: bytes | Over) -> None:
        assert self.other is not None
        if isinstance(sent, bytes):
            self.other.waiting_bytes += len(sent)
        self.other.waiting.append((self._loop.time() + self.link.delay_seconds, sent))
        self.other.pass_on()

    def pass_on(self) -> None:
        """Write what is due by now, and look again when the next part is."""
        while self.waiting and self._timer is None and not self.link.is_silent and not self.is_gone:
            due_at, sent = self.waiting[0]
            if due_at > self._loop.time():
                self._timer = self._loop.call_at(due_at, self._look_again)
                break
            self.waiting.popleft()
            if isinstance(sent, bytes):
                self.waiting_bytes -= len(sent)
                self.transport.write(sent)
            elif sent is Over.SENDING:
                with suppress(OSError):  # Whoever was to hear it has gone meanwhile.
                    self.transport.write_eof()
                self._end_half()
            else:
                self.transport.close()
        self.regulate()

    def _look_again(self) -> None:
        self._timer = None
        self.pass_on()

    def pause_writing(self) -> None:
        self._is_full = True
        self.regulate()

    def resume_writing(self) -> None:
        self._is_full = False
        self.regulate()

    def regulate(self) -> None:
        """Have the other end read only as long as there is room for it here."""
        if self.other is None or self.other.is_gone:
            return
        if self._is_full or self.waiting_bytes > UNDER_WAY_BYTES_MAX:
            self.other.transport.pause_reading()
        else:
            self.other.transport.resume_reading()


def say(line: str) -> None:
    """Tell whoever started this."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def serve(port_behind: int, port: int, delay_seconds: float) -> None:
    """Pass on until the input ends."""
    loop = asyncio.get_running_loop()
    link = Link(port_behind, port, delay_seconds)
    await link.listen()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    say("ready")
    while line := await lines.readline():
        await link.obey(*line.decode().split())
        say("done")


if __name__ == "__main__":
    # epoll waits whole milliseconds, which half a round trip of 2 ms would be; select waits microseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

"""The load generator, in a process of its own: `python -m tests.benchmarks.load '{"mode": …}'`, results as JSON lines.

It says how much of a core it took (`load_cpu`), so that whoever reads the result sees that it was not the bottleneck.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop

from tests.support.clients import PostingConnection, open_stream

FIRST_TOKEN = b"event: output.delta"


class Poster(PostingConnection):
    """Posts to any path."""

    def __init__(self, address: str, path: str) -> None:
        super().__init__(address)
        self.path = path

    async def post(self, body: bytes, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """One POST."""
        if self._writer is None:
            self._reader, self._writer = await connect(self._address)
        assert self._reader is not None
        self._writer.write(request(self._address, self.path, body, headers))
        head = await self._reader.readuntil(b"\r\n\r\n")
        start = head.lower().index(b"content-length:") + 15
        payload = await self._reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        return int(head[9:12]), {}, payload


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def request(address: str, path: str, body: bytes, headers: str = "") -> bytes:
    """The bytes of one POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def closed_loop(spec: dict[str, Any]) -> None:
    """`clients` post one after the other for `seconds`: the rate at saturation."""
    latencies: list[float] = []
    statuses: dict[str, int] = {}
    end_at = time.perf_counter() + spec["seconds"]

    async def one(number: int) -> None:
        poster = Poster(spec["address"], spec["path"])
        headers = spec["headers"].replace("{client}", str(number))
        while (began_at := time.perf_counter()) < end_at:
            status, _, _ = await poster.post(spec["body"].encode(), headers)
            latencies.append(time.perf_counter() - began_at)
            statuses[str(status)] = statuses.get(str(status), 0) + 1
        poster.close()

    cpu, began_at = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(spec["clients"])))
    took = time.perf_counter() - began_at
    say(
        rate=len(latencies) / took,
        count=len(latencies),
        statuses=statuses,
        latencies=latencies,
        load_cpu=(time.process_time() - cpu) / took,
    )


async def open_loop(spec: dict[str, Any]) -> None:
    """Posts at `rate`, whether answers come or not; a latency counts from when its request was due."""
    idle = [Poster(spec["address"], spec["path"]) for _ in range(spec["clients"])]
    free: asyncio.Queue[Poster] = asyncio.Queue()
    for poster in idle:
        free.put_nowait(poster)
    latencies: list[float] = []

    async def one(number: int, due_at: float) -> None:
        poster = await free.get()
        await poster.post(spec["body"].encode(), spec["headers"].replace("{client}", str(number % spec["clients"])))
        latencies.append(time.perf_counter() - due_at)
        free.put_nowait(poster)

    cpu, began_at = time.process_time(), time.perf_counter()
    posts: list[asyncio.Task[None]] = []
    for number in range(int(spec["rate"] * spec["seconds"])):
        due_at = began_at + number / spec["rate"]
        # The loop's timers count whole milliseconds: what is due by then goes out together.
        if (left := due_at - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        posts.append(asyncio.create_task(one(number, due_at)))
    await asyncio.gather(*posts)
    took = time.perf_counter() - began_at
    say(latencies=latencies, load_cpu=(time.process_time() - cpu) / took)


async def first_token(spec: dict[str, Any]) -> None:
    """Submission to first token through the mesh, and a direct call of the same model, in turns. Seconds."""
    poster = Poster(spec["ingress"], "/v1/tasks")
    body = msgspec.json.encode({"input": spec["text"]})
    mesh: list[float] = []
    direct: list[float] = []
    for number in range(spec["calls"] + spec["warm_up"]):
        began_at = time.perf_counter()
        _, _, answer = await poster.post(body)
        _, reader, writer = await open_stream(spec["edge"], msgspec.json.decode(answer)["id"], None)
        await reader.readuntil(FIRST_TOKEN)
        through_mesh = time.perf_counter() - began_at
        await reader.readuntil(b"event: task.completed")
        writer.close()
        began_at = time.perf_counter()
        reader, writer = await connect(spec["limit"])
        writer.write(request(spec["limit"], "/direct", spec["text"].encode()))
        await reader.readuntil(FIRST_TOKEN)
        directly = time.perf_counter() - began_at
        writer.close()
        if number >= spec["warm_up"]:
            mesh.append(through_mesh)
            direct.append(directly)
    say(mesh=mesh, direct=direct)


async def view(spec: dict[str, Any]) -> None:
    """Opens a stream for each of `paths`, says so, and counts `events` on each; with none to come, holds them."""
    ready = 0
    frames = 0
    cpu, began_at = 0.0, 0.0
    all_ready, all_seen = asyncio.Event(), asyncio.Event()
    wanted = len(spec["paths"]) * spec["events"]
    writers: list[asyncio.StreamWriter] = []

    async def one(path: str) -> None:
        nonlocal ready, frames
        reader, writer = await connect(spec["address"])
        writers.append(writer)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {spec['address']}\r\n\r\n".encode())
        await reader.readuntil(spec["ready"].encode())
        ready += 1
        if ready == len(spec["paths"]):
            all_ready.set()
        rest = b""
        while data := await reader.read(65536):
            # A frame begins with its id, and may be cut anywhere: what may be half of the mark stays for later.
            data = rest + data
            frames += data.count(FIRST_TOKEN)
            rest = data[-(len(FIRST_TOKEN) - 1) :]
            if frames >= wanted:
                all_seen.set()

    viewers = [asyncio.create_task(one(path)) for path in spec["paths"]]
    await all_ready.wait()
    cpu, began_at = time.process_time(), time.perf_counter()
    say(ready=ready)
    if spec["events"]:
        await all_seen.wait()
        took = time.perf_counter() - began_at
        say(frames=frames, seconds=took, load_cpu=(time.process_time() - cpu) / took)
    else:
        await asyncio.sleep(spec["hold_seconds"])
    for writer in writers:
        writer.close()
    await asyncio.gather(*viewers, return_exceptions=True)


def say(**result: Any) -> None:
    """One line to whoever started this."""
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()


MODES: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "closed_loop": closed_loop,
    "open_loop": open_loop,
    "first_token": first_token,
    "view": view,
}


async def main() -> None:
    """Run one mode."""
    spec = msgspec.json.decode(sys.argv[1], type=dict[str, Any])
    await MODES[spec["mode"]](spec)


if __name__ == "__main__":
    uvloop.run(main())

"""A chat completions server of a test's own, on plain sockets: it behaves, byte for byte, as the test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.listening import listening

STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


class Exchange:
    """One request, and what is answered to it."""

    def __init__(self, connection: int, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.connection = connection
        request_line, *lines = head.decode("latin-1").strip().split("\r\n")
        self.method, self.path, _ = request_line.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body: dict[str, Any] = json.loads(body) if body else {}
        self.gone = asyncio.Event()
        """The client has closed the connection."""
        self._writer = writer

    async def begin(self, content_type: str | None = STREAM, **headers: str) -> None:
        """Status 200, and a body in chunks."""
        types = {"Content-Type": content_type} if content_type else {}
        await self.head(200, {**types, "Transfer-Encoding": "chunked", **headers})

    async def head(self, status: int, headers: dict[str, str]) -> None:
        """The head of the answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self._write(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1"))

    async def send(self, data: bytes) -> None:
        """One chunk of the body, as it is."""
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def say(self, *chunks: dict[str, Any]) -> None:
        """Chunks of a completion, each as one event."""
        for chunk in chunks:
            await self.send(event(chunk))

    async def end(self) -> None:
        """The end of the body."""
        await self._write(b"0\r\n\r\n")

    async def page(self, content: bytes, content_type: str = "text/plain") -> None:
        """Status 200, and a whole body."""
        await self.head(200, {"Content-Type": content_type, "Content-Length": str(len(content))})
        await self._write(content)

    async def refuse(self, status: int, body: object, **headers: str) -> None:
        """An error, with a JSON body (or one of bytes)."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        types = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        await self.head(status, types | {name.replace("_", "-"): value for name, value in headers.items()})
        await self._write(content)

    def drop(self) -> None:
        """Break the connection."""
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Behaviour = Callable[[Exchange], Awaitable[None]]


class ModelServer:
    """Listens on loopback. `behave` answers each request; `exchanges` are all that came, in order.

    Workers ask servers near by how they stand: that is a connection of its own, which is 404 and not told to a test,
    unless what behaves has `has_pages`.
    """

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.base_url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive until its client goes."""
        number, first = 0, b""
        while True:
            head = first + await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET ") and not getattr(self.behave, "has_pages", False):
                await Exchange(0, head, b"", writer).refuse(404, {"error": "no such page"})
                first = b""
                continue
            if not number:
                self.connections += 1
                number = self.connections
            lines = head.lower().split(b"\r\n")
            length = next((line for line in lines if line.startswith(b"content-length:")), b"content-length:0")
            exchange = Exchange(number, head, await reader.readexactly(int(length.split(b":")[1])), writer)
            self.exchanges.append(exchange)
            # Nobody pipelines: what comes next is the end of the connection, or the next request's first byte.
            watch = asyncio.create_task(self._watch(reader, exchange))
            try:
                await self.behave(exchange)
                first = await watch
            finally:
                watch.cancel()
            if not first:
                return

    async def _watch(self, reader: asyncio.StreamReader, exchange: Exchange) -> bytes:
        try:
            first = await reader.read(1)
        except OSError:
            first = b""
        if not first:
            exchange.gone.set()
        return first


@asynccontextmanager
async def model_server(behave: Behaviour, port: int = 0) -> AsyncIterator[ModelServer]:
    """A running server, on a free port by default; connections that are open at the end are dropped."""
    server = ModelServer(behave)
    async with listening(server.serve, port=port) as listens_on:
        server.base_url = f"http://127.0.0.1:{listens_on}/v1"
        yield server


def event(chunk: object) -> bytes:
    """One event of the stream."""
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a completion."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [choice],
        **more,
    }


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """The chunk that carries the usage alone."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk() | {"choices": [], "usage": counts}


async def openai(exchange: Exchange, words: tuple[str, ...] = ("Hel", "lo")) -> None:
    """As api.openai.com answers: `usage` is null in all chunks but the last, which has no choices."""
    await exchange.begin()
    await exchange.say(chunk({"role": "assistant", "content": "", "refusal": None}, usage=None))
    await exchange.say(*(chunk({"content": word}, usage=None) for word in words))
    await exchange.say(chunk(finish_reason="stop", usage=None), usage(9, len(words)))
    await exchange.send(DONE)
    await exchange.end()


async def vllm(exchange: Exchange) -> None:
    """As vLLM answers: thinking is `reasoning`, the newer one beside the older name; extra fields."""
    await exchange.begin()
    await exchange.say(
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=None),
        chunk({"reasoning": "Hm. ", "reasoning_content": "Hm. "}),
        chunk({"reasoning_content": "Yes."}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"})
        | {"choices": [{**chunk({"content": "lo"}, "stop")["choices"][0], "stop_reason": None}]},
        usage(9, 4),
    )
    await exchange.send(DONE)
    await exchange.end()


async def llama_cpp(exchange: Exchange) -> None:
    """As llama-server answers: `content: null` first, timings instead of usage, `[DONE]` without its blank line."""
    await exchange.begin(content_type="text/event-stream")
    timings = {"cache_n": 4, "prompt_n": 5, "prompt_ms": 10.5, "predicted_n": 4, "predicted_ms": 1.5}
    await exchange.say(
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "Hm. "}),
        chunk({"reasoning_content": "Yes."}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk(finish_reason="stop", timings=timings),
    )
    await exchange.send(b"data: [DONE]")
    await exchange.end()


async def ollama(exchange: Exchange) -> None:
    """As Ollama answers: a role in each chunk, `reasoning` beside an empty `content`."""
    await exchange.begin(content_type="text/event-stream")
    await exchange.say(
        chunk({"role": "assistant", "content": "", "reasoning": "Hm. "}, system_fingerprint="fp_ollama"),
        chunk({"role": "assistant", "content": "", "reasoning": "Yes."}),
        chunk({"role": "assistant", "content": "Hel"}),
        chunk({"role": "assistant", "content": "lo"}),
        chunk({"role": "assistant", "content": ""}, "stop"),
        usage(9, 4),
    )
    await exchange.send(DONE)
    await exchange.end()

"""A web server of a test's own, on the test's loop: raw answers by path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.listening import listening


class WebServer:
    """`answers` maps a path to the bytes of a whole response; `requests` holds the heads that came."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: dict[str, bytes] = {}
        self.requests: list[str] = []

    def answer(self, path: str, body: bytes = b"", status: str = "200 OK", **headers: str) -> None:
        """Answer a path so; `content_type` becomes `content-type`."""
        lines = [f"HTTP/1.1 {status}", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answers[path] = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.requests.append(head)
        writer.write(self.answers.get(head.split(" ")[1], b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))
        await writer.drain()


@asynccontextmanager
async def web_server() -> AsyncIterator[WebServer]:
    """A server on 127.0.0.1."""
    web = WebServer()
    async with listening(web._serve) as web.port:
        yield web

"""An endpoint of webhooks, on the test's loop: it checks what comes as Standard Webhooks says, and answers as told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.support.listening import listening

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOLERANCE_SECONDS = 300


class Received(NamedTuple):
    """A request that came, and whether its signature holds."""

    head: str
    headers: dict[str, str]
    body: dict[str, Any]
    valid: bool

    @property
    def id(self) -> str:
        """Its `webhook-id`."""
        return self.headers["webhook-id"]

    @property
    def type(self) -> str:
        """What it tells of."""
        return str(self.body["type"])


class WebhookReceiver:
    """`answers` are the status lines of the next answers, then it is `204 No Content`. While `held`, none is given."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[Received] = []
        self.answers: list[str] = []
        self.held = False
        self.open_now = 0
        self.open_max = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/hook?key=v"

    def ids(self, event_type: str) -> list[str]:
        """The ids of what came of a type, in order."""
        return [each.id for each in self.received if each.type == event_type]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.open_max = max(self.open_max, self.open_now)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(first, headers, json.loads(body), _is_valid(headers, body)))
            if self.held:
                await reader.read()  # Until the other side gives up.
                return
            status = self.answers.pop(0) if self.answers else "204 No Content"
            writer.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
        finally:
            self.open_now -= 1


@asynccontextmanager
async def webhook_receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[WebhookReceiver]:
    """A receiver on 127.0.0.1."""
    receiver = WebhookReceiver()
    async with listening(receiver._serve, tls) as receiver.port:
        yield receiver


def _is_valid(headers: dict[str, str], body: bytes) -> bool:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    young = abs(time.time() - int(headers["webhook-timestamp"])) <= TOLERANCE_SECONDS
    return young and expected in headers["webhook-signature"].split(" ")

"""A chat completions server on loopback that enforces limits as a provider does: what is beyond them gets 429.

Each limit is a token bucket that holds what is allowed in `seconds`. A request is judged when it comes, by what it will
have used. It tells what is left, and how long to wait, in OpenAI's headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from tests.support.model_server import DONE, Exchange, ModelServer, chunk, model_server, usage

BYTES_PER_TOKEN = 4


class Buckets:
    """Token buckets of some limits, full at first. `allowed` is by the second; times are on any one clock."""

    def __init__(self, allowed: Mapping[str, float], seconds: float, at: float) -> None:
        self.allowed = dict(allowed)
        self.most = {limit: each * seconds for limit, each in allowed.items()}
        self.left = dict(self.most)
        self._at = at

    def take(self, cost: Mapping[str, float], at: float) -> float:
        """Take what a request costs, and 0; or nothing, and the seconds until there is as much."""
        for limit, each in self.allowed.items():
            self.left[limit] = min(self.most[limit], self.left[limit] + max(0.0, at - self._at) * each)
        self._at = at
        missing = max((cost[limit] - left) / self.allowed[limit] for limit, left in self.left.items())
        if missing > 0:
            return missing
        for limit in self.left:
            self.left[limit] -= cost[limit]
        return 0.0


class LimitedProvider:
    """What a server of that kind has seen. A request's last message says how many tokens to put out: `say 40 …`."""

    def __init__(
        self, requests_per_second: float, tokens_per_second: float, seconds: float, turn_seconds: float = 0.05
    ) -> None:
        self.allowed = {"requests": requests_per_second, "tokens": tokens_per_second}
        self.buckets = Buckets(self.allowed, seconds, time.monotonic())
        self.turn_seconds = turn_seconds
        self.taken = 0
        self.refused = 0
        self.used = {"requests": 0.0, "tokens": 0.0}
        self.first_at = 0.0
        self.last_at = 0.0
        self.running = 0
        self.running_most = 0
        self.shut_until = 0.0
        """Until then every request is refused."""

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request."""
        text = str(exchange.body["messages"][-1]["content"])
        read, put_out = max(1, len(text) // BYTES_PER_TOKEN), int(text.split(" ", 2)[1])
        cost, at = {"requests": 1.0, "tokens": float(read + put_out)}, time.monotonic()
        wait = max(self.buckets.take(cost, at), self.shut_until - at)
        # Who asked may have been killed meanwhile: uvloop says that by a RuntimeError.
        if wait > 0:
            self.refused += 1
            body = {"error": {"code": "rate_limit_exceeded", "message": "Rate limit reached"}}
            with contextlib.suppress(OSError, RuntimeError):
                await exchange.refuse(429, body, retry_after_ms=str(round(wait * 1000) + 1), **self._headers())
            return
        self.taken += 1
        self.first_at, self.last_at = self.first_at or at, at
        for limit, each in cost.items():
            self.used[limit] += each
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            with contextlib.suppress(OSError, RuntimeError):
                await self._answer(exchange, read, put_out)
        finally:
            self.running -= 1

    async def _answer(self, exchange: Exchange, read: int, put_out: int) -> None:
        await exchange.begin(**{name.replace("_", "-"): value for name, value in self._headers().items()})
        await exchange.say(chunk({"role": "assistant", "content": "word " * min(put_out, 5)}))
        await asyncio.sleep(self.turn_seconds)
        await exchange.say(chunk(finish_reason="stop"), usage(read, put_out))
        await exchange.send(DONE)
        await exchange.end()

    def part_used(self, limit: str) -> float:
        """Of what is allowed between the first request and the last one."""
        return self.used[limit] / (self.allowed[limit] * max(1e-9, self.last_at - self.first_at))

    def _headers(self) -> dict[str, str]:
        told: dict[str, str] = {}
        for limit, left in self.buckets.left.items():
            told[f"x_ratelimit_limit_{limit}"] = str(round(self.allowed[limit] * 60))
            told[f"x_ratelimit_remaining_{limit}"] = str(max(0, int(left)))
            full_in = (self.buckets.most[limit] - left) / self.allowed[limit]
            told[f"x_ratelimit_reset_{limit}"] = f"{round(full_in * 1000)}ms"
        return told


def asking(put_out: int, read: int) -> bytes:
    """The body of a task that has so many tokens put out, and so many to read."""
    text = f"say {put_out} ".ljust(read * BYTES_PER_TOKEN, "x")
    return json.dumps({"input": text}).encode()


@asynccontextmanager
async def limited_server(provider: LimitedProvider) -> AsyncIterator[ModelServer]:
    """The server, running."""
    async with model_server(provider) as server:
        yield server


def mesh_toml(base_url: str, provider: LimitedProvider, more: str = "", times: int = 1) -> str:
    """A configuration whose only pool is there, and that knows its limits, or takes them for so many times as high."""
    return f"""
        [providers.local]
        kind = "openai"
        base_url = "{base_url}"
        [providers.local.pace]
        requests_per_minute = {provider.allowed["requests"] * 60 * times}
        tokens_per_minute = {provider.allowed["tokens"] * 60 * times}
        {more}
        [pools.default]
        provider = "local"
        model = "tiny"
        ask_user = false
        """

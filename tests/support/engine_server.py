"""Model servers on loopback that bear so much and no more: an engine with a cache, as vLLM's, and one of slots."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mesh.background import background
from tests.support.model_server import DONE, Exchange, ModelServer, chunk, model_server, usage

STEP_SECONDS = 0.05
PROMPT_TOKENS = 10
OUTPUT_TOKENS = 40


@dataclass(eq=False)
class _Request:
    tokens: int = PROMPT_TOKENS
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Generates a token of each running request a step, and holds all of their tokens in one cache.

    A request that finds no room waits. Where there is none for one more token, the youngest is taken back, and begins
    again. `others` are requests and tokens of other clients.
    """

    has_pages = True

    def __init__(self, cache_tokens: int) -> None:
        self.cache_tokens = cache_tokens
        self.taken_back = 0
        self.running_most = 0
        self.cache_most = 0.0
        self.asked = 0
        self.others = (0, 0)
        self._running: list[_Request] = []
        self._waiting: list[_Request] = []

    @property
    def running(self) -> int:
        """Requests that it works on, without those of others."""
        return len(self._running)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        if exchange.path == "/metrics":
            self.asked += 1
            await exchange.page(self._metrics().encode())
        elif exchange.method == "GET":
            await exchange.refuse(404, {"detail": "Not Found"})
        else:
            request = _Request()
            self._waiting.append(request)
            await request.done.wait()
            await answer(exchange)

    async def run(self) -> None:
        """Work, step by step."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            while self._waiting and self._used() + self._waiting[0].tokens <= self.cache_tokens:
                self._running.append(self._waiting.pop(0))
            for request in self._running:
                request.tokens += 1
            while self._used() > self.cache_tokens and self._running:
                youngest = self._running.pop()
                youngest.tokens = PROMPT_TOKENS
                self._waiting.insert(0, youngest)
                self.taken_back += 1
            self.running_most = max(self.running_most, self.running)
            self.cache_most = max(self.cache_most, self._used() / self.cache_tokens)
            for request in [each for each in self._running if each.tokens >= PROMPT_TOKENS + OUTPUT_TOKENS]:
                self._running.remove(request)
                request.done.set()

    def _used(self) -> int:
        return self.others[1] + sum(request.tokens for request in self._running)

    def _metrics(self) -> str:
        figures = {
            "num_requests_running": self.running + self.others[0],
            "num_requests_waiting": len(self._waiting),
            "kv_cache_usage_perc": min(1.0, self._used() / self.cache_tokens),
            "num_preemptions_total": self.taken_back,
        }
        return "".join(
            f"# TYPE vllm:{name} {'counter' if name.endswith('_total') else 'gauge'}\n"
            f'vllm:{name}{{engine="0",model_name="m"}} {value}\n'
            for name, value in figures.items()
        )


class Slots:
    """Works on so many requests at once; the others wait, or are refused. `tells`: as llama.cpp does, at `/slots`."""

    has_pages = True

    def __init__(self, slots: int, seconds: float, *, tells: bool = False, refuses: bool = False) -> None:
        self.slots = slots
        self.running = 0
        self.refused = 0
        self.at_once_most = 0
        self._at_once = 0
        self._seconds = seconds
        self._tells = tells
        self._refuses = refuses
        self._free = asyncio.Semaphore(slots)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        if exchange.path == "/slots" and self._tells:
            told = [{"id": slot, "is_processing": slot < self.running} for slot in range(self.slots)]
            await exchange.page(json.dumps(told).encode(), "application/json")
        elif exchange.method == "GET":
            await exchange.refuse(404, {"error": "no such page"})
        elif self._refuses and self.running >= self.slots:
            self.refused += 1
            await exchange.refuse(503, {"error": {"message": "server busy, maximum pending requests exceeded"}})
        else:
            self._at_once += 1
            self.at_once_most = max(self.at_once_most, self._at_once)
            async with self._free:
                self.running += 1
                await asyncio.sleep(self._seconds)
                self.running -= 1
            self._at_once -= 1
            await answer(exchange)


async def answer(exchange: Exchange) -> None:
    """One answer, of as many tokens as all have."""
    await exchange.begin()
    await exchange.say(chunk({"role": "assistant", "content": "Hello"}))
    await exchange.say(chunk(finish_reason="stop"), usage(PROMPT_TOKENS, OUTPUT_TOKENS))
    await exchange.send(DONE)
    await exchange.end()


@asynccontextmanager
async def engine_server(engine: Engine) -> AsyncIterator[ModelServer]:
    """An engine at work."""
    async with background(engine.run()), model_server(engine) as server:
        yield server

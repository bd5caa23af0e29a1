"""Connections to a model server: how many, which are used again, and what a request costs beside idle ones."""

from __future__ import annotations

import asyncio
import cProfile
import pstats

import pytest

from inference_worker.dialects.connections import CONNECTIONS_OF_CLIENT
from inference_worker.dialects.openai.client import OpenAIProvider, open_client
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
from tests.support.model_server import Exchange, model_server, openai
from tests.support.openai_provider import generate, text
from tests.support.waiting import until

pytestmark = pytest.mark.integration

AT_ONCE = 48


class Held:
    """Answers once all are there; it knows who comes by which connection."""

    def __init__(self) -> None:
        self.asked = 0
        self.peers: set[int] = set()
        self.may_answer = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        self.peers.add(exchange.connection)
        await self.may_answer.wait()
        await openai(exchange)


async def test_many_turns_at_once_leave_connections_that_cost_the_next_one_nothing() -> None:
    held = Held()
    async with model_server(held) as server:
        configuration = OpenAIProviderConfiguration(base_url=server.base_url)
        async with open_client(configuration, None, connections_max=AT_ONCE) as connections:
            provider = OpenAIProvider("local", configuration, connections)
            turns = [asyncio.create_task(generate(provider)) for _ in range(AT_ONCE)]
            await until(lambda: held.asked == AT_ONCE)
            assert len(held.peers) == AT_ONCE
            held.may_answer.set()
            assert all(text(said) for said in await asyncio.gather(*turns))

            held.peers.clear()
            with cProfile.Profile() as profile:
                for _ in range(3):
                    await generate(provider)
            assert len(held.peers) == 1, "the same one again"
            calls = sum(
                count
                for (_, _, name), (count, *_) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
                if name == "is_idle"
            )
            # In one pool it would be the square of all that are idle, several times for each request.
            assert calls <= 3 * 10 * CONNECTIONS_OF_CLIENT**2


async def test_there_are_no_more_connections_than_may_be() -> None:
    held = Held()
    async with model_server(held) as server:
        configuration = OpenAIProviderConfiguration(base_url=server.base_url)
        async with open_client(configuration, None, connections_max=10) as connections:
            provider = OpenAIProvider("local", configuration, connections)
            turns = [asyncio.create_task(generate(provider)) for _ in range(30)]
            await until(lambda: held.asked == 10)
            held.may_answer.set()
            assert all(text(said) for said in await asyncio.gather(*turns))
    assert held.asked == 30
    assert len(held.peers) == 10

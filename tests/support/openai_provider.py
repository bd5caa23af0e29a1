"""The provider of OpenAI's dialect, connected to a server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from contracts.tasks import Message
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.openai.client import OpenAIProvider, open_client
from inference_worker.models.chunks import Chunk, ReasoningDelta, TextDelta, TurnInput
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
from tests.support.model_server import Behaviour, ModelServer, model_server
from tests.support.patience import within

KEY = "sk-made-up-0123456789"
PROMPT = "the secret plan"
Connected = tuple[OpenAIProvider, ModelServer]


@asynccontextmanager
async def connected(behave: Behaviour, key: str | None = None, **options: Any) -> AsyncIterator[Connected]:
    """A provider whose server behaves so."""
    async with model_server(behave) as server:
        configuration = OpenAIProviderConfiguration(base_url=server.base_url, **options)
        async with open_client(configuration, key, connections_max=8) as client:
            yield OpenAIProvider("local", configuration, client, key), server


def turn(**fields: Any) -> TurnInput:
    return TurnInput(messages=[Message("user", PROMPT)], model="m", **fields)


async def generate(provider: OpenAIProvider, turn_input: TurnInput | None = None) -> list[Chunk]:
    """Everything that a turn yields."""
    async with within(20), aclosing(provider.stream(turn_input or turn())) as chunks:
        return [each async for each in chunks]


async def failure_of(behave: Behaviour, key: str | None = None, **options: Any) -> ProviderFailed:
    """How a turn fails there."""
    async with connected(behave, key, **options) as (provider, _):
        with pytest.raises(ProviderFailed) as failed:
            await generate(provider)
    return failed.value


def text(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks if isinstance(each, TextDelta))


def reasoning(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks if isinstance(each, ReasoningDelta))

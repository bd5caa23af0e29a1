"""The provider of Anthropic's dialect, connected to a server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from contracts.records.tools import ToolDeclaration
from contracts.tasks import Message
from inference_worker.dialects.anthropic.client import AnthropicProvider, open_client
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import Chunk, Finished, TextDelta, TurnInput
from inference_worker.providers import PoolProvider
from mesh.configuration.provider_tables import AnthropicProviderConfiguration
from mesh.task.conversation import ConversationItem
from tests.support.messages_server import Events, saying
from tests.support.model_server import Behaviour, ModelServer, model_server
from tests.support.patience import within

KEY = "sk-ant-made-up-0123456789"
PROMPT = "the secret plan"
ADD = ToolDeclaration(name="add", description="Adds.", parameters={"properties": {"a": {"type": "number"}}})
Connected = tuple[AnthropicProvider, ModelServer]


@asynccontextmanager
async def connected(behave: Behaviour, key: str | None = None, **options: Any) -> AsyncIterator[Connected]:
    """A provider whose server behaves so."""
    async with model_server(behave) as server:
        configuration = AnthropicProviderConfiguration(base_url=server.base_url.removesuffix("/v1"), **options)
        async with open_client(configuration, key, connections_max=8) as client:
            yield AnthropicProvider("local", configuration, client, key), server


def turn(*entries: ConversationItem, **fields: Any) -> TurnInput:
    return TurnInput(messages=list(entries) or [Message("user", PROMPT)], model="m", **fields)


async def generate(provider: AnthropicProvider | PoolProvider, turn_input: TurnInput | None = None) -> list[Chunk]:
    """Everything that a turn yields."""
    async with within(20), aclosing(provider.stream(turn_input or turn())) as chunks:
        return [each async for each in chunks]


async def generated(*events: Events | dict[str, Any], turn_input: TurnInput | None = None) -> list[Chunk]:
    """What a turn yields where the server says so."""
    async with connected(saying(*events)) as (provider, _):
        return await generate(provider, turn_input)


async def failure_of(behave: Behaviour, key: str | None = None, **options: Any) -> ProviderFailed:
    """How a turn fails there."""
    async with connected(behave, key, **options) as (provider, _):
        with pytest.raises(ProviderFailed) as failure:
            await generate(provider)
    return failure.value


def last(chunks: list[Chunk]) -> Finished:
    assert isinstance(chunks[-1], Finished)
    return chunks[-1]


def said(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks if isinstance(each, TextDelta))

"""Model providers: which there are, and which pool has which.

A provider's failures are `StepFailed`, raised by its stream. These are their codes:

    rate-limited, provider-overloaded, provider-error, provider-disconnected,
    provider-timeout, provider-unreachable, provider-loading,
    provider-unavailable                                                       retryable
    provider-bad-request, context-too-long, invalid-script                     terminal: the request is at fault
    provider-unauthorized, quota-exhausted, model-not-found                    neither: a dead letter, for the operator
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import msgspec

from inference_worker.dialects.anthropic import client as anthropic
from inference_worker.dialects.anthropic.client import AnthropicProvider
from inference_worker.dialects.openai import client as openai
from inference_worker.dialects.openai.client import OpenAIProvider
from inference_worker.dialects.room import Room
from inference_worker.dialects.scripted.model import ScriptedProvider
from inference_worker.dialects.seeing import HELD_BYTES_MAX, SeeingSource, takes_images
from inference_worker.models import endpoints
from inference_worker.models.candidates import Candidates, Source
from inference_worker.models.chunks import Chunk, TurnInput
from mesh.broker.requests import Requests
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.configuration.provider_tables import (
    AnthropicProviderConfiguration,
    OpenAIProviderConfiguration,
    ProviderConfiguration,
    ScriptedProviderConfiguration,
)
from mesh.configuration.settings import Settings


class PoolProvider:
    """What a pool makes of its provider: its own model, and its own limit."""

    def __init__(self, source: Source, default_model: str, max_output_tokens: int | None) -> None:
        self.name = source.name
        self.default_model = default_model
        self._source = source
        self._max_output_tokens = max_output_tokens

    def continues(self, text: str) -> bool:
        """Whether its provider does; that may find out on the way that a model does not."""
        return self._source.continues(text)

    def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn, within the pool's limit."""
        limits = [limit for limit in (turn.max_output_tokens, self._max_output_tokens) if limit is not None]
        return self._source.stream(msgspec.structs.replace(turn, max_output_tokens=min(limits, default=None)))


@asynccontextmanager
async def open_providers(
    settings: Settings,
    guard: Callable[[Source], Source] = lambda source: source,
    requests: Requests | None = None,
    route: Callable[[str, Candidates], Candidates] = lambda _, candidates: candidates,
) -> AsyncIterator[dict[str, Candidates]]:
    """The models of each pool; connections are closed at the end. Keys are those of the settings.

    `guard` may put something before each source, such as its breaker; `route` may choose among a pool's models. Images
    of tools are read with `requests`.
    """
    configuration = settings.configuration
    async with AsyncExitStack() as stack:
        sources: dict[str, Source] = {}
        room = Room(HELD_BYTES_MAX)
        for name in sorted({name for pool in configuration.pools for name in configuration.providers_of(pool)}):
            key = settings.secrets.get(f"providers.{name}.api_key")
            endpoints.know(name, configuration.providers[name])
            source = await _open(stack, settings, name, configuration.providers[name], key)
            if requests is not None and takes_images(configuration.providers[name]):
                # Behind the guard: a request that was refused for its images is no fault of the provider's.
                source = SeeingSource(source, requests, room)
            sources[name] = guard(source)
        yield {name: route(name, _of_pool(sources, pool)) for name, pool in configuration.pools.items()}


async def _open(
    stack: AsyncExitStack, settings: Settings, name: str, configuration: ProviderConfiguration, key: str | None
) -> Source:
    match configuration:
        case ScriptedProviderConfiguration():
            return ScriptedProvider(name, exit_allowed=settings.scripted_allow_exit)
        case OpenAIProviderConfiguration():
            client = openai.open_client(configuration, key, connections_max=settings.worker_concurrency)
            return OpenAIProvider(name, configuration, await stack.enter_async_context(client), key)
        case AnthropicProviderConfiguration():
            client = anthropic.open_client(configuration, key, connections_max=settings.worker_concurrency)
            return AnthropicProvider(name, configuration, await stack.enter_async_context(client), key)


def _of_pool(sources: Mapping[str, Source], pool: PoolConfiguration) -> Candidates:
    candidates = Candidates.of_providers(
        PoolProvider(sources[each.provider], each.model or ScriptedProvider.default_model, pool.max_output_tokens)
        for each in pool.models
    )
    weights = (each.weight for each in pool.models)
    return Candidates(tuple(replace(each, weight=weight) for each, weight in zip(candidates.all, weights, strict=True)))

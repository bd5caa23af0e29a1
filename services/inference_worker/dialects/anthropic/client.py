"""Anthropic's Messages API, or a server that has the same, as a source of turns.

How a turn is asked for is in `messages`, what is answered is read in `stream`, what errors mean is
in `dialects.errors`, and the connection is in `dialects.exchange`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from inference_worker.dialects import exchange
from inference_worker.dialects.anthropic.messages import request_of, resumed
from inference_worker.dialects.anthropic.stream import Answer, finished, is_paused, said
from inference_worker.dialects.connections import Connections
from inference_worker.dialects.continuing import ContinuingProvider
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.exchange import ModelServer
from inference_worker.models.chunks import Chunk, TurnInput
from mesh.configuration.provider_tables import AnthropicProviderConfiguration

API_VERSION = "2023-06-01"
_ANTHROPIC_HOST = "api.anthropic.com"
PAUSES_MAX = 16
"""Most pauses of one turn: each is one more request, which reads the whole conversation again."""


def open_client(configuration: AnthropicProviderConfiguration, key: str | None, connections_max: int) -> Connections:
    """The connections to one server."""
    headers = {"anthropic-version": API_VERSION} | ({} if key is None else {"x-api-key": key})
    return exchange.open_client(configuration, headers, connections_max)


class AnthropicProvider(ContinuingProvider):
    """One server. `name` is the one that the configuration gives it."""

    def __init__(
        self,
        name: str,
        configuration: AnthropicProviderConfiguration,
        connections: Connections,
        key: str | None = None,
    ) -> None:
        self.name = name
        super().__init__(configuration, continues=_continues(configuration))
        self._configuration = configuration
        url = f"{configuration.base_url.rstrip('/')}/v1/messages"
        self._server = ModelServer(url, configuration, connections, key)

    async def _ask(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        request = request_of(self._configuration, turn)
        answers: list[Answer] = []

        def body_of(shown: TurnInput) -> dict[str, Any]:
            if shown is turn:
                return request.body
            # With images, which nobody holds from one request to the next.
            asked = request_of(self._configuration, shown)
            for before in answers[:-1]:
                asked = resumed(asked.body, said(before), before.usage.output_tokens)
            return asked.body

        while len(answers) <= PAUSES_MAX:
            answer = Answer(request.cut)
            answers.append(answer)
            try:
                async with aclosing(self._server.stream(turn, body_of, answer)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except ProviderFailed as error:
                if turn.prefix and len(answers) == 1 and _is_refused_prefix(error):
                    self._continues = False
                    message = "the model does not continue a prefix: the next try begins anew"
                    raise ProviderFailed("provider-error", message, retryable=True, detail=error.detail) from None
                raise
            if not is_paused(answer):
                yield finished(answers, turn.prefix)
                return
            request = resumed(request.body, said(answer), answer.usage.output_tokens)
        raise ProviderFailed("provider-error", f"more than {PAUSES_MAX} pauses in one turn", retryable=True)


def _continues(configuration: AnthropicProviderConfiguration) -> bool:
    """Never with thinking, which a continued text may not begin with; else as the operator says, or the host."""
    if configuration.thinking_budget_tokens is not None:
        return False
    if configuration.prefill is not None:
        return configuration.prefill
    return configuration.host == _ANTHROPIC_HOST


def _is_refused_prefix(error: ProviderFailed) -> bool:
    """Whether the model does not take a beginning of its answer, which this API calls a prefill."""
    return error.terminal and "prefill" in (error.detail or "").lower()

"""Any OpenAI-compatible chat completions server as a source of turns.

How a turn is asked for is in `messages`, what is answered is read in `stream`, what errors mean is in
`dialects.errors`, and the connection is in `dialects.exchange`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import msgspec
import structlog

from inference_worker.dialects import exchange
from inference_worker.dialects.asking_again import or_plain
from inference_worker.dialects.connections import Connections
from inference_worker.dialects.continuing import ContinuingProvider
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.exchange import ModelServer
from inference_worker.dialects.openai.kept import CallFields
from inference_worker.dialects.openai.messages import request_body
from inference_worker.dialects.openai.stream import Answer
from inference_worker.dialects.toolless import only_asks, refuses_tools
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from mesh.configuration.provider_tables import OpenAIProviderConfiguration

log = structlog.get_logger("inference_worker.dialects.openai.client")


def open_client(configuration: OpenAIProviderConfiguration, key: str | None, connections_max: int) -> Connections:
    """The connections to one server."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return exchange.open_client(configuration, headers, connections_max)


class OpenAIProvider(ContinuingProvider):
    """One server. `name` is the one that the configuration gives it."""

    def __init__(
        self, name: str, configuration: OpenAIProviderConfiguration, connections: Connections, key: str | None = None
    ) -> None:
        self.name = name
        super().__init__(configuration, continues=configuration.continue_prefix is not None)
        self._configuration = configuration
        self._without_tools: set[str] = set()
        """Models that have refused tools as such."""
        url = f"{configuration.base_url.rstrip('/')}/chat/completions"
        self._server = ModelServer(url, configuration, connections, key)

    async def _ask(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        plain = msgspec.structs.replace(turn, tools=()) if only_asks(turn) else turn
        is_known = turn.model in self._without_tools

        def takes_no_tools(error: ProviderFailed) -> bool:
            if is_known or plain is turn or not refuses_tools(error):
                return False
            self._without_tools.add(turn.model)
            log.warning("model.takes_no_tools", provider=self.name, model=turn.model)
            return True

        said = or_plain(self._exchange(plain if is_known else turn), lambda: self._exchange(plain), takes_no_tools)
        async with aclosing(said) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _exchange(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        answer = AnswerWithFields()
        async with aclosing(self._server.stream(turn, partial(request_body, self._configuration), answer)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield answer.finished()


class AnswerWithFields(Answer):
    """An answer, and what came with its calls to go back with them."""

    def __init__(self) -> None:
        super().__init__()
        self._fields = CallFields()

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one line. Raises `ProviderFailed` as `Answer` does."""
        chunks = super().take(payload)
        self._fields.look_at(payload)
        return chunks

    def finished(self) -> Finished:
        """The end of the answer. Raises `ProviderFailed` if it has none."""
        finished = super().finished()
        return msgspec.structs.replace(finished, blocks=self._fields.blocks(finished.calls))

"""Any OpenAI-compatible chat completions server as a source of turns.

How a conversation is told to it is here; what it answers is read in `stream`, what its errors mean is in
`dialects.errors`, and the connection is in `dialects.exchange`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from contracts.journal.parts import ToolCall
from contracts.tasks import Message
from inference_worker.dialects import exchange
from inference_worker.dialects.call_names import CallIds
from inference_worker.dialects.exchange import ModelServer
from inference_worker.dialects.openai.stream import Answer
from inference_worker.models.chunks import Chunk, TurnInput
from mesh.configuration.mesh_toml import OpenAIProviderConfiguration
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer

_OPENAI_HOST = "api.openai.com"


def open_client(configuration: OpenAIProviderConfiguration, key: str | None, connections_max: int) -> httpx.AsyncClient:
    """The connections to one server."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return exchange.open_client(configuration, headers, connections_max)


class OpenAIProvider:
    """One server. `name` is the one that the configuration gives it."""

    def __init__(
        self, name: str, configuration: OpenAIProviderConfiguration, client: httpx.AsyncClient, key: str | None = None
    ) -> None:
        self.name = name
        self.continues_prefix = configuration.continue_prefix is not None
        self._configuration = configuration
        url = f"{configuration.base_url.rstrip('/')}/chat/completions"
        self._server = ModelServer(url, configuration, client, key)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `ProviderFailed`. Closing the generator closes the connection at once."""
        answer = Answer()
        async with aclosing(self._server.stream(request_body(self._configuration, turn), answer)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield answer.finished()


def request_body(configuration: OpenAIProviderConfiguration, turn: TurnInput) -> dict[str, Any]:
    """The body of the request."""
    body: dict[str, Any] = {
        "model": turn.model,
        "messages": rendered(turn.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if turn.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in turn.tools
        ]
    if turn.max_output_tokens is not None:
        body[_max_tokens_field(configuration)] = turn.max_output_tokens
    if turn.temperature is not None:
        body["temperature"] = turn.temperature
    if turn.prefix and configuration.continue_prefix == "vllm":
        body["messages"].append({"role": "assistant", "content": turn.prefix})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def rendered(entries: Sequence[ConversationItem]) -> list[dict[str, Any]]:
    """A conversation as chat completions have it. That an answer is an error is in its text; they have no field."""
    messages: list[dict[str, Any]] = []
    ids = CallIds()
    for entry in entries:
        match entry:
            case Message(role, content):
                messages.append({"role": role, "content": content})
            case AssistantTurn(text, calls):
                message: dict[str, Any] = {"role": "assistant", "content": text}
                if calls:
                    # Null and no empty text, which some refuse beside calls.
                    message["content"] = text or None
                    message["tool_calls"] = [_tool_call(call, ids) for call in calls]
                messages.append(message)
            case ToolAnswer(call, content=content):
                messages.append({"role": "tool", "tool_call_id": ids.of_answer(call), "content": content})
    return messages


def _tool_call(call: ToolCall, ids: CallIds) -> dict[str, Any]:
    arguments = msgspec.json.encode(call.arguments).decode()
    return {
        "id": ids.of_call(call.call),
        "type": "function",
        "function": {"name": call.tool, "arguments": arguments},
    }


def _max_tokens_field(configuration: OpenAIProviderConfiguration) -> str:
    """OpenAI's newer models refuse the old name; many other servers ignore the new one."""
    if configuration.max_tokens_field is not None:
        return configuration.max_tokens_field
    return "max_completion_tokens" if urlsplit(configuration.base_url).hostname == _OPENAI_HOST else "max_tokens"

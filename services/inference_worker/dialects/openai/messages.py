"""A turn as chat completions are asked for it. Pure.

Servers differ in what they refuse: the settings of a provider say it, and of some hosts it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contracts.journal.parts import ToolCall
from contracts.tasks import Message
from inference_worker.dialects.call_names import CallIds
from inference_worker.dialects.openai.kept import fields_of_calls, fields_of_message
from inference_worker.dialects.tool_schemas import shown
from inference_worker.models.chunks import TurnInput
from mesh.configuration.provider_tables import OpenAIProviderConfiguration, ReasoningField, Roles
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer

_OPENAI_HOST = "api.openai.com"
_STRICT_HOSTS = frozenset({"api.mistral.ai"})
_REASONING_HOSTS = frozenset({"api.deepseek.com", "api.moonshot.ai", "api.moonshot.cn"})
NO_REASONING = " "
"""Stands for the reasoning of a turn that has none: no text at all is refused as if the field were missing."""
BETWEEN = "Understood."
"""What an assistant says between a tool's answer and a user's message, where these may not be neighbours."""
OPENING = "(no text)"
"""What a user says before a conversation that begins with the assistant, where it may not."""

ChatMessage = dict[str, Any]


def request_body(configuration: OpenAIProviderConfiguration, turn: TurnInput) -> dict[str, Any]:
    """The body of the request."""
    body: dict[str, Any] = {
        "model": turn.model,
        "messages": in_roles(rendered(turn.messages, reasoning_field(configuration)), roles(configuration)),
        "stream": True,
    }
    if configuration.stream_options:
        body["stream_options"] = {"include_usage": True}
    body |= _tools(configuration, turn)
    limit = _max_tokens_field(configuration)
    if turn.max_output_tokens is not None and limit != "none":
        body[limit] = turn.max_output_tokens
    if turn.temperature is not None:
        body["temperature"] = turn.temperature
    if turn.prefix and configuration.continue_prefix == "vllm":
        body["messages"].append({"role": "assistant", "content": turn.prefix})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def rendered(entries: Sequence[ConversationItem], reasoning: ReasoningField = "none") -> list[ChatMessage]:
    """A conversation as chat completions have it. That an answer is an error is in its text; they have no field."""
    messages: list[ChatMessage] = []
    images: list[ChatMessage] = []
    ids = CallIds()
    for entry in entries:
        if images and not isinstance(entry, ToolAnswer):
            # Behind all answers of a turn, which no other message may part.
            messages.append({"role": "user", "content": images})
            images = []
        match entry:
            # An assistant that says nothing is refused by Mistral and Kimi: a turn may have thought alone.
            case Message("assistant", text) | AssistantTurn(text, ()) if not text.strip():
                pass
            case Message(role, content):
                messages.append({"role": role, "content": content})
            case AssistantTurn():
                messages.append(_of_turn(entry, ids, reasoning))
            case ToolAnswer(call, content=content):
                messages.append({"role": "tool", "tool_call_id": ids.of_answer(call), "content": content})
                images += _images(entry, ids)
    return [*messages, {"role": "user", "content": images}] if images else messages


def _images(answer: ToolAnswer, ids: CallIds) -> list[dict[str, Any]]:
    """The images of an answer as parts of a user's message: one of a tool takes text alone."""
    if not answer.images:
        return []
    said = f"The images that {answer.tool} returned, call {ids.of_answer(answer.call)}:"
    urls = (f"data:{image.media_type};base64,{image.data}" for image in answer.images)
    return [{"type": "text", "text": said}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def in_roles(messages: list[ChatMessage], wanted: Roles) -> list[ChatMessage]:
    """The messages in an order of roles that the server takes."""
    if wanted == "free":
        return messages
    if wanted == "strict":
        system = [message for message in messages if message["role"] == "system"]
        others = [message for message in messages if message["role"] != "system"]
        first = [{"role": "user", "content": OPENING}] if others and others[0]["role"] == "assistant" else []
        messages = [*system, *first, *others]
    ordered: list[ChatMessage] = []
    for message in messages:
        before = ordered[-1] if ordered else {"role": None}
        if message["role"] == before["role"] != "tool" and "tool_calls" not in before:
            ordered[-1] = _merged(before, message)
            continue
        if wanted == "strict" and message["role"] == "user" and before["role"] == "tool":
            ordered.append({"role": "assistant", "content": BETWEEN})
        ordered.append(message)
    return ordered


def _merged(first: ChatMessage, second: ChatMessage) -> ChatMessage:
    contents = [each["content"] for each in (first, second) if each["content"]]
    if any(isinstance(content, list) for content in contents):
        return {**first, **second, "content": [part for content in contents for part in _parts(content)]}
    return {**first, **second, "content": "\n\n".join(contents) or second["content"]}


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _of_turn(turn: AssistantTurn, ids: CallIds, reasoning: ReasoningField) -> ChatMessage:
    message: ChatMessage = {"role": "assistant", "content": turn.text}
    if not turn.calls:
        return message
    # Null and no empty text, which some refuse beside calls.
    message["content"] = turn.text or None
    if reasoning != "none":
        message[reasoning] = turn.reasoning or NO_REASONING
    blocks = turn.blocks or ()
    fields = fields_of_calls(blocks)
    message["tool_calls"] = [_tool_call(call, ids) | fields.get(index, {}) for index, call in enumerate(turn.calls)]
    return message | fields_of_message(blocks)


def _tool_call(call: ToolCall, ids: CallIds) -> dict[str, Any]:
    arguments = msgspec.json.encode(call.arguments).decode()
    return {
        "id": ids.of_call(call.call),
        "type": "function",
        "function": {"name": call.tool, "arguments": arguments},
    }


def _tools(configuration: OpenAIProviderConfiguration, turn: TurnInput) -> dict[str, Any]:
    if not turn.tools:
        return {}
    body: dict[str, Any] = {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": shown(tool.parameters),
                },
            }
            for tool in turn.tools
        ]
    }
    if configuration.tool_choice is not None:
        body["tool_choice"] = configuration.tool_choice
    if configuration.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = configuration.parallel_tool_calls
    return body


def _max_tokens_field(configuration: OpenAIProviderConfiguration) -> str:
    """OpenAI's newer models refuse the old name; many other servers ignore the new one."""
    if configuration.max_tokens_field is not None:
        return configuration.max_tokens_field
    return "max_completion_tokens" if configuration.host == _OPENAI_HOST else "max_tokens"


def reasoning_field(configuration: OpenAIProviderConfiguration) -> ReasoningField:
    """Where a turn's reasoning goes back: those who do not want it refuse a field that they don't know."""
    if configuration.reasoning_field is not None:
        return configuration.reasoning_field
    return "reasoning_content" if configuration.host in _REASONING_HOSTS else "none"


def roles(configuration: OpenAIProviderConfiguration) -> Roles:
    """Which order of roles the server takes."""
    if configuration.roles is not None:
        return configuration.roles
    return "strict" if configuration.host in _STRICT_HOSTS else "merged"

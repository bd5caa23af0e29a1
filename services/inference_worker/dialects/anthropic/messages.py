"""A turn as Anthropic's Messages API is asked for it. Pure.

What this API demands, and others don't: a limit of output; instructions apart from the messages; messages that take
turns; the results of calls at the beginning of the very next message; tools, if anything is told of calls; signed
thinking as it was, and where it was; no empty text, and no white space at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.tasks import Message
from inference_worker.dialects.call_names import CallIds
from inference_worker.dialects.tool_schemas import shown
from inference_worker.models.chunks import TurnInput
from mesh.configuration.provider_tables import AnthropicProviderConfiguration
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from mesh.task.images import Image

NO_TEXT = "(no text)"
"""Stands for blank text of the user, which is refused."""
THINKING_TYPES = frozenset({"thinking", "redacted_thinking"})

Block = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What is posted. `cut` is the white space that stood at its end: the model may say it once more."""

    body: dict[str, Any]
    cut: str = ""


def request_of(configuration: AnthropicProviderConfiguration, turn: TurnInput) -> Request:
    """The first request of a turn."""
    system, messages = rendered(turn.messages)
    if turn.prefix:
        _add(messages, "assistant", [_text(turn.prefix)])
    cut = _trim(messages)
    limit = turn.max_output_tokens or configuration.max_output_tokens
    body: dict[str, Any] = {"model": turn.model, "max_tokens": limit, "messages": messages, "stream": True}
    if system:
        body["system"] = system
    body |= _tools(configuration, turn, messages)
    budget = configuration.thinking_budget_tokens
    if budget is not None and budget < limit and _may_think(messages):
        # With thinking the temperature must be the API's own.
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif turn.temperature is not None:
        body["temperature"] = turn.temperature
    return Request(body, cut)


def resumed(body: dict[str, Any], said: list[Block], output_tokens: int) -> Request:
    """The request behind a pause: the same, with what was said since as it was, and what is left of the limit."""
    messages = [{**message, "content": [*message["content"]]} for message in body["messages"]]
    _add(messages, "assistant", [dict(block) for block in said])
    cut = _trim(messages)
    budget = body.get("thinking", {}).get("budget_tokens", 0)
    left = max(body["max_tokens"] - output_tokens, budget + 1)
    return Request({**body, "messages": messages, "max_tokens": left}, cut)


def rendered(entries: Sequence[ConversationItem]) -> tuple[str, list[dict[str, Any]]]:
    """The instructions, and the messages: neighbours of one role are one message."""
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    ids = CallIds()
    for entry in entries:
        match entry:
            case Message("system", content):
                system.append(content)
            case Message("assistant", content):
                _add(messages, "assistant", [_text(content)] if content.strip() else [])
            case Message(role, content):
                # Not left out: the model would go on with what it has said itself.
                _add(messages, role, [_text(content if content.strip() else NO_TEXT)])
            case AssistantTurn():
                _add(messages, "assistant", _of_turn(entry, ids))
            case ToolAnswer():
                _add(messages, "user", [_result(entry, ids)])
    return "\n\n".join(said for said in system if said.strip()), messages


def _of_turn(turn: AssistantTurn, ids: CallIds) -> list[Block]:
    """A turn's blocks: its thinking as it was and where it was, its text and its calls around it."""
    calls = iter([_tool_use(call.tool, ids.of_call(call.call), call.arguments) for call in turn.calls])
    blocks: list[Block] = []
    at = 0
    for kept in turn.blocks or ():
        match kept:
            case {"type": "text", "characters": int(characters)}:
                blocks.append(_text(turn.text[at : at + characters]))
                at += characters
            case {"type": "tool_use"}:
                blocks += _next(calls)
            case {"type": kind} if kind in THINKING_TYPES:
                blocks.append(dict(kept))
    blocks += [_text(turn.text[at:]), *calls]
    spoken = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
    # Thinking alone is no message.
    return spoken if any(block["type"] not in THINKING_TYPES for block in spoken) else []


def _result(answer: ToolAnswer, ids: CallIds) -> Block:
    result: Block = {"type": "tool_result", "tool_use_id": ids.of_answer(answer.call)}
    # Empty text is refused, an answer without any is not.
    said = answer.content if answer.content.strip() else None
    if answer.images:
        result["content"] = [*([_text(said)] if said else []), *(_image(image) for image in answer.images)]
    elif said:
        result["content"] = said
    return result | ({"is_error": True} if answer.is_error else {})


def _image(image: Image) -> Block:
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}


def _next(calls: Iterator[Block]) -> list[Block]:
    call = next(calls, None)
    return [] if call is None else [call]


def _tool_use(name: str, identifier: str, arguments: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": identifier, "name": name, "input": arguments}


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _add(messages: list[dict[str, Any]], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += blocks
    else:
        messages.append({"role": role, "content": blocks})


def _trim(messages: list[dict[str, Any]]) -> str:
    """Take away the white space at the end of what the assistant has begun: the API refuses it. Returns it."""
    cut = ""
    while messages and messages[-1]["role"] == "assistant":
        content = messages[-1]["content"]
        if content[-1]["type"] != "text":
            break
        text = content[-1]["text"]
        kept = text.rstrip()
        cut = text[len(kept) :] + cut
        if kept:
            content[-1] = {**content[-1], "text": kept}
            break
        content.pop()
        if not content:
            messages.pop()
    return cut


def _tools(
    configuration: AnthropicProviderConfiguration, turn: TurnInput, messages: list[dict[str, Any]]
) -> dict[str, Any]:
    if turn.tools:
        tools = [
            {"name": tool.name, "description": tool.description, "input_schema": shown(tool.parameters)}
            for tool in turn.tools
        ]
        return {"tools": tools} | _tool_choice(configuration)
    told = {block["name"] for message in messages for block in message["content"] if block["type"] == "tool_use"}
    if not told:
        return {}
    # Calls of an earlier task, whose tools this one does not have: they must be declared all the same.
    return {
        "tools": [{"name": name, "input_schema": {"type": "object"}} for name in sorted(told)],
        "tool_choice": {"type": "none"},
    }


def _tool_choice(configuration: AnthropicProviderConfiguration) -> dict[str, Any]:
    """What OpenAI's wire says in two fields."""
    if configuration.tool_choice is None and configuration.parallel_tool_calls is None:
        return {}
    choice: dict[str, Any] = {"type": "any" if configuration.tool_choice == "required" else "auto"}
    if configuration.parallel_tool_calls is not None:
        choice["disable_parallel_tool_use"] = not configuration.parallel_tool_calls
    return {"tool_choice": choice}


def _may_think(messages: list[dict[str, Any]]) -> bool:
    """Whether the API lets the model think here.

    Not in what the assistant has begun; and where results of calls are brought back, only if the message that the
    calls began with begins with its thinking. It does not if that was another model's, or too long to be kept.
    """
    at = len(messages) - 1
    if at < 0 or messages[at]["role"] != "user":
        return False
    while at >= 1 and any(block["type"] == "tool_result" for block in messages[at]["content"]):
        at -= 2
    calls = at + 1
    return calls >= len(messages) or messages[calls]["content"][0]["type"] in THINKING_TYPES

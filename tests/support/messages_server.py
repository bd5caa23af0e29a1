"""Anthropic's Messages streams, event by event, for the model server of a test's own."""

from __future__ import annotations

import json
from typing import Any

from tests.support.model_server import Behaviour, Exchange

Events = list[dict[str, Any]]

PING: dict[str, Any] = {"type": "ping"}


def started(input_tokens: int = 9, **usage: Any) -> dict[str, Any]:
    """The first event; one token of the output is in it already."""
    counts = {"input_tokens": input_tokens, "output_tokens": 1, **usage}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    return {"type": "message_start", "message": {**message, "usage": counts}}


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> Events:
    """A content block, from its beginning to its end."""
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *parts: str) -> Events:
    """A block of text."""
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": part} for part in parts))


def tool_use(index: int, name: str, *parts: str) -> Events:
    """A call, its input in parts; the first is empty, as the real one's is."""
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", *parts)]
    return block(index, {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}}, *deltas)


def thinking(index: int, signature: str, *parts: str) -> Events:
    """Signed thinking."""
    deltas = [{"type": "thinking_delta", "thinking": part} for part in parts]
    signed = {"type": "signature_delta", "signature": signature}
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas, signed)


def ended(stop_reason: str, output_tokens: int, **usage: Any) -> Events:
    """The last events."""
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    counts = {"output_tokens": output_tokens, **usage}
    return [{"type": "message_delta", "delta": delta, "usage": counts}, {"type": "message_stop"}]


def failed(kind: str, message: str = "") -> dict[str, Any]:
    """An error, in mid-stream or as a body."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def encoded(events: Events) -> bytes:
    """The events as they are sent, each with its name."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in events)


def saying(*events: Events | dict[str, Any]) -> Behaviour:
    """A server that answers with these events, and that is all."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin()
        for each in events:
            await exchange.send(encoded(each if isinstance(each, list) else [each]))
        await exchange.end()

    return behave


hello = saying(started(), PING, text(0, "Hel", "lo"), ended("end_turn", 4))

"""Fields that came with calls, and must return with them. Pure.

There are two: `extra_content` of a call, with Gemini's thought signatures; and `reasoning_details` of the message,
with those of whatever model is behind OpenRouter, and MiniMax's thinking. They go into the turn's `blocks`, which only
the provider sees again that gave them, as `{"type": "call_fields", "index", "extra_content"}`, of the call of that
index in the turn, and as `{"type": "message_fields", "reasoning_details"}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inference_worker.dialects.call_names import CALLS_MAX
from inference_worker.models.chunks import RequestedCall

CALL_BLOCK = "call_fields"
CALL_FIELD = "extra_content"
MESSAGE_BLOCK = "message_fields"
MESSAGE_FIELD = "reasoning_details"
DETAILS_MAX = 1024
"""Most details of one answer."""
KEPT_BYTES_MAX = 160 * 1024
"""Most of a turn's fields that are kept, as JSON: they have to fit into one event beside the rest.

Of what is longer nothing is kept: half of it would be refused.
"""


class CallFields:
    """The fields of an answer's calls, as its chunks tell them."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._details: list[dict[str, Any]] = []

    def look_at(self, payload: bytes) -> None:
        """Look at one chunk; whatever is odd in it is for others to say."""
        if b'"tool_calls"' not in payload and b'"reasoning_details"' not in payload:
            return
        try:
            chunk = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        match chunk:
            case {"choices": [{"delta": dict(delta)}, *_]}:
                calls, details = delta.get("tool_calls"), delta.get(MESSAGE_FIELD)
                for call in calls if isinstance(calls, list) else ():
                    if isinstance(call, dict):
                        self._take(call)
                for detail in details if isinstance(details, list) else ():
                    if isinstance(detail, dict):
                        self._take_detail(detail)

    def blocks(self, calls: Sequence[RequestedCall]) -> list[Any] | None:
        """What is to be kept with these calls; None if there is nothing, or more than can be kept."""
        of_calls: list[Any] = [
            {"type": CALL_BLOCK, "index": index, CALL_FIELD: seen.fields}
            for index, (call, seen) in enumerate(zip(calls, self._calls, strict=False))
            # By name too: whoever gathered the calls may have told them apart by more than is seen here.
            if seen.fields is not None and seen.name == call.name
        ]
        of_message: list[Any] = (
            [{"type": MESSAGE_BLOCK, MESSAGE_FIELD: self._details}] if self._details and calls else []
        )
        fitting = (kept for kept in (of_message + of_calls, of_calls) if _fits(kept))
        return next(fitting, None) or None

    def _take_detail(self, part: dict[str, Any]) -> None:
        """Details come in parts, as text does: those of one index and type are one."""
        last = self._details[-1] if self._details else None
        if last is None or any(last.get(name) != part.get(name) for name in ("type", "index")):
            if len(self._details) < DETAILS_MAX:
                self._details.append(dict(part))
            return
        for name, value in part.items():
            before = last.get(name)
            grows = name in ("text", "summary", "data") and isinstance(before, str) and isinstance(value, str)
            if grows or value is not None:
                last[name] = f"{before}{value}" if grows else value

    def _take(self, part: dict[str, Any]) -> None:
        identifier, index, function, fields = (part.get(name) for name in ("id", "index", "function", CALL_FIELD))
        call = self._of(identifier, index)
        if call is None:
            return
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            call.name = call.name or function["name"]
        if isinstance(fields, dict):
            call.fields = {**(call.fields or {}), **fields}

    def _of(self, identifier: Any, index: Any) -> _Call | None:
        """The call of an id; without one, the last of that index."""
        for call in reversed(self._calls):
            if call.identifier == identifier if identifier else index is None or call.index == index:
                return call
        if len(self._calls) >= CALLS_MAX:
            return None
        self._calls.append(_Call(identifier, index))
        return self._calls[-1]


class _Call:
    def __init__(self, identifier: Any, index: Any) -> None:
        self.identifier = identifier
        self.index = index
        self.name = ""
        self.fields: dict[str, Any] | None = None


def fields_of_calls(blocks: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """What goes back with each call of a turn, by its index."""
    found: dict[int, dict[str, Any]] = {}
    for block in blocks:
        match block:
            case {"type": "call_fields", "index": int(index), "extra_content": dict(fields)}:
                found[index] = {CALL_FIELD: fields}
    return found


def fields_of_message(blocks: Sequence[Any]) -> dict[str, Any]:
    """What goes back beside the calls of a turn."""
    for block in blocks:
        match block:
            case {"type": "message_fields", "reasoning_details": list(details)}:
                return {MESSAGE_FIELD: details}
    return {}


def _fits(blocks: list[Any]) -> bool:
    return len(msgspec.json.encode(blocks)) <= KEPT_BYTES_MAX

"""Fields that came with a call, and must return with it: Gemini's thought signatures, in `extra_content`. Pure.

They go into the turn's `blocks`, which only the provider sees again that gave them. A block is
`{"type": "call_fields", "index", "extra_content"}`: of the call of that index in the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inference_worker.dialects.call_names import CALLS_MAX
from inference_worker.models.chunks import RequestedCall

BLOCK = "call_fields"
FIELD = "extra_content"
KEPT_BYTES_MAX = 160 * 1024
"""Most of a turn's fields that are kept, as JSON: they have to fit into one event beside the rest.

Of what is longer nothing is kept: half of it would be refused.
"""


class CallFields:
    """The fields of an answer's calls, as its chunks tell them."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def look_at(self, payload: bytes) -> None:
        """Look at one chunk; whatever is odd in it is for others to say."""
        if b'"tool_calls"' not in payload:
            return
        try:
            chunk = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        match chunk:
            case {"choices": [{"delta": {"tool_calls": list(calls)}}, *_]}:
                for call in calls:
                    if isinstance(call, dict):
                        self._take(call)

    def blocks(self, calls: Sequence[RequestedCall]) -> list[Any] | None:
        """What is to be kept with these calls; None if there is nothing, or more than can be kept."""
        kept = [
            {"type": BLOCK, "index": index, FIELD: seen.fields}
            for index, (call, seen) in enumerate(zip(calls, self._calls, strict=False))
            # By name too: whoever gathered the calls may have told them apart by more than is seen here.
            if seen.fields is not None and seen.name == call.name
        ]
        return kept if kept and len(msgspec.json.encode(kept)) <= KEPT_BYTES_MAX else None

    def _take(self, part: dict[str, Any]) -> None:
        identifier, index, function, fields = (part.get(name) for name in ("id", "index", "function", FIELD))
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


def fields_of(blocks: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """What goes back with each call of a turn, by its index."""
    found: dict[int, dict[str, Any]] = {}
    for block in blocks:
        match block:
            case {"type": "call_fields", "index": int(index), "extra_content": dict(fields)}:
                found[index] = fields
    return found

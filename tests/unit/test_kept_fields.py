"""What comes with calls on OpenAI's wire and must return: bounded, and no oddity in it is a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_worker.dialects.openai import kept
from inference_worker.dialects.openai.kept import CallFields, fields_of_calls, fields_of_message
from inference_worker.models.chunks import RequestedCall

ADD = RequestedCall("add", {})


def fields_from(*deltas: Any) -> CallFields:
    fields = CallFields()
    for delta in deltas:
        fields.look_at(json.dumps({"choices": [{"delta": delta}]}).encode())
    return fields


def asked(index: Any, identifier: Any, name: str = "add", **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": identifier, "function": {"name": name}, **more}]}


@pytest.mark.parametrize(
    ("deltas", "indexes"),
    [
        ([asked(0, "a", extra_content={"x": 1})], [0]),
        ([asked(0, "a"), asked(1, "b", extra_content={"x": 1})], [1]),
        # Each call whole under one index; parts without an id; none at all.
        ([asked(0, "a"), asked(0, "b", extra_content={"x": 1})], [1]),
        ([asked(0, "a"), asked(0, None, extra_content={"x": 1}), asked(1, "b")], [0]),
        ([asked(None, None), asked(None, None, extra_content={"x": 1})], [0]),
        # What was told apart otherwise gets nothing of another call.
        ([asked(0, "a", name="other", extra_content={"x": 1})], None),
        ([asked(0, "a", extra_content="odd")], None),
        ([{"tool_calls": ["odd", None, {"extra_content": {"x": 1}}]}], None),
        ([{"tool_calls": "odd", "reasoning_details": 7}], None),
    ],
)
def test_each_call_keeps_its_own(deltas: list[Any], indexes: list[int] | None) -> None:
    blocks = fields_from(*deltas).blocks([ADD, ADD])
    of_calls = [{"type": "call_fields", "index": index, "extra_content": {"x": 1}} for index in indexes or ()]
    assert blocks == (of_calls or None)


@pytest.mark.parametrize("payload", [b'"tool_calls"', b"[" * 100_000 + b'"tool_calls"', b'\xff"tool_calls"', b"[DONE]"])
def test_what_is_no_chunk_is_for_others_to_say(payload: bytes) -> None:
    fields = CallFields()
    fields.look_at(payload)
    assert fields.blocks([ADD]) is None


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES_MAX", 200)
    details = {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "x" * 300}]}
    call = asked(0, "a", extra_content={"x": 1})
    of_call = [{"type": "call_fields", "index": 0, "extra_content": {"x": 1}}]
    assert fields_from(details, call).blocks([ADD]) == of_call, "the calls' own first"
    assert fields_from(asked(0, "a", extra_content={"x": "x" * 300})).blocks([ADD]) is None
    many = [{"reasoning_details": [{"type": "t", "index": index}]} for index in range(kept.DETAILS_MAX + 9)]
    monkeypatch.setattr(kept, "KEPT_BYTES_MAX", 10**6)
    blocks = fields_from(*many).blocks([ADD]) or []
    assert len(fields_of_message(blocks)["reasoning_details"]) == kept.DETAILS_MAX


def test_blocks_of_other_kinds_mean_nothing_here() -> None:
    blocks = [{"type": "thinking", "signature": "x"}, "odd", 7, {"type": "call_fields", "index": "0"}]
    assert (fields_of_calls(blocks), fields_of_message(blocks)) == ({}, {})

"""What strangers send, at random: only `ProviderFailed` comes of it, what is kept can be stored, and is bounded."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.tasks import TaskRequest
from inference_worker.dialects import event_lines
from inference_worker.dialects.anthropic import stream as anthropic
from inference_worker.dialects.error_bodies import parse_error_body
from inference_worker.dialects.errors import DETAIL_CHARACTERS_MAX, ProviderFailed, failure_of_status
from inference_worker.dialects.event_lines import LineReader
from inference_worker.dialects.gathering import JsonScanner
from inference_worker.dialects.openai import stream as openai
from inference_worker.models.chunks import Chunk, Finished
from inference_worker.turn.calls import decided_calls

EXAMPLES = 400
"""Of each test: some seconds, all together."""
HELD_BYTES_MAX = 64 * 1024 * 1024
CASES = Path(__file__).parents[1] / "integration" / "dialects"
KINDS = ("openai", "anthropic")

TEXTS = st.one_of(
    st.sampled_from(
        ["", "stop", "tool_calls", "end_turn", "text_delta", "add", '{"a"', ": 1}", "{}", "\ud83d", "\ude00"]
    ),
    st.text(st.characters(exclude_categories=[]), max_size=8),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def seeds(kind: str) -> list[list[Any]]:
    """The streams of all cases of a kind: their chunks, and lines as they are."""
    streams = [json.loads(path.read_text())["sends"] for path in sorted((CASES / kind).glob("*.json"))]
    return [[each["data"] if isinstance(each, dict) else each for each in sends] for sends in streams]


SEEDS = {kind: seeds(kind) for kind in KINDS}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside of one."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """The value with another one at a place."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], other)
    return copy


@st.composite
def streams(draw: st.DrawFn, kind: str) -> list[bytes]:
    """A stream of a case with some values changed, some chunks left out, told twice, or in another order."""
    chunks = list(draw(st.sampled_from(SEEDS[kind])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(chunks) - 1))
        chunks[at] = changed(chunks[at], draw(st.sampled_from(list(places(chunks[at])))), draw(VALUES))
    chunks = draw(st.one_of(st.just(chunks), st.permutations(chunks), st.lists(st.sampled_from(chunks), max_size=8)))
    return [
        each.removeprefix("data: ").encode("utf-8", "surrogatepass")
        if isinstance(each, str)
        else json.dumps(each).encode()
        for each in chunks
    ]


def answered(kind: str, payloads: Iterator[bytes] | list[bytes]) -> list[Chunk]:
    """What a stream comes to. Raises `ProviderFailed`."""
    answer = openai.Answer() if kind == "openai" else anthropic.Answer(" \n")
    out: list[Chunk] = []
    for payload in payloads:
        out += answer.take(payload)
        assert answer.over in (True, False)
    out += answer.end()
    out.append(answer.finished() if isinstance(answer, openai.Answer) else anthropic.finished([answer]))
    if isinstance(answer, anthropic.Answer) and anthropic.is_paused(answer):
        msgspec.json.encode(anthropic.said(answer))
    return out


def holds(kind: str, payloads: list[bytes]) -> None:
    """Whatever is sent: a failure that is declared, or an answer that can be stored."""
    try:
        out = answered(kind, payloads)
    except ProviderFailed as failed:
        msgspec.json.encode(failed.info())
        return
    msgspec.json.encode([msgspec.to_builtins(chunk) for chunk in out])
    finished = out[-1]
    assert isinstance(finished, Finished)
    msgspec.json.encode(decided_calls(1, finished.calls, {}, TaskRequest(input="hi")))
    assert min(finished.usage.input_tokens, finished.usage.output_tokens) >= 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES)
@given(st.data())
def test_a_stream_that_is_changed_at_random_is_an_answer_or_a_failure(kind: str, data: st.DataObject) -> None:
    holds(kind, data.draw(streams(kind)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES)
@given(payloads=st.lists(st.one_of(st.binary(max_size=40), VALUES.map(lambda value: json.dumps(value).encode()))))
def test_rubbish_is_a_failure_or_passed_over(kind: str, payloads: list[bytes]) -> None:
    holds(kind, payloads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"choices":' * 100_000, b'{"type":' * 2_000 + b"1" + b"}" * 2_000])
def test_depth_is_a_failure(kind: str, deep: bytes) -> None:
    with pytest.raises(ProviderFailed):
        answered(kind, [deep])


@settings(max_examples=EXAMPLES)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"data: {}", b"\n", b"\r", b"\xef\xbb\xbf", b":"]))))
def test_lines_are_the_same_however_the_bytes_come(parts: list[bytes]) -> None:
    cut, whole = LineReader(), LineReader()
    found = [payload for part in parts for payload in cut.feed(part)]
    assert found + cut.end() == whole.feed(b"".join(parts)) + whole.end()


@settings(max_examples=EXAMPLES)
@given(VALUES.filter(lambda value: isinstance(value, dict | list)), st.lists(st.integers(0, 200), max_size=5))
def test_arguments_are_whole_with_their_last_brace_however_they_are_cut(value: Any, cuts: list[int]) -> None:
    text = json.dumps(value)
    places = [0, *sorted(min(cut, len(text) - 1) for cut in cuts), len(text) - 1]
    scanner = JsonScanner()
    for begin, end in pairwise(places):
        scanner.feed(text[begin:end])
    assert not scanner.whole
    scanner.feed(text[-1])
    assert scanner.whole


@settings(max_examples=EXAMPLES)
@given(
    st.integers(300, 599),
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]), st.text(max_size=8)
    ),
    st.one_of(
        st.binary(max_size=60),
        VALUES.map(lambda value: json.dumps(value).encode()),
        VALUES.map(lambda value: json.dumps({"error": value, "detail": value, "message": value}).encode()),
    ),
)
@example(503, {"retry-after": "0\x1f", "retry-after-ms": "0\x1f"}, b"")
@example(503, {"retry-after": "0\x1f"}, b"")
def test_a_body_of_an_error_is_read_whatever_it_is(status: int, headers: dict[str, str], body: bytes) -> None:
    parse_error_body(body)
    failed = failure_of_status(status, headers, body, datetime.now(UTC))
    info = msgspec.json.decode(msgspec.json.encode(failed.info()))
    assert len(info.get("detail") or "") <= DETAIL_CHARACTERS_MAX


# Memory


def chat(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}).encode()


def fragment(number: int, **more: Any) -> bytes:
    return chat({"tool_calls": [{"index": 0, "id": "c1", **more}]}, None if number % 2 else "stop")


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


LONG = "x" * 10_000
ENDLESS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "text": ("openai", lambda number: chat({"content": LONG})),
    "halves": ("openai", lambda number: chat({"content": "\ud83d", "reasoning": "\ude00\ud83d"})),
    "ids": ("openai", lambda number: fragment(number, id=f"{LONG}{number}", function={"name": "add"})),
    "ids of one call": ("openai", lambda number: fragment(number, id=f"{LONG}{number}")),
    "indexes": ("openai", lambda number: fragment(number, index=number)),
    "names": ("openai", lambda number: fragment(number, function={"name": f"{LONG}{number}"})),
    "arguments": ("openai", lambda number: fragment(number, function={"name": "add", "arguments": LONG})),
    "empty arguments": ("openai", lambda number: fragment(number, function={"name": "add", "arguments": " "})),
    "finish_reasons": ("openai", lambda number: chat({}, f"{LONG}{number}")),
    "thinking": (
        "anthropic",
        lambda number: (
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": LONG})
            if number
            else event("content_block_start", index=0, content_block={"type": "thinking", "x": LONG})
        ),
    ),
    "blocks": ("anthropic", lambda number: event("content_block_start", index=number, content_block={"x": LONG})),
    "one block": (
        "anthropic",
        lambda number: event("content_block_start", index=0, content_block={"type": "tool_use"}),
    ),
    "stop_reasons": ("anthropic", lambda number: event("message_delta", delta={"stop_reason": f"{LONG}{number}"})),
    "pings": ("anthropic", lambda number: event("ping", index=number, x=LONG)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_stream_is_held_in_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, payload_of = ENDLESS[name]
    monkeypatch.setattr(anthropic, "ANSWER_BYTES_MAX", HELD_BYTES_MAX // 8)
    answer = openai.Answer() if kind == "openai" else anthropic.Answer()
    tracemalloc.start()
    try:
        with contextlib.suppress(ProviderFailed):
            for number in islice(count(), 3_000):
                answer.take(payload_of(number))
    finally:
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < HELD_BYTES_MAX // 4


def test_a_line_without_an_end_is_held_in_bounds() -> None:
    reader = LineReader()
    fits = event_lines.LINE_BYTES_MAX // len(LONG)
    assert [reader.feed(LONG.encode()) for _ in range(fits)] == [[]] * fits
    with pytest.raises(ProviderFailed, match="a line of more than"):
        reader.feed(LONG.encode())

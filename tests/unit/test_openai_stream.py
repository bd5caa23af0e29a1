"""The chunks of a chat completions stream, in the dialects of several servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contracts.journal.parts import Usage
from inference_worker.dialects import gathering
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.openai.stream import Answer
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta
from tests.support.model_server import chunk, usage


def taken(*chunks: object) -> tuple[Answer, list[Chunk]]:
    """An answer that has taken these chunks, and what they gave."""
    answer = Answer()
    out = [each for one in chunks for each in answer.take(one if isinstance(one, bytes) else json.dumps(one).encode())]
    return answer, out


def call(index: int | None, identifier: str | None, name: str | None, arguments: object) -> dict[str, Any]:
    delta: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return delta | ({} if index is None else {"index": index}) | ({} if identifier is None else {"id": identifier})


def calls(*deltas: dict[str, Any], finish_reason: str = "tool_calls") -> list[RequestedCall]:
    """What deltas of calls, each in a chunk of its own, come to."""
    answer, out = taken(*(chunk({"tool_calls": [delta]}) for delta in deltas), chunk({}, finish_reason))
    assert (out, answer.begun) == ([], True)
    return list(answer.finished().calls)


# Deltas


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({}, []),
        ({"role": "assistant", "content": ""}, []),
        ({"role": "assistant", "content": None}, []),
        ({"content": "a"}, [TextDelta("a")]),
        ({"reasoning": "a"}, [ReasoningDelta("a")]),
        ({"reasoning_content": "a"}, [ReasoningDelta("a")]),
        ({"reasoning": "a", "reasoning_content": "a"}, [ReasoningDelta("a")]),
        ({"reasoning": None, "reasoning_content": "a", "content": None}, [ReasoningDelta("a")]),
        ({"reasoning": "a", "content": "b"}, [ReasoningDelta("a"), TextDelta("b")]),
        ({"refusal": "I can't.", "content": None}, [TextDelta("I can't.")]),
        ({"content": "a", "tool_calls": None, "annotations": [], "unknown": {"x": 1}}, [TextDelta("a")]),
    ],
)
def test_a_delta_gives_text_and_reasoning(delta: dict[str, Any], expected: list[Chunk]) -> None:
    answer, out = taken(chunk(delta))
    assert out == expected
    assert answer.begun is bool(expected)


@pytest.mark.parametrize(
    "nothing",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [], "prompt_filter_results": [{}]},
        {"choices": [{"index": 0, "finish_reason": None, "delta": None}]},
        {"choices": [{"index": 0, "finish_reason": ""}]},
        {"choices": [{"index": 1, "delta": {"content": "another answer"}, "finish_reason": "stop"}]},
        {"choices": [], "error": None},
    ],
)
def test_chunks_without_anything_new_are_passed_over(nothing: dict[str, Any]) -> None:
    answer, out = taken(nothing)
    assert (out, answer.begun, answer.finish_reason, answer.done) == ([], False, None, False)


def test_nothing_counts_after_done() -> None:
    answer, out = taken(chunk({}, "stop"), b"[DONE]", chunk({"content": "a"}), b"rubbish")
    assert (answer.done, out) == (True, [])


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("model_length", "length"),
        ("max_tokens", "length"),
        ("eos", "stop"),
    ],
)
def test_reasons_to_finish(reason: str, expected: str) -> None:
    answer, _ = taken(chunk({"content": "a"}, reason))
    assert answer.finished().finish_reason == expected


@pytest.mark.parametrize(("reason", "code"), [(None, "provider-disconnected"), ("abort", "provider-error")])
def test_an_end_that_is_none_is_a_failure(reason: str | None, code: str) -> None:
    answer, _ = taken(chunk({"content": "a"}, reason))
    with pytest.raises(ProviderFailed) as failed:
        answer.finished()
    assert (failed.value.code, failed.value.retryable) == (code, True)


# Usage

CACHES = {"cached_tokens": 20, "cache_creation_tokens": 5}


def told(**more: object) -> dict[str, object]:
    """A last chunk that tells 30 tokens read and nine put out, and more."""
    return chunk({}, "stop", usage={"prompt_tokens": 30, "completion_tokens": 9, **more})


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk({}, "stop"), usage(3, 4)], Usage(3, 4)),
        ([chunk({}, usage={"prompt_tokens": 3, "completion_tokens": 1}), chunk({}, "stop"), usage(3, 4)], Usage(3, 4)),
        ([chunk({}, "stop", usage=usage(3, 4)["usage"]), chunk({}, usage=None)], Usage(3, 4)),
        (
            [chunk({}, "stop", timings={"cache_n": 1, "prompt_n": 2, "predicted_n": 4.0 and 4})],
            Usage(3, 4, cached_tokens=1),
        ),
        ([chunk({}, "stop", timings={"prompt_n": 9, "predicted_n": 9}), usage(3, 4)], Usage(3, 4)),
        ([usage(3, 4), chunk({}, "stop", timings={"prompt_n": 9, "predicted_n": 9})], Usage(3, 4)),
        ([chunk({}, "stop", usage={"prompt_tokens": None, "completion_tokens": -1})], Usage(0, 0)),
        ([chunk({}, "stop")], Usage(0, 0)),
        (
            [told(prompt_tokens_details={"cached_tokens": 20}, completion_tokens_details={"reasoning_tokens": 3})],
            Usage(30, 9, cached_tokens=20, reasoning_tokens=3),
        ),
        ([told(prompt_tokens_details=None, completion_tokens_details={"reasoning_tokens": 0})], Usage(30, 9)),
        (
            [told(prompt_tokens_details={"cached_tokens": 20, "cache_write_tokens": 5})],
            Usage(30, 9, **CACHES),
        ),  # OpenRouter
        ([told(prompt_cache_hit_tokens=20, prompt_cache_miss_tokens=10)], Usage(30, 9, cached_tokens=20)),  # DeepSeek
        ([told(cached_tokens=20)], Usage(30, 9, cached_tokens=20)),  # Moonshot
        # xAI counts reasoning beside the rest, as its total shows; all others within it.
        (
            [told(completion_tokens_details={"reasoning_tokens": 4}, total_tokens=43)],
            Usage(30, 13, reasoning_tokens=4),
        ),
        (
            [told(completion_tokens_details={"reasoning_tokens": 4}, total_tokens=39)],
            Usage(30, 9, reasoning_tokens=4),
        ),
        ([told(prompt_tokens_details=[1], completion_tokens_details={"reasoning_tokens": "many"})], Usage(30, 9)),
    ],
)
def test_usage_is_taken_where_it_stands(chunks: list[object], expected: Usage) -> None:
    answer, _ = taken(*chunks)
    assert answer.finished() == Finished(finish_reason="stop", usage=expected)


# Errors


@pytest.mark.parametrize(
    ("payload", "code", "retryable"),
    [
        ({"error": {"message": "x", "code": 500}}, "provider-error", True),
        ({"error": {"message": "x", "type": "BadRequestError", "code": 400}}, "provider-bad-request", False),
        ({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}, "provider-bad-request", False),
        ({"error": "text"}, "provider-error", True),
        ({"id": 7, "choices": [], "error": {"code": 503}}, "provider-overloaded", True),
        ({"choices": "none"}, "provider-error", True),
        ({"code": 429, "message": "x"}, "rate-limited", True),
        (b"not JSON", "provider-error", True),
        (b"\xff", "provider-error", True),
        (b"[" * 100_000, "provider-error", True),
        ([1], "provider-error", True),
    ],
)
def test_what_is_no_chunk_is_a_failure(payload: object, code: str, retryable: bool) -> None:
    with pytest.raises(ProviderFailed) as failed:
        taken(payload)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)


# Calls

ONE = RequestedCall("add", {"a": 1})
TWO = RequestedCall("add", {"b": 2})


def test_calls_are_gathered_by_index() -> None:
    assert calls(
        call(0, "c1", "add", ""),
        call(1, "c2", "add", ""),
        call(0, None, None, '{"a"'),
        call(1, None, None, '{"b": 2}'),
        call(0, None, None, ": 1}"),
    ) == [ONE, TWO]


def test_calls_may_come_whole_and_together() -> None:
    """Ollama's do."""
    both = [call(0, "c1", "add", '{"a": 1}'), call(1, "c2", "add", '{"b": 2}')]
    answer, _ = taken(chunk({"content": "", "tool_calls": both}), chunk({}, "tool_calls"))
    assert list(answer.finished().calls) == [ONE, TWO]


def test_a_new_id_is_a_new_call_whatever_the_index() -> None:
    assert calls(call(0, "c1", "add", '{"a": 1}'), call(0, "c2", "add", '{"b": 2}')) == [ONE, TWO]


def test_an_id_that_is_repeated_or_empty_is_no_new_call() -> None:
    assert calls(call(0, "c1", "add", '{"a"'), call(0, "c1", "add", ": "), call(0, "", None, "1}")) == [ONE]


def test_calls_without_an_index_are_told_apart_by_id() -> None:
    assert calls(
        call(None, "c1", "add", '{"a"'), call(None, None, None, ": 1}"), call(None, "c2", "add", '{"b": 2}')
    ) == [ONE, TWO]


def test_arguments_may_be_absent_or_an_object() -> None:
    assert calls(call(0, "c1", "add", {"a": 1})) == [ONE]
    assert calls(call(0, "c1", "now", None)) == [RequestedCall("now", {})]


@pytest.mark.parametrize("finish_reason", ["tool_calls", "length", "stop"])
@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "1", "nothing"])
def test_arguments_are_checked_whatever_finish_reason_says(arguments: str, finish_reason: str) -> None:
    """vLLM may call a truncated call finished. The model is told, and the other calls are as good as before."""
    whole, cut = calls(call(0, "c1", "add", '{"a": 1}'), call(1, "c2", "add", arguments), finish_reason=finish_reason)
    assert whole == ONE
    assert (cut.name, cut.arguments) == ("add", None)
    assert cut.error


def test_a_last_call_without_arguments_is_cut_off_where_the_output_is() -> None:
    first, last = calls(call(0, "c1", "now", ""), call(1, "c2", "now", ""), finish_reason="length")
    assert first == RequestedCall("now", {}), "the model has gone on to the next one"
    assert last == RequestedCall("now", None, "the call was cut off")


@pytest.mark.parametrize(
    ("said", "expected"),
    [("tool_calls", "tool_calls"), ("function_call", "tool_calls"), ("stop", "tool_calls"), ("length", "length")],
)
def test_an_answer_with_calls_finishes_with_them_whatever_the_server_calls_it(said: str, expected: str) -> None:
    answer, _ = taken(chunk({"content": "Well."}), chunk({"tool_calls": [call(0, "c1", "add", '{"a": 1}')]}, said))
    assert answer.finished() == Finished(finish_reason=expected, usage=Usage(), calls=(ONE,))  # type: ignore[arg-type]  # a word


def test_calls_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "CALLS_MAX", 1)
    monkeypatch.setattr(gathering, "ARGUMENTS_BYTES_MAX", 15)
    monkeypatch.setattr(gathering, "INDEXES_MAX", 1)
    with pytest.raises(ProviderFailed, match="more than 1 calls"):
        calls(call(0, "c1", "add", ""), call(1, "c2", "add", ""))
    with pytest.raises(ProviderFailed, match="too long"):
        calls(call(0, "c1", "add", "x" * 6), call(0, None, None, "ü" * 3))
    with pytest.raises(ProviderFailed, match="more than 1 indexes"):
        calls(call(0, "c1", "add", ""), call(1, "c1", None, ""))

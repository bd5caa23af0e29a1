"""The answer of a chat completions stream, chunk by chunk. Pure.

The dialects differ (shared facts are in the OpenAI API reference; the rest was seen in vLLM, llama.cpp, Ollama and
others), and this reads all of them: thinking is `reasoning` or `reasoning_content`, or a part of `content`; `content`
may be null, a text or a list; the usage comes in a chunk of its own, in the last one, in each, or not at all; `[DONE]`
may come without a blank line, or never. What is not needed is not looked at.

The end is `[DONE]`, or a finish_reason behind which nothing comes. There are servers that send one in each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from contracts.journal.parts import FinishReason, Usage
from inference_worker.dialects.errors import ProviderFailed, failure_in_stream
from inference_worker.dialects.exchange import DONE
from inference_worker.dialects.gathering import Fragment, GatheredCalls
from inference_worker.dialects.reading import (
    Halves,
    count_of,
    decoded,
    index_of,
    list_of,
    mended_bytes,
    object_of,
    text_of,
)
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, TextDelta

_Kind = Literal["text", "refusal", "reasoning"]

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "model_length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "sensitive": "content_filter",
}
"""What is not here, and no failure, means that the model was done in some way of its own: stop."""
_FAILED_REASONS = frozenset(
    {"error", "abort", "network_error", "insufficient_system_resource", "malformed_function_call"}
)
_SAID_ELSEWHERE = ("message", "text")
"""Where a choice has its text in whole completions, and in those of the old form."""
_UNREADABLE = "nothing in the stream can be read as an answer: is base_url a chat completions server's?"


class Answer:
    """What a server has said so far.

    `begun`: the first token has come. `heard`: how many chunks it was. `finish_reason`: why the model stopped, in the
    server's last words on it. `done`: nothing more will come.
    """

    def __init__(self) -> None:
        self.begun = False
        self.heard = 0
        self.done = False
        self.finish_reason: str | None = None
        self._usage = Usage()
        self._calls = GatheredCalls()
        self._text, self._reasoning = Halves(), Halves()
        self._has_text = False
        self._is_refused = False
        self._has_delta = False
        # A delta had something that is not known, or of another type than it should be.
        self._has_unread = False
        # The model has gone on behind its last finish_reason; and it has done so at least once, so that a
        # finish_reason of this server is an end only where the stream ends, too.
        self._goes_on = self._finishes_early = False
        # A chunk, and one that said something, came without a finish_reason: so not each has one here.
        self._began_openly = self._spoke_openly = False
        self._is_trusted = False

    @property
    def over(self) -> bool:
        """The model has finished, whatever comes of the connection; only its usage may be missing."""
        return self.finish_reason is not None and self._is_trusted and not self._finishes_early

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one line. Raises `ProviderFailed` for an error in mid-stream, and for rubbish."""
        if self.done or payload == DONE:
            self.done = True
            return []
        chunk = _chunk_of(payload)
        self.heard += 1
        self._count(chunk)
        out: list[Chunk] = []
        for each in list_of(chunk.get("choices")):
            choice = object_of(each)
            if index_of(choice.get("index")) in (None, 0):  # Only one answer is asked for.
                self._take_choice(choice, out)
        return out

    def end(self) -> list[Chunk]:
        """What was held back for more to come."""
        reasoning, text = self._reasoning.end(), self._text.end()
        return [*([ReasoningDelta(reasoning)] if reasoning else ()), *([TextDelta(text)] if text else ())]

    def finished(self) -> Finished:
        """The end of the answer. Raises `ProviderFailed` if it has none, and if nothing of it can be read."""
        reason = (self.finish_reason or "").lower()
        if reason in _FAILED_REASONS:
            raise ProviderFailed("provider-error", f"the server gave up: {reason}", retryable=True)
        is_ended = (reason and not self._goes_on) or (self.done and (self._has_text or self._calls))
        if not is_ended:
            raise ProviderFailed("provider-disconnected", "the stream ended without a finish_reason", retryable=True)
        if not self.begun and (self._has_unread or not self._has_delta):
            raise ProviderFailed("provider-error", _UNREADABLE, retryable=True)
        finish_reason = _FINISH_REASONS.get(reason, "stop")
        if self._is_refused and finish_reason == "stop":
            finish_reason = "content_filter"
        # Behind the last word on why the model stopped, or without any, nobody knows whether the last call is whole.
        cut_off = finish_reason in ("length", "content_filter") or self._goes_on or not reason
        calls = self._calls.requested(cut_off=cut_off)
        if finish_reason == "tool_calls" and not calls and not self._has_text:
            raise ProviderFailed("provider-error", "the model called a tool, and no call came", retryable=True)
        if calls and finish_reason == "stop":
            finish_reason = "tool_calls"  # Some say so of any answer that is whole.
        return Finished(finish_reason=finish_reason, usage=self._usage, calls=calls)

    def _take_choice(self, choice: dict[str, Any], out: list[Chunk]) -> None:
        delta = choice.get("delta")
        says_more = False
        if isinstance(delta, dict):
            self._has_delta = True
            says_more = self._take_delta(delta, out)
        elif not self._has_delta and any(choice.get(field) for field in _SAID_ELSEWHERE):
            raise ProviderFailed("provider-error", _UNREADABLE)
        if says_more and self.finish_reason is not None:
            self._goes_on = self._finishes_early = True
        reason = text_of(choice.get("finish_reason"))
        if reason:
            self.finish_reason = reason
            self._goes_on = False
            self._is_trusted = self._spoke_openly or (self._began_openly and not says_more)
        else:
            self._began_openly = True
            self._spoke_openly = self._spoke_openly or says_more

    def _take_delta(self, delta: dict[str, Any], out: list[Chunk]) -> bool:
        """Take what is new; whether there is anything."""
        parts = list(_parts(delta))
        for kind, text in parts:
            is_reasoning = kind == "reasoning"
            self._has_text = self._has_text or not is_reasoning
            self._is_refused = self._is_refused or kind == "refusal"
            whole = (self._reasoning if is_reasoning else self._text).join(text)
            if whole:
                out.append(ReasoningDelta(whole) if is_reasoning else TextDelta(whole))
        fragments = _fragments(delta)
        for fragment in fragments:
            self._calls.take(fragment)
        says_more = bool(parts or fragments)
        self.begun = self.begun or says_more
        if not says_more and any(value for field, value in delta.items() if field != "role"):
            self._has_unread = True
        return says_more

    @property
    def usage(self) -> Usage:
        """What the request has used, as far as the server has told."""
        return self._usage

    def _count(self, chunk: dict[str, Any]) -> None:
        """The last count stands: some servers send one in each chunk, or null in all but one."""
        usage, timings = object_of(chunk.get("usage")), object_of(chunk.get("timings"))
        if usage:
            self._usage = _usage_of(usage)
        elif timings and self._usage == Usage():
            # llama.cpp's own count: what it read of the prompt, what it had of it, what it generated.
            had = _number(timings, "cache_n")
            self._usage = Usage(
                input_tokens=_number(timings, "prompt_n") + had,
                output_tokens=_number(timings, "predicted_n"),
                cached_tokens=had or msgspec.UNSET,
            )


def _usage_of(told: dict[str, Any]) -> Usage:
    """A count as OpenAI's API reference has it, and as others tell the same.

    What came from the cache: DeepSeek has `prompt_cache_hit_tokens`, Moonshot `cached_tokens` beside the rest. What
    went there: OpenRouter has `cache_write_tokens` among the details. xAI counts reasoning beside `completion_tokens`,
    which `total_tokens` shows; for all others it is a part of them.
    """
    of_prompt = object_of(told.get("prompt_tokens_details"))
    of_completion = object_of(told.get("completion_tokens_details"))
    prompt, completion = _number(told, "prompt_tokens"), _number(told, "completion_tokens")
    reasoning = _number(of_completion, "reasoning_tokens")
    if reasoning and _number(told, "total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    cached = _number(of_prompt, "cached_tokens") or _number(told, "prompt_cache_hit_tokens")
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=cached or _number(told, "cached_tokens") or msgspec.UNSET,
        cache_creation_tokens=_number(of_prompt, "cache_write_tokens") or msgspec.UNSET,
        reasoning_tokens=reasoning or msgspec.UNSET,
    )


def _chunk_of(payload: bytes) -> dict[str, Any]:
    """A chunk of a completion. Raises `ProviderFailed` for an error, in whatever form, and for what is neither."""
    try:
        chunk = decoded(payload)
    except ValueError:
        raise ProviderFailed("provider-error", "a chunk is not JSON", retryable=True) from None
    choices = object_of(chunk).get("choices")
    if not isinstance(chunk, dict) or not isinstance(choices, list | None):
        raise ProviderFailed("provider-error", "a chunk is of an unknown form", retryable=True)
    # Beside choices, a message would be anything; without them only errors have one.
    is_error = chunk.get("error") or chunk.get("object") == "error"
    if is_error or (choices is None and chunk.get("message") is not None):
        raise failure_in_stream(decoded(mended_bytes(payload)))
    return chunk


def _parts(delta: dict[str, Any]) -> Iterator[tuple[_Kind, str]]:
    """The texts of a delta, in order, none of them empty."""
    reasoning = [*_texts(delta.get("reasoning"), "reasoning")] or [*_texts(delta.get("reasoning_content"), "reasoning")]
    yield from reasoning  # Where both are there they are the same.
    text = [*_texts(delta.get("content"), "text")]
    yield from text or _texts(delta.get("refusal"), "refusal")


def _texts(value: Any, kind: _Kind) -> Iterator[tuple[_Kind, str]]:
    """The texts of a field: it is one, or a part, or a list of parts, some of which are thinking."""
    if isinstance(value, str):
        if value:
            yield kind, value
        return
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            yield from _texts(part, kind)
        elif isinstance(part, dict):
            yield from _texts(text_of(part.get("text")), kind)
            yield from _texts(text_of(part.get("refusal")), "refusal")
            thinking = part.get("thinking")
            for each in thinking if isinstance(thinking, list) else [thinking]:
                yield from _texts(text_of(each) or text_of(object_of(each).get("text")), "reasoning")


def _fragments(delta: dict[str, Any]) -> list[Fragment]:
    """The fragments of calls in a delta. A `function_call` is one of the old form, which knows one call alone."""
    calls = delta.get("tool_calls")
    fragments = [each for each in (calls if isinstance(calls, list) else [calls]) if isinstance(each, dict)]
    if not fragments and isinstance(delta.get("function_call"), dict):
        fragments = [{"function": delta["function_call"]}]
    return [Fragment.of(each) for each in fragments]


def _number(counts: dict[str, Any], field: str) -> int:
    return max(0, count_of(counts.get(field)) or 0)

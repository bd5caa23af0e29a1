"""The answer of a chat completions stream, chunk by chunk. Pure.

The dialects differ (shared facts are in the OpenAI API reference; the rest was seen in vLLM, llama.cpp and Ollama), and
this reads all of them: thinking is `reasoning` or `reasoning_content`; `content` may be null; the usage comes in a
chunk of its own, in the last one, in each, or not at all; `[DONE]` may come without a blank line, or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from contracts.journal.parts import FinishReason, Usage
from inference_worker.dialects.call_names import ARGUMENTS_BYTES_MAX, CALLS_MAX, requested_call
from inference_worker.dialects.errors import ProviderFailed, failure_in_stream
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta

_DONE = b"[DONE]"
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "model_length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""What is not here, and no failure, means that the model was done in some way of its own: stop."""
_FAILED_REASONS = frozenset({"error", "abort"})


class FunctionDelta(msgspec.Struct):
    """A part of a call's function."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class ToolCallDelta(msgspec.Struct):
    """A part of a call."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    """What is new."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class Choice(msgspec.Struct):
    """One of the answers; only one is asked for."""

    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class ChunkUsage(msgspec.Struct):
    """Tokens, as the server counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class LlamaTimings(msgspec.Struct):
    """llama.cpp's own count: what it read of the prompt, what it had of it, what it generated."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class CompletionChunk(msgspec.Struct):
    """`chat.completion.chunk`, as far as it is read."""

    object: str | None = None
    choices: list[Choice] | None = None
    usage: ChunkUsage | None = None
    timings: LlamaTimings | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    message: msgspec.Raw | None = None
    """Only errors have one here."""

    @property
    def is_error(self) -> bool:
        """Whether it is an error, in whatever form."""
        if self.choices is None and self.message is not None:
            return True
        return self.object == "error" or bytes(self.error) not in (b"null", b"{}", b'""')


_chunks = msgspec.json.Decoder(CompletionChunk)


class Answer:
    """What a server has said so far.

    `begun`: the first token has come. `heard`: how many chunks it was. `finish_reason`: why the model stopped, in the
    server's words; None as long as it has not. `done`: nothing more will come.
    """

    def __init__(self) -> None:
        self.begun = False
        self.heard = 0
        self.done = False
        self.finish_reason: str | None = None
        self._usage = Usage()
        self._calls: list[_Call] = []
        self._arguments_bytes = 0

    @property
    def over(self) -> bool:
        """The model has finished; only its usage may be missing."""
        return self.finish_reason is not None

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one line. Raises `ProviderFailed` for an error in mid-stream, and for rubbish."""
        if self.done or payload == _DONE:
            self.done = True
            return []
        try:
            chunk = _chunks.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _failure_of_rubbish(payload) from None
        if chunk.is_error:
            raise failure_in_stream(msgspec.json.decode(payload))
        self.heard += 1
        self._count(chunk)
        out: list[Chunk] = []
        for choice in chunk.choices or ():
            if choice.index != 0:
                continue
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        return out

    def finished(self) -> Finished:
        """The end of the answer. Raises `ProviderFailed` if it has none."""
        reason = self.finish_reason
        if reason is None:
            raise ProviderFailed("provider-disconnected", "the stream ended without a finish_reason", retryable=True)
        if reason in _FAILED_REASONS:
            raise ProviderFailed("provider-error", f"the server gave up: {reason}", retryable=True)
        calls = tuple(self._requested())
        finish_reason = _FINISH_REASONS.get(reason, "stop")
        if calls and finish_reason == "stop":
            finish_reason = "tool_calls"  # Some say so of any answer that is whole.
        return Finished(finish_reason=finish_reason, usage=self._usage, calls=calls)

    def _requested(self) -> Iterator[RequestedCall]:
        """The calls asked for, in order. Only the last one can be cut off."""
        cut_off = _FINISH_REASONS.get(self.finish_reason or "") == "length"
        for call in self._calls:
            yield requested_call(call.name, "".join(call.arguments), cut_off=cut_off and call is self._calls[-1])

    def _take_delta(self, delta: Delta, out: list[Chunk]) -> None:
        reasoning = delta.reasoning or delta.reasoning_content  # where both are there they are the same
        if reasoning:
            out.append(ReasoningDelta(reasoning))
        text = delta.content or delta.refusal
        if text:
            out.append(TextDelta(text))
        for call in delta.tool_calls or ():
            self._take_call(call)
        self.begun = self.begun or bool(out or delta.tool_calls)

    def _take_call(self, delta: ToolCallDelta) -> None:
        """Calls are told apart by index; but a new id is a new call (Ollama's older ones all have index 0)."""
        call = next((each for each in reversed(self._calls) if delta.index is None or each.index == delta.index), None)
        if call is None or (delta.id and call.id and delta.id != call.id):
            if len(self._calls) >= CALLS_MAX:
                raise ProviderFailed("provider-error", f"more than {CALLS_MAX} calls in one answer", retryable=True)
            call = _Call(delta.index)
            self._calls.append(call)
        call.id = call.id or delta.id or ""
        if delta.function is None:
            return
        call.name = call.name or delta.function.name or ""
        arguments = delta.function.arguments or ""
        part = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        self._arguments_bytes += len(part.encode())
        if self._arguments_bytes > ARGUMENTS_BYTES_MAX:
            raise ProviderFailed("provider-error", "the arguments of the calls are too long", retryable=True)
        call.arguments.append(part)

    def _count(self, chunk: CompletionChunk) -> None:
        """The last count stands: some servers send one in each chunk, or null in all but one."""
        if chunk.usage is not None:
            prompt, completion = chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0
        elif chunk.timings is not None and self._usage == Usage():
            prompt, completion = chunk.timings.prompt_n + chunk.timings.cache_n, chunk.timings.predicted_n
        else:
            return
        self._usage = Usage(input_tokens=max(0, prompt), output_tokens=max(0, completion))


class _Call:
    """A call that is being gathered."""

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


def _failure_of_rubbish(payload: bytes) -> ProviderFailed:
    """What is no chunk: an error whose other fields are of another form, or nothing that can be read."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ProviderFailed("provider-error", "a chunk is not JSON", retryable=True)
    if isinstance(value, dict) and (value.get("error") or "choices" not in value):
        return failure_in_stream(value)
    return ProviderFailed("provider-error", "a chunk is of an unknown form", retryable=True)

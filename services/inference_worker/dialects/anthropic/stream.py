"""The answer of a Messages stream, event by event. Pure.

An answer is a list of content blocks, each begun, continued by deltas, and ended; what it comes to is in
`message_delta`, and `message_stop` is the end. `ping` may come anywhere, and events and blocks of kinds that are not
known yet as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contracts.journal.parts import FinishReason, Usage
from inference_worker.dialects.anthropic.messages import Block
from inference_worker.dialects.call_names import ARGUMENTS_BYTES_MAX, CALLS_MAX, requested_call
from inference_worker.dialects.errors import ProviderFailed, failure_in_stream
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta

BLOCKS_MAX = 1024
"""Most content blocks of one answer."""
KEPT_BYTES_MAX = 160 * 1024
"""Most of a turn's thinking that is kept to be sent back, as JSON: it has to fit into one event beside the rest.

Of what is longer nothing is kept: half of it would be refused.
"""
PAUSED = "pause_turn"

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""What is not here means that the model was done in some way of its own: stop."""


class MessageUsage(msgspec.Struct):
    """Tokens so far, as the server counted them. What it read from its cache is not in `input_tokens`."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class StartedMessage(msgspec.Struct):
    """The message, as far as it is read at its beginning."""

    usage: MessageUsage | None = None


class Delta(msgspec.Struct):
    """What is new, of a block or of the message."""

    type: str | None = None
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    signature: str = ""
    stop_reason: str | None = None


class StreamEvent(msgspec.Struct):
    """An event, as far as it is read."""

    type: str | None = None
    index: int = 0
    message: StartedMessage | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: MessageUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class GatheredBlock:
    """A content block that is being gathered. `spoken`: characters of its text that were handed on."""

    def __init__(self, begun: Block) -> None:
        self.kind = begun.get("type")
        self.spoken = 0
        self._begun = begun
        self._text: list[str] = []
        self._json: list[str] = []
        self._thinking: list[str] = []
        self._signature = ""

    def take(self, delta: Delta) -> None:
        """Take a delta; kinds that are not known change nothing."""
        match delta.type:
            case "text_delta":
                self._text.append(delta.text)
            case "input_json_delta":
                self._json.append(delta.partial_json)
            case "thinking_delta":
                self._thinking.append(delta.thinking)
            case "signature_delta":
                self._signature = delta.signature

    @property
    def arguments(self) -> str:
        """The input of a tool, as JSON text: mostly it is told in parts, and `input` at the beginning is empty."""
        parts = "".join(self._json)
        begun = self._begun.get("input")
        return msgspec.json.encode(begun).decode() if not parts.strip() and begun else parts

    @property
    def name(self) -> str:
        """The name of the tool that is called."""
        name = self._begun.get("name")
        return name if isinstance(name, str) else ""

    def whole(self) -> Block:
        """The block as it would have come in one piece."""
        block = dict(self._begun)
        for field, parts in (("text", self._text), ("thinking", self._thinking)):
            if parts:
                block[field] = f"{block.get(field) or ''}{''.join(parts)}"
        if self._signature:
            block["signature"] = self._signature
        if self._json:
            block["input"] = requested_call(self.name, self.arguments).arguments or {}
        return block


_events = msgspec.json.Decoder(StreamEvent)


class Answer:
    """What a server has said so far, in answer to one request.

    `begun`: the first token has come. `heard`: how many events it was, without pings. `done`: nothing more will come.
    `stop_reason`: why the model stopped; None as long as it has not. `cut`: white space that the request did not end
    with, though the text before does: if the model begins with it, it is not said twice.
    """

    def __init__(self, cut: str = "") -> None:
        self.begun = False
        self.heard = 0
        self.done = False
        self.stop_reason: str | None = None
        self.blocks: dict[int, GatheredBlock] = {}
        self._cut = cut
        self._calls = 0
        self._arguments_bytes = 0
        self._counts: dict[str, int] = {}

    @property
    def over(self) -> bool:
        """The model has finished."""
        return self.stop_reason is not None

    @property
    def usage(self) -> Usage:
        """Tokens of this request; what came from the cache or went there was read too."""
        read = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Usage(
            input_tokens=sum(self._counts.get(name, 0) for name in read),
            output_tokens=self._counts.get("output_tokens", 0),
        )

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one event. Raises `ProviderFailed` for an error in mid-stream, and for rubbish."""
        if self.done:
            return []
        event = _read(payload)
        self.heard += event.type != "ping"
        out: list[Chunk] = []
        match event.type:
            case "message_start" if event.message is not None:
                self._count(event.message.usage)
            case "content_block_start" if event.content_block is not None:
                self._begin(event.index, event.content_block, out)
            case "content_block_delta" if event.delta is not None:
                self._continue(event.index, event.delta, out)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None and event.delta.stop_reason:
                    self.stop_reason = event.delta.stop_reason
            case "message_stop":
                self.done = True
        return out

    def _begin(self, index: int, begun: Block, out: list[Chunk]) -> None:
        if len(self.blocks) >= BLOCKS_MAX:
            raise ProviderFailed("provider-error", f"more than {BLOCKS_MAX} blocks in one answer", retryable=True)
        block = self.blocks[index] = GatheredBlock(begun)
        match begun:
            case {"type": "text", "text": str(text)}:
                self._say(block, text, out)
            case {"type": "tool_use"}:
                self.begun = True
                self._calls += 1
                if self._calls > CALLS_MAX:
                    raise ProviderFailed("provider-error", f"more than {CALLS_MAX} calls in one answer", retryable=True)

    def _continue(self, index: int, delta: Delta, out: list[Chunk]) -> None:
        block = self.blocks.get(index)
        if block is None:
            raise ProviderFailed("provider-error", "a delta of a block that was not begun", retryable=True)
        block.take(delta)
        self.begun = True
        if delta.type == "thinking_delta" and delta.thinking:
            out.append(ReasoningDelta(delta.thinking))
        elif delta.type == "text_delta":
            self._say(block, delta.text, out)
        elif delta.type == "input_json_delta":
            self._arguments_bytes += len(delta.partial_json.encode())
            if self._arguments_bytes > ARGUMENTS_BYTES_MAX:
                raise ProviderFailed("provider-error", "the arguments of the calls are too long", retryable=True)

    def _say(self, block: GatheredBlock, text: str, out: list[Chunk]) -> None:
        same = 0
        while same < min(len(text), len(self._cut)) and text[same] == self._cut[same]:
            same += 1
        text, self._cut = text[same:], "" if same < len(text) else self._cut[same:]
        if text:
            self.begun = True
            block.spoken += len(text)
            out.append(TextDelta(text))

    def _count(self, usage: MessageUsage | None) -> None:
        """The last count of each kind stands: those of the output are of all so far."""
        for name in () if usage is None else usage.__struct_fields__:
            count = getattr(usage, name)
            if count is not None:
                self._counts[name] = max(0, count)


def said(answer: Answer) -> list[Block]:
    """The answer's blocks as they would have come in one piece, to be sent back behind a pause."""
    return [block for gathered in _blocks([answer]) if (block := gathered.whole()).get("text") != ""]


def is_paused(answer: Answer) -> bool:
    """Whether the model wants to be asked once more. One that waits for results of calls does not."""
    return answer.stop_reason == PAUSED and not any(block.kind == "tool_use" for block in answer.blocks.values())


def finished(answers: Sequence[Answer], prefix: str = "") -> Finished:
    """The end of a turn of one answer, or of several with pauses between. Raises `ProviderFailed` if it has none."""
    reason = answers[-1].stop_reason
    if reason is None:
        raise ProviderFailed("provider-disconnected", "the stream ended without a stop_reason", retryable=True)
    finish_reason = _FINISH_REASONS.get(reason, "stop")
    blocks = _blocks(answers)
    calls = tuple(
        _call(block, cut_off=finish_reason == "length" and block is blocks[-1])
        for block in blocks
        if block.kind == "tool_use"
    )
    if calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    usages = [answer.usage for answer in answers]
    return Finished(
        finish_reason=finish_reason,
        usage=Usage(sum(usage.input_tokens for usage in usages), sum(usage.output_tokens for usage in usages)),
        calls=calls,
        blocks=kept_blocks(blocks, len(prefix)),
    )


def kept_blocks(blocks: Sequence[GatheredBlock], prefix_characters: int = 0) -> list[Any] | None:
    """What has to go back as it was, which is signed thinking; None if there is none, or more than can be kept.

    Where it stands between text and calls, these are there as placeholders: the journal has them already.
    """
    kept: list[Any] = [{"type": "text", "characters": prefix_characters}] if prefix_characters else []
    length = 0
    for block in blocks:
        whole = block.whole()
        if block.kind == "redacted_thinking" or (block.kind == "thinking" and whole.get("signature")):
            kept.append(whole)
            length = len(kept)
        elif block.kind == "text" and block.spoken:
            kept.append({"type": "text", "characters": block.spoken})
        elif block.kind == "tool_use":
            kept.append({"type": "tool_use"})
    del kept[length:]
    return kept if kept and len(msgspec.json.encode(kept)) <= KEPT_BYTES_MAX else None


def _blocks(answers: Sequence[Answer]) -> list[GatheredBlock]:
    return [answer.blocks[index] for answer in answers for index in sorted(answer.blocks)]


def _call(block: GatheredBlock, *, cut_off: bool) -> RequestedCall:
    return requested_call(block.name, block.arguments, cut_off=cut_off)


def _read(payload: bytes) -> StreamEvent:
    try:
        event = _events.decode(payload)
    except msgspec.ValidationError:
        raise _failure_of_rubbish(payload) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProviderFailed("provider-error", "an event is not JSON", retryable=True) from None
    if event.type == "error" or bytes(event.error) != b"null":
        raise failure_in_stream(msgspec.json.decode(payload))
    return event


def _failure_of_rubbish(payload: bytes) -> ProviderFailed:
    value = msgspec.json.decode(payload)
    if isinstance(value, dict) and value.get("error"):
        return failure_in_stream(value)
    return ProviderFailed("provider-error", "an event is of an unknown form", retryable=True)

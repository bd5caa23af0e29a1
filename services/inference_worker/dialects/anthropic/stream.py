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
from inference_worker.dialects.gathering import JsonScanner, as_json
from inference_worker.dialects.reading import (
    Halves,
    count_of,
    decoded,
    index_of,
    mended,
    mended_bytes,
    object_of,
    text_of,
)
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta
from mesh.task.budget import total

BLOCKS_MAX = 1024
"""Most content blocks of one answer."""
KEPT_BYTES_MAX = 160 * 1024
"""Most of a turn's thinking that is kept to be sent back, as JSON: it has to fit into one event beside the rest.

Of what is longer nothing is kept: half of it would be refused.
"""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Most of one answer's events: more than any model says, and little enough to be held."""
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
_TEXTS = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}
"""The kinds of deltas, and where their text is."""
_OWNERS = {"text_delta": "text", "input_json_delta": "tool_use", "thinking_delta": "thinking"}
"""Whose each is; blocks of kinds that are not known may have any."""
_KNOWN = frozenset({*_OWNERS.values(), "redacted_thinking"})
_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
"""Tokens so far, as the server counted them. What it read from its cache is not in `input_tokens`."""


class GatheredBlock:
    """A content block that is being gathered.

    `spoken`: characters of its text that were handed on. `is_open`: its end has not come. `is_new`: nothing of it has
    come but its beginning.
    """

    def __init__(self, begun: Block) -> None:
        self.kind = text_of(begun.get("type"))
        self.begun = begun
        self.spoken = 0
        self.is_open = True
        self.is_new = True
        self._scanner = JsonScanner()
        self._text: list[str] = []
        self._json: list[str] = []
        self._thinking: list[str] = []
        self._signature = ""

    def take(self, kind: str, text: str) -> None:
        """Take a delta; kinds that are not known change nothing. Raises `ProviderFailed` for another block's."""
        self.is_new = False
        if _OWNERS.get(kind, self.kind) != self.kind and self.kind in _KNOWN:
            raise ProviderFailed("provider-error", f"a {kind} of a block of another kind", retryable=True)
        match kind:
            case "text_delta":
                self._text.append(text)
            case "input_json_delta":
                if self._scanner.whole and text.lstrip().startswith("{"):
                    raise ProviderFailed("provider-error", "arguments that belong to no call", retryable=True)
                self._scanner.feed(text)
                self._json.append(text)
            case "thinking_delta":
                self._thinking.append(text)
            case "signature_delta":
                self._signature = text

    @property
    def arguments(self) -> str:
        """The input of a tool, as JSON text: mostly it is told in parts, and `input` at the beginning is empty."""
        parts = "".join(self._json)
        begun = self.begun.get("input")
        if parts.strip() or not begun:
            return parts
        return as_json(begun)

    @property
    def name(self) -> str:
        """The name of the tool that is called."""
        return mended(text_of(self.begun.get("name")))

    @property
    def id(self) -> str:
        """The id of the call."""
        return text_of(self.begun.get("id"))

    def whole(self) -> Block:
        """The block as it would have come in one piece."""
        block = dict(self.begun)
        for field, parts in (("text", self._text), ("thinking", self._thinking)):
            if parts:
                block[field] = mended(text_of(block.get(field)) + "".join(parts))
        if self._signature:
            block["signature"] = mended(self._signature)
        if self._json:
            block["input"] = requested_call(self.name, self.arguments).arguments or {}
        return block


class Answer:
    """What a server has said so far, in answer to one request.

    `begun`: the first token has come. `heard`: how many events it was, without pings. `done`: nothing more will come.
    `stop_reason`: why the model stopped, in the server's last words on it. `blocks`: what it has said, in order. `cut`:
    white space that the request did not end with, though the text before does: if the model begins with it, it is not
    said twice.
    """

    def __init__(self, cut: str = "") -> None:
        self.begun = False
        self.heard = 0
        self.done = False
        self.stop_reason: str | None = None
        self.blocks: list[GatheredBlock] = []
        self.has_unread = False
        """There was an event, a block or a delta of a kind that is not known."""
        self.goes_on = False
        """The model has gone on behind its last stop_reason."""
        self._at: dict[int, GatheredBlock] = {}
        self._stops_early = False
        self._cut = cut
        self._text, self._reasoning = Halves(), Halves()
        self._calls = 0
        self._bytes = self._arguments_bytes = 0
        self._counts: dict[str, int] = {}

    @property
    def is_ended(self) -> bool:
        """The model has stopped, and not gone on behind that; or the end of the message has come behind it."""
        return self.stop_reason is not None and (self.done or not self.goes_on)

    @property
    def over(self) -> bool:
        """The model has finished, whatever comes of the connection."""
        return self.is_ended and not self._stops_early and not any(block.is_open for block in self.blocks)

    @property
    def usage(self) -> Usage:
        """Tokens of this request; what came from the cache or went there was read too."""
        created, cached = (self._counts.get(f"cache_{kind}_input_tokens", 0) for kind in ("creation", "read"))
        return Usage(
            input_tokens=self._counts.get("input_tokens", 0) + created + cached,
            output_tokens=self._counts.get("output_tokens", 0),
            cached_tokens=cached or msgspec.UNSET,
            cache_creation_tokens=created or msgspec.UNSET,
        )

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one event. Raises `ProviderFailed` for an error in mid-stream, and for rubbish."""
        if self.done:
            return []
        event = _read(payload)
        self._measure(len(payload))
        kind, index = event.get("type"), index_of(event.get("index"))
        self.heard += kind != "ping"
        out: list[Chunk] = []
        match kind:
            case "message_start":
                message = object_of(event.get("message"))
                self._count(message.get("usage"))
                self.has_unread = self.has_unread or bool(message.get("content"))
            case "content_block_start":
                self._begin(index, object_of(event.get("content_block")), out)
            case "content_block_delta":
                self._continue(index, object_of(event.get("delta")), out)
            case "content_block_stop":
                block = self._block(index)
                if block is not None:
                    block.is_open = False
            case "message_delta":
                self._count(event.get("usage"))
                self._stop(text_of(object_of(event.get("delta")).get("stop_reason")))
            case "message_stop":
                self.done = True
            case "ping":
                pass
            case _:
                self.has_unread = True
        return out

    def end(self) -> list[Chunk]:
        """What was held back for more to come."""
        reasoning, text = self._reasoning.end(), self._text.end()
        return [*([ReasoningDelta(reasoning)] if reasoning else ()), *([TextDelta(text)] if text else ())]

    def _begin(self, index: int | None, begun: Block, out: list[Chunk]) -> None:
        before = self._block(index)
        if before is not None and index is not None and before.is_open and before.is_new and before.begun == begun:
            return  # It was told twice. Any other block under the same index is one more.
        if len(self.blocks) >= BLOCKS_MAX:
            raise ProviderFailed("provider-error", f"more than {BLOCKS_MAX} blocks in one answer", retryable=True)
        block = GatheredBlock(begun)
        self.blocks.append(block)
        self._at[len(self.blocks) - 1 if index is None else index] = block
        match begun:
            case {"type": "text"}:
                self._say(block, text_of(begun.get("text")), out)
            case {"type": "tool_use"}:
                self._go_on()
                self._calls += 1
                self._measure_arguments(block.arguments)
                if self._calls > CALLS_MAX:
                    raise ProviderFailed("provider-error", f"more than {CALLS_MAX} calls in one answer", retryable=True)
            case {"type": "thinking"}:
                self._think(text_of(begun.get("thinking")), out)
            case {"type": "redacted_thinking"}:
                pass
            case _:
                self.has_unread = True

    def _continue(self, index: int | None, delta: dict[str, Any], out: list[Chunk]) -> None:
        block = self._block(index)
        if block is None:
            raise ProviderFailed("provider-error", "a delta of a block that was not begun", retryable=True)
        kind = text_of(delta.get("type"))
        field = _TEXTS.get(kind)
        if field is None:
            self.has_unread = True
            return
        text = text_of(delta.get(field))
        block.take(kind, text)
        if kind == "text_delta":
            self._say(block, text, out)
        elif kind == "input_json_delta":
            self._measure_arguments(text)
            self._go_on()
        elif kind == "thinking_delta":
            self._think(text, out)
        self.begun = True

    def _stop(self, reason: str) -> None:
        if reason:
            self.stop_reason, self.goes_on = reason, False

    def _go_on(self) -> None:
        """The model says more: a stop_reason that has come before was none."""
        self.begun = True
        if self.stop_reason is not None:
            self.goes_on = self._stops_early = True

    def _block(self, index: int | None) -> GatheredBlock | None:
        """The block under an index; the last one if none is told."""
        if index is None:
            return self.blocks[-1] if self.blocks else None
        return self._at.get(index)

    def _say(self, block: GatheredBlock, text: str, out: list[Chunk]) -> None:
        same = 0
        while same < min(len(text), len(self._cut)) and text[same] == self._cut[same]:
            same += 1
        text, self._cut = text[same:], "" if same < len(text) else self._cut[same:]
        if text:
            self._go_on()
            whole = self._text.join(text)
            block.spoken += len(whole)
            out += [TextDelta(whole)] if whole else []

    def _think(self, text: str, out: list[Chunk]) -> None:
        if text:
            self._go_on()
            whole = self._reasoning.join(text)
            out += [ReasoningDelta(whole)] if whole else []

    def _measure(self, size: int) -> None:
        self._bytes += size
        if self._bytes > ANSWER_BYTES_MAX:
            raise ProviderFailed("provider-error", "the answer is too long", retryable=True)

    def _measure_arguments(self, arguments: str) -> None:
        self._arguments_bytes += len(arguments.encode("utf-8", "surrogatepass"))
        if self._arguments_bytes > ARGUMENTS_BYTES_MAX:
            raise ProviderFailed("provider-error", "the arguments of the calls are too long", retryable=True)

    def _count(self, usage: Any) -> None:
        """The last count of each kind stands: those of the output are of all so far."""
        for name in _COUNTS:
            count = count_of(object_of(usage).get(name))
            if count is not None:
                self._counts[name] = max(0, count)


def said(answer: Answer) -> list[Block]:
    """The answer's blocks as they would have come in one piece, to be sent back behind a pause."""
    return [block for gathered in _blocks([answer]) if (block := gathered.whole()).get("text") != ""]


def is_paused(answer: Answer) -> bool:
    """Whether the model wants to be asked once more. One that waits for results of calls does not."""
    is_told = answer.is_ended and answer.stop_reason == PAUSED
    return is_told and not any(block.kind == "tool_use" for block in answer.blocks)


def finished(answers: Sequence[Answer], prefix: str = "") -> Finished:
    """The end of a turn of one answer, or of several with pauses between. Raises `ProviderFailed` if it has none."""
    last = answers[-1]
    if last.stop_reason is None or not last.is_ended:
        raise ProviderFailed("provider-disconnected", "the stream ended without a stop_reason", retryable=True)
    if not any(answer.begun for answer in answers) and last.has_unread:
        raise ProviderFailed("provider-error", "nothing in the stream can be read as an answer", retryable=True)
    finish_reason = _FINISH_REASONS.get(last.stop_reason.lower(), "stop")
    blocks = _blocks(answers)
    # Behind the last word on why the model stopped nobody knows whether the last call is whole.
    calls = _calls(blocks, cut_off=finish_reason in ("length", "content_filter") or last.goes_on)
    if finish_reason == "tool_calls" and not calls and not any(block.spoken for block in blocks):
        raise ProviderFailed("provider-error", "the model called a tool, and no call came", retryable=True)
    if calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    return Finished(
        finish_reason=finish_reason,
        usage=total(answer.usage for answer in answers),
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
    try:
        return kept if kept and len(msgspec.json.encode(kept)) <= KEPT_BYTES_MAX else None
    except RecursionError:
        return None


def _blocks(answers: Sequence[Answer]) -> list[GatheredBlock]:
    return [block for answer in answers for block in answer.blocks]


def _calls(blocks: Sequence[GatheredBlock], *, cut_off: bool) -> tuple[RequestedCall, ...]:
    """The calls, in order. One that was told twice, under its id, is one. `cut_off`: in the last block, maybe."""
    calls: list[tuple[str, RequestedCall]] = []
    for block in blocks:
        if block.kind == "tool_use":
            asked = requested_call(block.name, block.arguments, cut_off=cut_off and block is blocks[-1])
            if not block.id or (block.id, asked) not in calls:
                calls.append((block.id, asked))
    return tuple(asked for _, asked in calls)


def _read(payload: bytes) -> dict[str, Any]:
    """An event. Raises `ProviderFailed` for an error, and for what is none."""
    try:
        event = decoded(payload)
        begun = object_of(object_of(event).get("content_block"))
        if object_of(event).get("type") != "content_block_delta" and begun.get("type") != "tool_use":
            # What goes back as it is must be whole. Of a delta the other half may come; arguments are never changed.
            event = decoded(mended_bytes(payload))
    except ValueError:
        raise ProviderFailed("provider-error", "an event is not JSON", retryable=True) from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str | None):
        raise ProviderFailed("provider-error", "an event is of an unknown form", retryable=True)
    if event.get("type") == "error" or event.get("error"):
        raise failure_in_stream(decoded(mended_bytes(payload)))
    return event

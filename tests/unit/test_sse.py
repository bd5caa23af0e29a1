"""Server-Sent Events: whatever goes into a frame comes out of it, and nothing else does."""

from __future__ import annotations

import itertools
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.api import sse
from contracts.api.sse import Decoder, Frame
from contracts.codec import decode, encode
from contracts.errors import InvalidName, InvalidPayload
from contracts.journal.events import OutputDelta, decode_event
from contracts.journal.heads import EVENT_TYPE_PATTERN

TASK = "01jz8q2v7k3m5n9p0r1s2t4v6w"
NASTY = st.sampled_from(
    ["\r", "\n", "\r\n", "\0", "\u2028", "\u2029", "\x85", "\x0b", "\ufeff", "\U0001f600", "\n\ndata: x\n\n", ":", " "]
)
texts = st.lists(st.text(max_size=8) | NASTY, max_size=8).map("".join)
sequences = st.integers(0, 2**53 - 1)


def delta(text: str) -> OutputDelta:
    """An event that holds this text."""
    return OutputDelta(TASK, TASK, "acme", 3, datetime(2026, 3, 1, tzinfo=UTC), turn=1, text=text)


def fed(stream: bytes, cuts: list[int]) -> list[Frame]:
    """The frames of a stream that arrives cut at these places."""
    decoder = Decoder()
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [frame for start, end in itertools.pairwise(borders) for frame in decoder.feed(stream[start:end])]


cuts_anywhere = st.lists(st.integers(0, 2_000), max_size=40)


@given(written=st.lists(st.tuples(sequences, texts), max_size=4), cuts=cuts_anywhere)
@example(written=[(1, "\r\n\r\n"), (2, "\n")], cuts=list(range(2_000)))
def test_every_text_comes_back_however_the_stream_is_cut(written: list[tuple[int, str]], cuts: list[int]) -> None:
    frames = [sse.frame(sequence, "output.delta", encode(delta(text))) for sequence, text in written]
    stream = sse.retry(1000) + sse.comment("idle").join([b"", *frames])
    received = fed(stream, cuts)
    assert [(int(frame.last_event_id), frame.event_type) for frame in received] == [
        (sequence, "output.delta") for sequence, _ in written
    ]
    events = [decode_event(frame.data.encode()) for frame in received]
    assert events == [delta(text) for _, text in written]


@given(texts, cuts_anywhere, st.sampled_from(["\n", "\r", "\r\n"]), st.integers(0, 4))
def test_white_space_between_tokens_is_no_end_of_the_data(
    text: str, cuts: list[int], line_end: str, indent: int
) -> None:
    value = json.loads(encode(delta(text)))
    payload = json.dumps(value, indent=indent).replace("\n", line_end).encode()
    (frame,) = fed(sse.frame(1, "output.delta", payload), cuts)
    assert decode(frame.data.encode(), OutputDelta) == delta(text)


@given(st.binary(max_size=200), st.none() | sequences)
def test_no_payload_makes_a_second_frame_or_another_field(payload: bytes, sequence: int | None) -> None:
    """Even bytes that are no JSON at all stay inside of their one line of data."""
    framed = sse.frame(sequence, "output.delta", payload)
    expected = ["event: output.delta", f"data: {_shown(payload)}", "", ""]
    lines = re.split(r"\r\n|\r|\n", framed.decode("utf-8", "replace"))
    assert lines == ([] if sequence is None else [f"id: {sequence}"]) + expected
    (frame,) = Decoder().feed(framed)
    assert frame == Frame("" if sequence is None else str(sequence), "output.delta", _shown(payload))


def _shown(payload: bytes) -> str:
    return payload.replace(b"\r", b" ").replace(b"\n", b" ").decode("utf-8", "replace")


@given(st.text(max_size=40) | st.from_regex(re.compile(EVENT_TYPE_PATTERN), fullmatch=True))
def test_only_event_types_name_a_frame(event_type: str) -> None:
    if re.fullmatch(EVENT_TYPE_PATTERN, event_type):
        (frame,) = Decoder().feed(sse.frame(1, event_type, b"{}"))
        assert frame.event_type == event_type
    else:
        with pytest.raises(InvalidName):
            sse.frame(1, event_type, b"{}")


@given(texts, cuts_anywhere)
def test_a_comment_is_never_an_event(text: str, cuts: list[int]) -> None:
    assert fed(sse.comment(text) + b"data: x\n\n", cuts) == [Frame("", "message", "x")]


def test_comments_and_retry_are_these_bytes() -> None:
    assert sse.comment("idle") == b": idle\n\n"
    assert sse.comment("a\r\nb") == b": a  b\n\n"
    assert sse.retry(sse.RETRY_MILLISECONDS) == b"retry: 1000\n"
    with pytest.raises(ValueError, match="less than 0"):
        sse.retry(-1)


@given(
    st.lists(
        st.sampled_from(["id: 7", "id", "id: a\0", "event: x", "data: y", "data", ":", "", "retry: 5"]), max_size=20
    )
)
def test_chunks_change_nothing(lines: list[str]) -> None:
    """Whole, byte by byte, and with each kind of line end, a stream says the same."""
    stream = "".join(f"{line}\n" for line in lines).encode()
    whole = fed(stream, [])
    for line_end in (b"\n", b"\r", b"\r\n"):
        variant = stream.replace(b"\n", line_end)
        assert fed(variant, []) == whole
        assert fed(variant, list(range(len(variant)))) == whole


def test_a_frame_is_there_as_soon_as_its_last_byte_is() -> None:
    """Also when lines end in CR: the decoder does not wait for an LF that may never come."""
    for line_end in (b"\n", b"\r"):
        decoder = Decoder()
        assert decoder.feed(b"data: x" + line_end) == []
        assert decoder.feed(line_end) == [Frame("", "message", "x")]
    assert decoder.feed(b"\ndata: y\r\r") == [Frame("", "message", "y")]


def test_nothing_is_fed() -> None:
    decoder = Decoder()
    assert decoder.feed(b"") == []
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\n\r\n") == [Frame("", "message", "a")]


def test_a_new_connection_goes_on_with_the_last_id() -> None:
    first = Decoder()
    first.feed(b"id: 7\ndata: a\n\nid: 8\ndata: b")
    assert first.last_event_id == "7"
    second = Decoder(first.last_event_id)
    assert second.last_event_id == "7"
    assert second.feed(b"data: c\n\n") == [Frame("7", "message", "c")]


def test_a_gap_leaves_the_cursor_where_it_was() -> None:
    """The gap has no id: a client that is cut off behind it comes back with its old cursor, and is told again."""
    decoder = Decoder()
    decoder.feed(sse.frame(40, "output.delta", b"{}") + sse.frame(None, "stream.gap", b"{}"))
    assert decoder.last_event_id == "40"
    decoder.feed(sse.frame(97, "snapshot", b"{}"))
    assert decoder.last_event_id == "97"


@pytest.mark.parametrize("part", [b"data: " + b"x" * 90, b"data: " + b"x" * 90 + b"\n", b"data\n", b": " + b"x" * 90])
def test_a_frame_without_end_is_refused(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FRAME_BYTES_MAX", 1000)
    decoder = Decoder()
    with pytest.raises(InvalidPayload):
        decoder.feed(part * 2000)
    decoder = Decoder()
    for _ in range(10):
        decoder.feed(part)
    with pytest.raises(InvalidPayload):
        [decoder.feed(part) for _ in range(2000)]


@pytest.mark.parametrize("part", [b"data: " + b"x" * 900 + b"\n\n", b": idle\n", b"event: x\n", b"\n"])
def test_a_stream_without_end_is_fine(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FRAME_BYTES_MAX", 1000)
    decoder = Decoder()
    for _ in range(200):
        decoder.feed(part)
    assert decoder.feed(b"data: y\n\n")[-1].data == "y"

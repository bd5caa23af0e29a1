"""Whatever a server sends as an event stream: a client follows it, or says that it is none. Nothing else is raised."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.api import sse
from contracts.api.sse import Decoder
from contracts.errors import InvalidPayload
from meshctl.client import Cursor
from meshctl.errors import StreamBroken

BYTES_MAX = 1024 * 1024

NUMBERS = st.sampled_from(["0", "7", "8", "-1", "9" * 30, "1" * 5_000, "٣", "1e3", "", "0x1"])
PAYLOADS = st.sampled_from(
    ["{}", '{"n":0}', '{"n":1,"type":"output.delta"}', '{"n":"x"}', "[" * 3_000, "null", "\ud800", '{"n":1e400}']
)
LINES = st.one_of(
    NUMBERS.map("id: {}".format),
    NUMBERS.map("retry: {}".format),
    PAYLOADS.map("data: {}".format),
    st.sampled_from(["event: snapshot", "event: stream.gap", "event: output.delta", "event:", "", ":", "data"]),
    st.text(max_size=20),
)


@given(st.lists(LINES, max_size=30), st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 50))
@example(["id: " + "1" * 5_000, "event: output.delta", "data: {}", ""], [], 50)
def test_a_stream_is_followed_or_refused(lines: Sequence[str], rubbish: Sequence[bytes], cut: int) -> None:
    stream = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n".join([b"", *rubbish, b"", b""])
    decoder, cursor = Decoder(), Cursor()
    with suppress(StreamBroken, InvalidPayload):
        for start in range(0, len(stream), cut):
            for frame in decoder.feed(stream[start : start + cut]):
                received = cursor.advance(frame)
                assert received.cursor == cursor.sequence


@pytest.mark.parametrize("part", [b"x", b"data: x\n", b"id: 1\n", b":", b"event: y\n"])
def test_what_has_no_end_is_refused_before_it_fills_the_memory(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FRAME_BYTES_MAX", BYTES_MAX)
    decoder = Decoder()
    many = part * (64 * 1024 // len(part))
    with suppress(InvalidPayload):
        for _ in range(4 * BYTES_MAX // len(many)):
            decoder.feed(many)
    assert sum(map(len, decoder._partial_line)) + sum(map(len, decoder._data)) <= BYTES_MAX + 64 * 1024

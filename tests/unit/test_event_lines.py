"""Server-Sent Events as model servers send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_worker.dialects import event_lines
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.event_lines import LineReader

LINES = b'data: {"a": 1}\n\n: comment\n\nevent: x\r\ndata:{"b": 2}\r\n\r\nerror: {"c": 3}\n\nid: 7\n\ndata: [DONE]\n\n'
PAYLOADS = [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b"[DONE]"]


@given(st.lists(st.integers(0, len(LINES)), max_size=20))
def test_lines_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(LINES)]
    reader = LineReader()
    found = [line for i in range(len(places) - 1) for line in reader.feed(LINES[places[i] : places[i + 1]])]
    assert found == PAYLOADS
    assert reader.end() == []


def test_a_line_counts_as_soon_as_it_is_whole() -> None:
    reader = LineReader()
    assert reader.feed(b'data: {"a"') == []
    assert reader.feed(b": 1}\n") == [b'{"a": 1}']


def test_a_last_line_needs_no_end() -> None:
    reader = LineReader()
    assert reader.feed(b"data: [DONE]") == []
    assert reader.end() == [b"[DONE]"]
    assert reader.end() == []


def test_a_line_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lines, "LINE_BYTES_MAX", 100)
    reader = LineReader()
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(ProviderFailed, match="a line of more than"):
        reader.feed(b"x" * 90)

"""Text that a server says behind a prefix: however it is cut, nothing comes twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_worker.dialects.continuing import CHARACTERS_MIN, BeganAnew, Opening, is_continuable

PREFIX = "The quick brown fox jumps \n"


def heard(prefix: str, parts: list[str]) -> str:
    """What is handed on."""
    opening, told = Opening(prefix), ""
    for part in parts:
        told += part if opening.is_told else opening.take(part)
    return told + opening.end()


def cut(text: str, at: list[int]) -> list[str]:
    places = sorted({0, len(text), *(min(place, len(text)) for place in at)})
    return [text[begin:end] for begin, end in pairwise(places)]


cuts = st.lists(st.integers(0, 60), max_size=8)


@given(cuts, st.sampled_from(["over", " over", "\nover", "", "over The quick brown fox jumps \n"]))
def test_a_repeated_beginning_is_left_out_however_it_is_cut(at: list[int], rest: str) -> None:
    assert heard(PREFIX, cut(PREFIX + rest, at)) == rest


@given(cuts)
def test_white_space_may_be_missing_where_the_beginning_is_repeated(at: list[int]) -> None:
    assert heard("\n" + PREFIX, cut(PREFIX.strip() + "over", at)) == "over"
    assert heard(PREFIX, cut("\n\n" + PREFIX + "over", at)) == "over"


@given(cuts, st.sampled_from(["over the dog", " over", "The", "The quick ", "the quick brown fox jumps", "\n\n", ""]))
def test_all_that_continues_is_handed_on(at: list[int], said: str) -> None:
    assert heard(PREFIX, cut(said, at)) == said


@given(cuts, st.sampled_from(["The quick brown fox sits", "The quick brown fox", "The quick brown f"]))
def test_whoever_begins_anew_is_found_out(at: list[int], said: str) -> None:
    with pytest.raises(BeganAnew):
        heard(PREFIX, cut(said, at))


@pytest.mark.parametrize(
    ("text", "continuable"),
    [
        (PREFIX, True),
        ("", False),
        (" " * 100, False),
        ("x" * (CHARACTERS_MIN - 1), False),
        ("Yes.", False),
        # Its continuation may well begin as it did.
        ("ha " * 20, False),
        ("ha ha ha ha ha ha ha ha h", False),
        ("ab" * 50_000, False),
        ("ha " * 20 + "enough", True),
        ("".join(chr(97 + (number * number) % 26) for number in range(100_000)) + "!", True),
    ],
)
def test_a_text_is_continued_only_if_it_could_be_told_that_it_comes_twice(text: str, continuable: bool) -> None:
    assert is_continuable(text) is continuable

"""How much of earlier tasks a conversation takes along: the newest, from a message of the user on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.journal.parts import ToolCall
from contracts.tasks import Message
from inference_worker.turn.history import HISTORY_BYTES_MAX, newest, text_bytes
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer

ASKED = Message("user", "1234")
CALL = ToolCall("1-0", "add", {})
TOLD = AssistantTurn("12345678")
"""Ten bytes: calls count as they are shown, also none."""
CALLED = AssistantTurn("", (CALL,))
ANSWERED = ToolAnswer("1-0", "add", "123")
OTHER = Message("assistant", "12")

ENTRIES = st.lists(st.sampled_from([ASKED, TOLD, CALLED, ANSWERED, OTHER]), max_size=12)


@pytest.mark.parametrize(
    ("entries", "bytes_max", "kept"),
    [
        ([], 100, 0),
        ([ASKED], 4, 1),
        ([ASKED], 3, 0),
        ([ASKED, TOLD], 100, 2),
        ([ASKED, TOLD], 14, 2),
        # The oldest goes first, with all that was said to it.
        ([ASKED, TOLD, ASKED, TOLD], 28, 4),
        ([ASKED, TOLD, ASKED, TOLD], 27, 2),
        ([ASKED, TOLD, ASKED, TOLD], 14, 2),
        ([ASKED, TOLD, ASKED, TOLD], 13, 0),
        # Never from an answer on, the model's or a tool's.
        ([TOLD], 100, 0),
        ([OTHER, ASKED], 100, 1),
        ([ANSWERED, TOLD, ASKED, TOLD], 100, 2),
        ([ASKED, CALLED, ANSWERED, ASKED], 7, 1),
    ],
)
def test_the_newest_entries_are_kept_from_a_message_of_the_user_on(
    entries: list[ConversationItem], bytes_max: int, kept: int
) -> None:
    assert newest(entries, bytes_max) == entries[len(entries) - kept :]


@given(ENTRIES, st.integers(0, 100))
def test_what_is_kept_is_an_end_that_fits_and_begins_with_the_user(
    entries: list[ConversationItem], bytes_max: int
) -> None:
    kept = newest(entries, bytes_max)
    assert kept == entries[len(entries) - len(kept) :]
    assert text_bytes(kept) <= bytes_max
    assert not kept or kept[0] == ASKED
    longer = [entries[at:] for at in range(len(entries) - len(kept)) if entries[at] == ASKED]
    assert all(text_bytes(each) > bytes_max for each in longer)


def test_text_is_counted_in_bytes_and_calls_count_too() -> None:
    assert text_bytes([Message("user", "é"), ToolAnswer("1-0", "add", "€"), AssistantTurn("𝄞")]) >= 2 + 3 + 4
    assert text_bytes([Message("user", "\ud800")]) == 3, "half of a character must not stop a task"
    large = AssistantTurn("", (ToolCall("1-0", "add", {"text": "x" * 10_000}),))
    assert text_bytes([large]) > 10_000


def test_a_single_entry_over_the_limit_is_left_out_with_what_was_before_it() -> None:
    assert newest([ASKED, AssistantTurn("x" * (HISTORY_BYTES_MAX + 1)), ASKED]) == [ASKED]

"""What is left of a conversation that is too long for its model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.journal.parts import ToolCall
from contracts.tasks import Message
from inference_worker.turn.compaction import CUT, compacted
from inference_worker.turn.history import text_bytes
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer

SYSTEM = Message("system", "12345")
ASKED = Message("user", "1234")
CALLED = AssistantTurn("", (ToolCall("1-0", "add", {}),))
ANSWERED = ToolAnswer("1-0", "add", "123456789012345678901234567890")
TURN: list[ConversationItem] = [CALLED, ANSWERED]
TURN_BYTES = text_bytes(TURN)

PARTS: list[list[ConversationItem]] = [[ASKED], [AssistantTurn("12345678")], TURN, [*TURN, ANSWERED]]
SAID = st.lists(st.sampled_from(PARTS), max_size=12)


@pytest.mark.parametrize(
    ("entries", "bytes_max", "kept"),
    [
        ([SYSTEM, ASKED], None, [SYSTEM, ASKED]),
        ([SYSTEM, ASKED], 9, [SYSTEM, ASKED]),
        # The newest from a message of the user on, behind the instructions.
        ([SYSTEM, ASKED, *TURN, ASKED], 9, [SYSTEM, ASKED]),
        ([SYSTEM, ASKED, *TURN, ASKED, ASKED], 13, [SYSTEM, ASKED, ASKED]),
        # A single question, and all that the model has done for it: the question, and the newest turns.
        ([SYSTEM, ASKED, *TURN, *TURN, *TURN], 9 + 2 * TURN_BYTES, [SYSTEM, ASKED, *TURN, *TURN]),
        ([SYSTEM, ASKED, *TURN, *TURN, *TURN], 8 + 2 * TURN_BYTES, [SYSTEM, ASKED, *TURN]),
        # Nothing can be left out of a question.
        ([SYSTEM, ASKED], 3, [SYSTEM, ASKED]),
        ([SYSTEM], 3, [SYSTEM]),
    ],
)
def test_the_instructions_stay_and_the_newest_that_fits(
    entries: list[ConversationItem], bytes_max: int | None, kept: list[ConversationItem]
) -> None:
    assert compacted(entries, bytes_max) == kept


def test_the_answers_of_a_last_turn_that_does_not_fit_are_cut() -> None:
    entries: list[ConversationItem] = [SYSTEM, ASKED, *TURN, *TURN]
    bytes_max = text_bytes(entries) - TURN_BYTES - 10
    kept = compacted(entries, bytes_max)
    assert kept[:3] == [SYSTEM, ASKED, CALLED]
    cut = kept[3]
    assert isinstance(cut, ToolAnswer)
    assert cut.content.endswith(CUT)
    assert ANSWERED.content.startswith(cut.content.removesuffix(CUT))
    assert text_bytes(kept) == bytes_max


@given(SAID, st.integers(0, 400))
def test_the_lower_the_bound_the_less_is_left_and_no_answer_without_its_call(
    said: list[list[ConversationItem]], bytes_max: int
) -> None:
    entries = [SYSTEM, ASKED, *(entry for part in said for entry in part)]
    kept = compacted(entries, bytes_max)
    assert kept[:2] == [SYSTEM, ASKED]
    cuts = sum(isinstance(entry, ToolAnswer) for entry in kept) * len(CUT)
    assert text_bytes(compacted(entries, bytes_max // 2)) <= text_bytes(kept) + cuts <= text_bytes(entries) + cuts
    for before, entry in pairwise(kept):
        if isinstance(entry, ToolAnswer):
            assert before == CALLED or isinstance(before, ToolAnswer)

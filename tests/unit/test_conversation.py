"""The conversation of a task, folded from its journal: who said what, in which order, and what came of the calls."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.journal import events, parts
from contracts.journal.events import ApprovalResolved, InputReceived, SubtaskCompleted
from contracts.journal.parts import ObjectReference, Timings, ToolCall
from contracts.tasks import Message, TaskRequest
from mesh.task.conversation import (
    AssistantTurn,
    ConversationItem,
    ToolAnswer,
    continued,
    conversation,
    shown_to,
    tool_answer,
    whole_conversation,
)
from mesh.task.state import TaskState
from tests.unit.journals import CHILD, START, TASK, TENANT, HandMadeJournal

ADD = ToolCall("1-0", "add", {"a": 1, "b": 2})
ADD_1 = ToolCall("1-1", "add", {"a": 3, "b": 4})
HELLO = Message("user", "hello")
STAMP = events.Stamp("0" * 26, TASK, TENANT, 0, START)


def begun(request: TaskRequest | None = None) -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued(request)
    journal.claimed()
    return journal


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, *calls: ToolCall) -> AssistantTurn:
    return AssistantTurn(text, calls)


def test_there_is_no_conversation_without_a_journal() -> None:
    with pytest.raises(ValueError, match="no journal"):
        conversation(TaskState(TENANT, TASK), 1)


def test_a_conversation_begins_with_the_request() -> None:
    quoted = [Message("user", "2+2?"), Message("assistant", "4"), Message("user", "and 3?")]
    journal = begun(TaskRequest(input=quoted, instructions="Be brief."))
    assert conversation(journal.state, 1) == [Message("system", "Be brief."), *quoted]


def test_a_turn_sees_the_turns_before_it_and_what_came_of_their_calls_in_the_order_of_the_calls() -> None:
    journal = begun()
    journal.add(
        events.TurnCompleted,
        turn=1,
        text="Let me see.",
        reasoning="Hm",
        calls=[ADD, ADD_1],
        blocks=[{"signature": "x"}],
        finish_reason="tool_calls",
        usage=parts.Usage(),
        timings=Timings(),
    )
    journal.tool_completed("1-1")
    journal.tool_failed("1-0")
    journal.claimed("2", message=8)
    journal.delta("not yet", turn=2)
    assert conversation(journal.state, 1) == [HELLO]
    assert conversation(journal.state, 2) == [
        HELLO,
        AssistantTurn("Let me see.", (ADD, ADD_1), "Hm", ({"signature": "x"},)),
        ToolAnswer("1-0", "add", "tool-timeout: no result", is_error=True),
        ToolAnswer("1-1", "add", "3"),
    ]


@pytest.mark.parametrize(("provider", "kept"), [(None, True), ("backup", True), ("main", False)])
def test_blocks_go_back_to_the_provider_that_made_them(provider: str | None, kept: bool) -> None:
    journal = begun()
    journal.switched("small", "context", provider="backup")
    journal.add(
        events.TurnCompleted,
        turn=1,
        text="Let me see.",
        reasoning="Hm.",
        blocks=[{"signature": "x"}],
        finish_reason="stop",
        usage=parts.Usage(),
        timings=Timings(),
    )
    (_, turn) = conversation(journal.state, 2, provider)
    whole = AssistantTurn("Let me see.", (), "Hm.", ({"signature": "x"},), "backup")
    assert turn == (whole if kept else AssistantTurn("Let me see.", maker="backup"))
    if provider is not None:
        # So in a task that goes on with this one.
        assert shown_to(whole_conversation(journal.state), provider)[-1] == turn


# Inputs


def test_an_input_stands_before_the_first_turn_that_was_begun_after_it() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.told("before anybody began")
    journal.claimed()
    journal.delta("on")
    journal.told("in the first turn")
    journal.asks(ADD)
    journal.told("while a tool runs")
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.told("in the second turn")
    answer = ToolAnswer("1-0", "add", "3")
    first: list[ConversationItem] = [HELLO, user("before anybody began")]
    second = [*first, said("", ADD), answer, user("in the first turn"), user("while a tool runs")]
    assert conversation(journal.state, 1) == first
    assert conversation(journal.state, 2) == second
    journal.turn_completed("two", turn=2)
    assert conversation(journal.state, 3) == [*second, said("two"), user("in the second turn")]


def test_a_takeover_that_goes_on_with_the_text_is_shown_what_its_beginning_was_made_from() -> None:
    journal = begun()
    journal.delta("so far")
    journal.told("and this?")
    journal.claimed(delivery=2)
    assert conversation(journal.state, 1) == [HELLO]


@pytest.mark.parametrize(
    "begin_again",
    [lambda journal: journal.claimed(delivery=2), lambda journal: journal.restarted(journal.state.next_n)],
)
def test_a_turn_that_begins_without_text_is_shown_all_that_was_said_by_then(begin_again: Any) -> None:
    journal = begun()
    journal.told("and this?")
    begin_again(journal)
    assert conversation(journal.state, 1) == [HELLO, user("and this?")]


def test_a_redirect_is_shown_to_the_turn_that_begins_again_with_it() -> None:
    journal = begun()
    journal.delta("wrong")
    journal.told("no, French!", mode="redirect")
    assert conversation(journal.state, 1) == [HELLO]
    journal.restarted(2)
    assert conversation(journal.state, 1) == [HELLO, user("no, French!")]
    journal.delta("oui")
    journal.turn_completed("oui")
    assert conversation(journal.state, 2) == [HELLO, user("no, French!"), said("oui")]


def test_an_answer_to_a_question_is_the_calls_and_no_message_of_its_own() -> None:
    question = ToolCall("1-0", "ask_user", {"question": "Which one?"})
    journal = begun()
    journal.asks(question)
    journal.input_requested()
    journal.told("the left one", call="1-0")
    assert conversation(journal.state, 2) == [
        HELLO,
        said("", question),
        ToolAnswer("1-0", "ask_user", "the left one"),
    ]


# What comes of calls


@pytest.mark.parametrize(
    ("result", "content", "is_error"),
    [
        (events.ToolCompleted(*STAMP, turn=1, call="1-0", tool="add", result="3", timings=Timings()), "3", False),
        (
            events.ToolCompleted(*STAMP, turn=1, call="1-0", tool="add", result={"é": [1]}, timings=Timings()),
            '{"é":[1]}',
            False,
        ),
        (
            events.ToolCompleted(
                *STAMP,
                turn=1,
                call="1-0",
                tool="add",
                result="[1,",
                object=ObjectReference("results", "x", 12, "SHA-256=x"),
                timings=Timings(),
            ),
            "[1,\n[the beginning of 12 bytes]",
            False,
        ),
        (
            events.ToolFailed(*STAMP, turn=1, call="1-0", tool="add", error=ErrorInfo("x", "y"), outcome="failed"),
            "x: y",
            True,
        ),
        (
            events.ToolFailed(*STAMP, turn=1, call="1-0", tool="add", error=ErrorInfo("x", "y"), outcome="unknown"),
            "x: y (it may have had its effect)",
            True,
        ),
        (ApprovalResolved(*STAMP, call="1-0", decision="denied", by="ann"), "denied by ann", True),
        (ApprovalResolved(*STAMP, call="1-0", decision="expired", by="ann", reason="no"), "expired by ann: no", True),
        (InputReceived(*STAMP, text="left", by="ann", mode="append", call="1-0"), "left", False),
        (SubtaskCompleted(*STAMP, call="1-0", child=CHILD, status="completed", output="42"), "42", False),
        (SubtaskCompleted(*STAMP, call="1-0", child=CHILD, status="completed"), "", False),
        (
            SubtaskCompleted(
                *STAMP, call="1-0", child=CHILD, status="completed", output="4", incomplete="content_filter"
            ),
            "4\n[incomplete: content_filter]",
            False,
        ),
        (
            SubtaskCompleted(*STAMP, call="1-0", child=CHILD, status="cancelled", output="so far"),
            "the sub-task is cancelled\nso far",
            True,
        ),
        (
            SubtaskCompleted(*STAMP, call="1-0", child=CHILD, status="failed", error=ErrorInfo("x", "y")),
            "the sub-task is failed: x: y",
            True,
        ),
    ],
)
def test_what_a_model_reads_of_a_result(result: Any, content: str, is_error: bool) -> None:
    assert tool_answer(ADD, result) == ToolAnswer("1-0", "add", content, is_error)


# Ended tasks


def test_calls_of_a_task_that_was_stopped_are_answered_all_the_same() -> None:
    journal = begun()
    journal.asks(ADD, ADD_1)
    journal.tool_completed("1-0")
    journal.cancelled()
    assert whole_conversation(journal.state) == [
        HELLO,
        said("", ADD, ADD_1),
        ToolAnswer("1-0", "add", "3"),
        ToolAnswer("1-1", "add", "not carried out", is_error=True),
    ]


def test_what_a_stopped_turn_had_said_counts() -> None:
    journal = begun()
    journal.delta("so ")
    journal.delta("far")
    journal.cancelled()
    assert whole_conversation(journal.state) == [HELLO, said("so far")]


def test_a_turn_that_was_stopped_before_its_first_word_is_not_there() -> None:
    journal = begun()
    journal.cancelled()
    assert whole_conversation(journal.state) == [HELLO]


def test_a_task_that_nobody_began_has_what_the_user_said() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.told("and this?")
    journal.cancelled()
    assert whole_conversation(journal.state) == [HELLO, user("and this?")]


def test_what_the_user_said_in_the_last_turn_is_kept() -> None:
    journal = begun(TaskRequest(input="hello", max_turns=1))
    journal.told("and this?")
    journal.turn_completed("one")
    journal.completed("one")
    assert whole_conversation(journal.state) == [HELLO, said("one"), user("and this?")]


# Going on with another conversation


def test_a_conversation_that_goes_on_has_its_own_instructions_first_and_its_input_last() -> None:
    before: list[ConversationItem] = [user("one"), said("two")]
    entries: list[ConversationItem] = [Message("system", "Be brief."), Message("system", "Be kind."), user("three")]
    assert continued(before, entries) == [*entries[:2], *before, user("three")]
    assert continued([], entries) == entries
    assert continued(before, [user("three")]) == [*before, user("three")]
    assert continued(before, entries[:2]) == [*entries[:2], *before]

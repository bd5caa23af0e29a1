"""The scripted model's grammar: its scripts, their turns and their calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.tasks import Message
from inference_worker.dialects.scripted.script import (
    EXCERPT_CHARACTERS_MAX,
    TOOL_ANSWERS_MAX,
    Failure,
    Hang,
    Rate,
    Say,
    Script,
    Text,
    parse_script,
    plain_answer,
    script_of_turn,
)
from inference_worker.models.chunks import RequestedCall
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from mesh.task.failures import StepFailed
from tests.unit.scripts import PARTS, SCRIPT


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("!say 3", Script((Say(3),))),
        ("!say 0", Script((Say(0),))),
        ("!say 3\r\n!rate 50\r\n", Script((Say(3), Rate(50)))),
        ("!rate 0.5\n!say 2\n!rate 0", Script((Rate(0.5), Say(2), Rate(0)))),
        ("!  say   3  ", Script((Say(3),))),
        ("!hang 1.5", Script((Hang(1.5),))),
        ("!fail overloaded", Script(failures=(Failure("overloaded", 1),))),
        ("!fail disconnect 3", Script(failures=(Failure("disconnect", 3),))),
        ("!fail rate_limit 1 12.5", Script(failures=(Failure("rate_limit", 1, 12.5),))),
        (
            "!fail rate_limit 2\n!fail server_error\n!fail bad_request 0",
            Script(failures=(Failure("rate_limit", 2), Failure("server_error", 1), Failure("bad_request", 0))),
        ),
        ("!exit 3", Script(exits=3)),
        ("!exit 1\n!exit 2", Script(exits=2)),
        ("!cached 5\n!reasoning 7", Script(cached=5, reasoning=7)),
        ("before\n!say 1\nafter", Script((Text("before\n"), Say(1), Text("after\n")))),
        ("!say 1\n\n two\n\nlines \n\n", Script((Say(1), Text(" two\n\nlines \n")))),
        ("!say 1\n \n\t\n!say 2", Script((Say(1), Say(2)))),
        (" !say 1\n!say 2", Script((Text(" !say 1\n"), Say(2)))),
        ("!say 100000\n!say 100000", Script((Say(100_000), Say(100_000)))),
        ("!rate 100000\n!hang 3600", Script((Rate(100_000), Hang(3600)))),
    ],
)
def test_a_script_is_read(text: str, script: Script) -> None:
    assert parse_script(text) == (script,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("!", "line 1: ! is no directive"),
        ("!dance", "line 1: !dance is no directive"),
        ("fine\n!Say 3", "line 2: !Say is no directive"),
        ("!say 1\n!call", "line 2: !call takes the name of a tool"),
        ("!call add\n" * 65, "line 65: !call: 65 is more than 64 calls in a turn"),
        ("!ask  ", "!ask takes a question"),
        ("!then what", "!then stands alone"),
        ("!say 1\n!then\n!dance", "line 3: !dance is no directive"),
        ("!say 100000\n!then\n!say 100001", "line 3: !say: 200001 is more than 200000 tokens in total"),
        ("!say", "!say takes one whole number"),
        ("!say many", "!say takes one whole number"),
        ("!say -1", "!say takes one whole number"),
        ("!say 1.5", "!say takes one whole number"),
        ("!say 1_000", "!say takes one whole number"),
        ("!say ٣", "!say takes one whole number"),
        ("!say 1 2", "!say takes one whole number"),
        ("!say 9999999999", "!say takes one whole number"),
        ("!say 200001", "!say: 200001 is more than 200000 tokens in total"),
        ("!say 100000\n!say 100001", "line 2: !say: 200001 is more than 200000 tokens in total"),
        ("!rate", "!rate takes one number"),
        ("!rate fast", "!rate takes one number"),
        ("!rate nan", "!rate takes one number"),
        ("!rate 1e3", "!rate takes one number"),
        ("!rate -1", "!rate takes one number"),
        ("!rate 100001", "!rate: 100001 is more than 100000 tokens a second"),
        ("!rate 0.001", "!rate: 0.001 is less than 0.01 tokens a second"),
        ("!hang", "!hang takes one number"),
        ("!hang 3601", "!hang: 3601 is more than 3600 seconds in total"),
        ("!hang 3000\n!hang 601", "line 2: !hang: 3601 is more than 3600 seconds in total"),
        ("!fail", "!fail takes one of rate_limit, overloaded, server_error, bad_request, disconnect"),
        ("!fail sometimes", "!fail takes one of"),
        ("!fail overloaded often", "!fail takes one whole number"),
        ("!fail overloaded 1 soon", "!fail takes one number"),
        ("!fail overloaded 1 2 3", "!fail takes one number"),
        ("!fail overloaded 1 3600.5", "!fail: 3600.5 is more than 3600 seconds"),
        ("!fail overloaded 1000001", "!fail: 1e+06 is more than 1e+06 tries"),
        ("!exit", "!exit takes one whole number"),
        ("!exit 1000001", "is more than 1e+06 deliveries"),
        ("!cached", "!cached takes one whole number"),
        ("!reasoning few", "!reasoning takes one whole number"),
        ("!reasoning 200001", "is more than 200000 tokens"),
    ],
)
def test_a_wrong_script_is_the_requests_own_fault(text: str, complaint: str) -> None:
    with pytest.raises(StepFailed) as caught:
        parse_script(text)
    assert complaint in str(caught.value)
    assert (caught.value.code, caught.value.terminal, caught.value.retryable) == ("invalid-script", True, False)


@given(st.text())
def test_any_text_is_a_script_or_refused_as_one(text: str) -> None:
    try:
        parse_script(text)
    except StepFailed:
        assert any(line.startswith("!") for line in text.split("\n"))


@given(st.text())
def test_the_tokens_of_a_text_joined_are_the_text(text: str) -> None:
    assert "".join(Text(text).tokens()) == text


@given(st.text(min_size=1).filter(lambda text: not any(line.startswith("!") for line in text.split("\n"))))
def test_plain_text_gets_a_short_answer_of_its_own(text: str) -> None:
    (answer,) = script_of_turn([Message("user", text)]).acts
    assert isinstance(answer, Text)
    assert len(answer.text) < EXCERPT_CHARACTERS_MAX + 100
    assert " ".join(text.split())[:EXCERPT_CHARACTERS_MAX].strip() in answer.text


def test_a_long_script_is_read_in_linear_time() -> None:
    (script,) = parse_script("!rate 1\n" * 60_000 + "!say 1")
    assert len(script.acts) == 60_001


# Turns, calls and questions


@pytest.mark.parametrize(
    ("directive", "call"),
    [
        ('!call add {"a":1,"b":2}', RequestedCall("add", {"a": 1, "b": 2})),
        ('!call  add   { "a" : " 1 !" } ', RequestedCall("add", {"a": " 1 !"})),
        ("!call current_time", RequestedCall("current_time", {})),
        ("!ask  Which  quarter? ", RequestedCall("ask_user", {"question": "Which  quarter?"})),
    ],
)
def test_a_call_is_read(directive: str, call: RequestedCall) -> None:
    assert parse_script(directive) == (Script(calls=(call,)),)


@pytest.mark.parametrize("arguments", ["a=1", '{"a":', "[1]", "3", "null", "NaN", '{"a":1} {}', "[" * 100_000])
def test_arguments_that_are_no_object_go_out_as_a_models_mistake(arguments: str) -> None:
    (script,) = parse_script(f"!call add {arguments}")
    (call,) = script.calls
    assert (call.name, call.arguments) == ("add", None)
    assert call.error


def test_then_ends_a_turn_with_all_that_was_said_of_it() -> None:
    assert parse_script(SCRIPT) == PARTS
    assert parse_script("!then\n!then") == (Script(), Script(), Script())


def test_each_turn_does_its_part() -> None:
    entries: list[ConversationItem] = [Message("user", SCRIPT)]
    assert script_of_turn(entries) == PARTS[0]
    entries += [AssistantTurn("Two sums.\n"), ToolAnswer("1-0", "add", "3"), ToolAnswer("1-1", "add", "7")]
    assert script_of_turn(entries) == PARTS[1]
    entries += [AssistantTurn(""), ToolAnswer("2-0", "ask_user", "the third")]
    assert script_of_turn(entries) == PARTS[2]


def test_a_plain_message_in_mid_run_does_not_end_a_script_and_a_new_script_begins_anew() -> None:
    entries: list[ConversationItem] = [
        Message("user", SCRIPT),
        AssistantTurn("Two sums.\n"),
        Message("user", "hurry up"),
    ]
    assert script_of_turn(entries) == PARTS[1]
    entries += [Message("user", "!say 2\n!then\n!say 3")]
    assert script_of_turn(entries) == Script((Say(2),))
    assert script_of_turn([*entries, AssistantTurn("t0 t1 ")]) == Script((Say(3),))


def answer_to(*entries: ConversationItem) -> str:
    (answer,) = script_of_turn([*entries]).acts
    assert isinstance(answer, Text)
    return answer.text


def test_behind_a_script_the_answer_is_made_from_what_the_tools_said() -> None:
    asked: list[ConversationItem] = [Message("user", "!call add\n!call add"), AssistantTurn("")]
    answers = [ToolAnswer("1-0", "add", "3"), ToolAnswer("1-1", "add", "denied by\nCarol", is_error=True)]
    assert answer_to(*asked, *answers) == "The tools said: 1-0 = 3; 1-1 failed: denied by Carol"


def test_what_tools_said_before_the_newest_message_is_no_news() -> None:
    said = ToolAnswer("1-0", "add", "3")
    entries: list[ConversationItem] = [Message("user", "!call add"), AssistantTurn(""), said, Message("user", "why?")]
    assert answer_to(*entries).startswith("You said: why?\n")
    assert answer_to(*entries, AssistantTurn("x"), ToolAnswer("2-0", "add", "4")) == "The tools said: 2-0 = 4"


def test_an_answer_from_tools_is_short() -> None:
    answers = [ToolAnswer(f"1-{index}", "read", "word " * 1_000) for index in range(64)]
    answer = answer_to(Message("user", "read"), AssistantTurn(""), *answers)
    assert len(answer) < TOOL_ANSWERS_MAX * (EXCERPT_CHARACTERS_MAX + 20) + 100
    assert answer.endswith("; and 48 more")


def test_a_conversation_without_a_user_is_answered_too() -> None:
    assert answer_to(Message("assistant", "once upon")).startswith("You said: once upon\n")
    assert plain_answer([]) == script_of_turn([])

"""A turn as Anthropic's Messages API is asked for it, and what of an answer is kept for the next one."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.journal.parts import ToolCall
from contracts.records.tools import ToolDeclaration
from contracts.tasks import Message
from inference_worker.dialects.anthropic import stream
from inference_worker.dialects.anthropic.messages import rendered, request_of
from inference_worker.dialects.anthropic.stream import Answer, finished, kept_blocks
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import TurnInput
from mesh.configuration.provider_tables import AnthropicProviderConfiguration
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from tests.support.messages_server import Events, block, encoded, ended, text, thinking, tool_use

USER = Message("user", "hi")
CALL = ToolCall("1-0", "add", {"a": 1})
OTHER = ToolCall("1-1", "now", {})
ANSWER = ToolAnswer("1-0", "add", "2")
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
LATER = {"type": "thinking", "thinking": "So.", "signature": "bGF0ZXI="}
DEEP = AnthropicProviderConfiguration(thinking_budget_tokens=1024)


def said(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def used(identifier: str, call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": identifier, "name": call.tool, "input": call.arguments}


def answered(identifier: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identifier, **more}


def messages_of(*entries: ConversationItem) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(message["role"], message["content"]) for message in rendered(entries)[1]]


def body_of(
    *entries: ConversationItem, configuration: AnthropicProviderConfiguration | None = None, **fields: Any
) -> dict[str, Any]:
    turn = TurnInput(messages=list(entries), model="m", **fields)
    return request_of(configuration or AnthropicProviderConfiguration(), turn).body


def answer_of(*events: Events) -> Answer:
    """An answer that has taken these events."""
    answer = Answer()
    for line in encoded([each for some in events for each in some]).splitlines():
        if line.startswith(b"data: "):
            answer.take(line.removeprefix(b"data: "))
    return answer


# Conversations

U = ("user", [said("hi")])
BLANK = ("user", [said("(no text)")])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([USER], [("user", [said("hi")])]),
        ([USER, Message("user", "you")], [("user", [said("hi"), said("you")])]),
        (
            [USER, AssistantTurn("hello"), Message("user", "bye")],
            [("user", [said("hi")]), ("assistant", [said("hello")]), ("user", [said("bye")])],
        ),
        # Results stand first in the message behind the calls, and all of them; what the user says comes after them.
        (
            [
                USER,
                AssistantTurn("Well.", (CALL, OTHER)),
                ANSWER,
                ToolAnswer("1-1", "now", "no", is_error=True),
                Message("user", "stop"),
            ],
            [
                ("user", [said("hi")]),
                ("assistant", [said("Well."), used("c00000100", CALL), used("c00000101", OTHER)]),
                (
                    "user",
                    [
                        answered("c00000100", content="2"),
                        answered("c00000101", content="no", is_error=True),
                        said("stop"),
                    ],
                ),
            ],
        ),
        # No empty text anywhere.
        ([USER, AssistantTurn(" \n"), USER], [("user", [said("hi"), said("hi")])]),
        (
            [USER, AssistantTurn("", (CALL,)), ToolAnswer("1-0", "add", "")],
            [("user", [said("hi")]), ("assistant", [used("c00000100", CALL)]), ("user", [answered("c00000100")])],
        ),
        # Blank text of the user is refused, but it must not be the assistant's that comes last.
        ([USER, AssistantTurn("a"), Message("user", " \n")], [U, ("assistant", [said("a")]), BLANK]),
        ([Message("user", "")], [BLANK]),
        ([USER, Message("assistant", " "), Message("user", "bye")], [("user", [said("hi"), said("bye")])]),
        # Thinking alone is no message.
        ([USER, AssistantTurn("", (), "Hm.", (THOUGHT,)), USER], [("user", [said("hi"), said("hi")])]),
        # Another provider's blocks mean nothing here.
        (
            [USER, AssistantTurn("a", (), None, ({"type": "rs_1"}, "what", 7))],
            [("user", [said("hi")]), ("assistant", [said("a")])],
        ),
        # A conversation that goes over two tasks has the calls of both.
        (
            [USER, AssistantTurn("", (CALL,)), ANSWER, USER, AssistantTurn("", (CALL,)), ANSWER],
            [
                ("user", [said("hi")]),
                ("assistant", [used("c00000100", CALL)]),
                ("user", [answered("c00000100", content="2"), said("hi")]),
                ("assistant", [used("c01000100", CALL)]),
                ("user", [answered("c01000100", content="2")]),
            ],
        ),
    ],
)
def test_a_conversation_is_told_in_turns(
    entries: list[ConversationItem], expected: list[tuple[str, list[dict[str, Any]]]]
) -> None:
    assert messages_of(*entries) == expected


def test_instructions_are_apart_from_the_messages_wherever_they_stand() -> None:
    body = body_of(Message("system", "Be brief."), USER, Message("system", "In French."), Message("user", "bye"))
    assert body["system"] == "Be brief.\n\nIn French."
    assert body["messages"] == [{"role": "user", "content": [said("hi"), said("bye")]}]
    assert "system" not in body_of(USER)
    assert "system" not in body_of(Message("system", " \n"), USER)


def test_white_space_at_the_end_of_an_answer_that_the_request_begins_is_taken_away() -> None:
    body = body_of(USER, Message("assistant", "The answer is: "))
    assert body["messages"][-1]["content"] == [said("The answer is:")]


def test_calls_are_told_with_tools_even_if_none_is_offered() -> None:
    """Calls of a task that this one continues; the API wants their tools declared."""
    body = body_of(USER, AssistantTurn("", (CALL,)), ANSWER, USER)
    assert body["tools"] == [{"name": "add", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "none"}
    assert "tools" not in body_of(USER)
    now = ToolDeclaration(name="now", description="The time.", parameters={})
    body = body_of(USER, AssistantTurn("", (CALL,)), ANSWER, USER, tools=(now,))
    assert [tool["name"] for tool in body["tools"]] == ["now"]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": True},
            {"type": "any", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_how_tools_are_chosen_is_said_in_the_apis_own_words(options: dict[str, Any], choice: Any) -> None:
    configuration = AnthropicProviderConfiguration(**options)
    now = ToolDeclaration(name="now", description="The time.", parameters={})
    assert body_of(USER, configuration=configuration, tools=(now,)).get("tool_choice") == choice
    assert "tool_choice" not in body_of(USER, configuration=configuration)


# Thinking


@pytest.mark.parametrize(
    ("entries", "thinks"),
    [
        ([USER], True),
        ([USER, AssistantTurn("a"), USER], True),
        ([USER, AssistantTurn("", (CALL,), None, (THOUGHT,)), ANSWER], True),
        # Calls after calls: the model has thought before the first of them.
        ([USER, AssistantTurn("", (CALL,), None, (THOUGHT,)), ANSWER, AssistantTurn("", (CALL,)), ANSWER], True),
        # Another model's turn, or one whose thinking was too long to keep.
        ([USER, AssistantTurn("", (CALL,)), ANSWER], False),
        ([USER, AssistantTurn("", (CALL,)), ANSWER, AssistantTurn("", (CALL,), None, (THOUGHT,)), ANSWER], False),
        ([USER, AssistantTurn("", (CALL,)), ANSWER, AssistantTurn("Two."), USER], True),
        # What the assistant has begun can't be begun with thinking any more.
        ([USER, Message("assistant", "Once")], False),
    ],
)
def test_a_model_thinks_only_where_the_api_lets_it(entries: list[ConversationItem], *, thinks: bool) -> None:
    body = body_of(*entries, configuration=DEEP, temperature=0.5)
    assert ("thinking" in body, "temperature" in body) == (thinks, not thinks)


def test_thinking_between_text_and_calls_goes_back_to_its_place() -> None:
    answer = answer_of(
        thinking(0, "c2ln", "Hm."),
        text(1, "Wel", "l. "),
        thinking(2, "bGF0ZXI=", "So."),
        tool_use(3, "add", '{"a": 1}'),
        thinking(4, "bGF0ZXI=", "So."),
        text(5, "Now."),
        tool_use(6, "now"),
        ended("tool_use", 9),
    )
    blocks = finished([answer]).blocks
    assert blocks is not None
    told = AssistantTurn("Well. Now.", (CALL, OTHER), "Hm.So.So.", tuple(blocks))
    assert messages_of(USER, told)[1][1] == [
        THOUGHT,
        said("Well. "),
        LATER,
        used("c00000100", CALL),
        LATER,
        said("Now."),
        used("c00000101", OTHER),
    ]


def test_thinking_after_a_prefix_stays_behind_it() -> None:
    blocks = finished([answer_of(thinking(0, "c2ln", "Hm."), text(1, "b"), ended("end_turn", 9))], "a").blocks
    assert messages_of(USER, AssistantTurn("ab", (), "Hm.", tuple(blocks or ())))[1][1] == [
        said("a"),
        THOUGHT,
        said("b"),
    ]


def test_placeholders_of_more_than_there_is_are_passed_over() -> None:
    """A text may have been cut, for being too long."""
    blocks = ({"type": "text", "characters": 99}, {"type": "tool_use"}, THOUGHT)
    assert messages_of(USER, AssistantTurn("ab", (), "Hm.", blocks))[1][1] == [said("ab"), THOUGHT]


def test_thinking_that_is_too_long_to_be_kept_is_not_kept_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answer_of(thinking(0, "c2ln", "Hm."), block(1, {"type": "redacted_thinking", "data": "x" * 200}))
    blocks = list(answer.blocks)
    assert kept_blocks(blocks) == [THOUGHT, {"type": "redacted_thinking", "data": "x" * 200}]
    monkeypatch.setattr(stream, "KEPT_BYTES_MAX", 200)
    assert kept_blocks(blocks) is None


def test_an_answer_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCKS_MAX", 2)
    monkeypatch.setattr(stream, "CALLS_MAX", 1)
    monkeypatch.setattr(stream, "ARGUMENTS_BYTES_MAX", 10)
    with pytest.raises(ProviderFailed, match="more than 2 blocks"):
        answer_of(text(0, "a"), text(1, "b"), text(2, "c"))
    with pytest.raises(ProviderFailed, match="more than 1 calls"):
        answer_of(tool_use(0, "now"), tool_use(1, "now"))
    with pytest.raises(ProviderFailed, match="too long"):
        answer_of(tool_use(0, "add", "x" * 6, "x" * 6))

"""What a completed turn leads to: calls as they were decided on, questions, approvals, redirects, the last turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from contracts.journal import events
from contracts.journal.parts import Usage
from contracts.tasks import Message, TaskRequest
from inference_worker.models.chunks import Chunk, Finished, RequestedCall, TextDelta, TurnInput
from tests.unit.played import (
    DECLARED,
    STOP,
    PlayedProvider,
    claimed_step,
    last,
    turn_handler,
)


async def test_calls_are_recorded_with_what_was_decided_on_them_and_the_task_goes_on() -> None:
    asked = (
        RequestedCall("add", {"a": 1, "b": 2}),
        RequestedCall("wipe", {}),
        RequestedCall("nothing", {}),
        RequestedCall("add", None, "not JSON"),
        RequestedCall("No Tool!", {}),
        RequestedCall("ask_user", {"question": "Which?"}),
        RequestedCall("ask_user", {}),
    )
    finished = Finished(finish_reason="tool_calls", usage=Usage(1, 1), calls=asked)
    step = claimed_step(request=TaskRequest(input="hello", tools=["add", "wipe", "nothing"], approval="destructive"))
    await turn_handler(PlayedProvider(finished), DECLARED).perform(step)
    calls = last(step, events.TurnCompleted).calls
    assert [(call.call, call.tool, call.approval, call.error and call.error.code) for call in calls] == [
        ("1-0", "add", False, None),
        ("1-1", "wipe", True, None),
        ("1-2", "nothing", False, "tool-unknown"),
        ("1-3", "add", False, "tool-arguments-invalid"),
        ("1-4", "invalid", False, "tool-unknown"),
        ("1-5", "ask_user", False, None),
        ("1-6", "ask_user", False, "tool-arguments-invalid"),
    ]
    # In the order of the calls: what needs a person is asked for, what can't be carried out is refused.
    assert step.journal.types()[-7:] == [
        "turn.completed",
        "approval.requested",
        "tool.failed",
        "tool.failed",
        "tool.failed",
        "input.requested",
        "tool.failed",
    ]
    assert step.state.status == "waiting"


@pytest.mark.parametrize("deltas", [0, 2])
async def test_a_redirect_begins_the_turn_again_with_what_the_user_said(deltas: int) -> None:
    step = claimed_step()

    async def redirect() -> None:
        step.journal.add(events.InputReceived, text="rather this", by="test", mode="redirect", command="c1")
        if step.on_news is not None:
            step.on_news()
        await asyncio.sleep(0)

    class Redirected(PlayedProvider):
        async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
            self.asked.append(turn)
            if len(self.asked) == 1:
                for _ in range(deltas):
                    yield TextDelta("old ")
                await redirect()
                await asyncio.Event().wait()
            yield TextDelta("new")
            yield STOP

    provider = Redirected()
    await turn_handler(provider).perform(step)
    assert [entry.content for entry in provider.asked[1].messages if isinstance(entry, Message)][-1] == "rather this"
    assert last(step, events.TurnRestarted).reason == "redirect"
    assert last(step, events.TaskCompleted).output == "new"


async def test_an_input_that_comes_before_the_end_makes_another_turn() -> None:
    step = claimed_step()

    async def say() -> None:
        step.journal.add(events.InputReceived, text="and this?", by="test", mode="append", command="c1")

    await turn_handler(PlayedProvider(TextDelta("first"), say, STOP)).perform(step)
    assert step.state.terminal is None
    assert step.journal.types()[-1] == "turn.completed"


async def test_the_last_turn_that_is_allowed_ends_the_task_without_its_calls() -> None:
    step = claimed_step(request=TaskRequest(input="hello", max_turns=1))
    finished = Finished(finish_reason="tool_calls", usage=Usage(1, 1), calls=(RequestedCall("add", {}),))
    await turn_handler(PlayedProvider(TextDelta("so far"), finished), DECLARED).perform(step)
    assert last(step, events.TaskCompleted).incomplete == "max_turns"
    assert last(step, events.TaskCompleted).output == "so far"

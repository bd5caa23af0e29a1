"""What a completed turn leads to: calls as they were decided on, questions, approvals, redirects, the last turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from contracts.errors import ErrorInfo
from contracts.journal import events
from contracts.journal.parts import ToolCall, Usage
from contracts.tasks import Message, TaskRequest
from inference_worker.models.chunks import Chunk, Finished, RequestedCall, TextDelta, TurnInput
from inference_worker.turn.calls import OfferedTool
from mesh.configuration.mesh_toml import PoolConfiguration
from tests.unit.journals import FoldedStep, HandMadeJournal, turn_work
from tests.unit.played import (
    DECLARED,
    STOP,
    Declared,
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


async def test_every_model_is_offered_ask_user_unless_its_pool_says_otherwise() -> None:
    for pool, names in ((PoolConfiguration(), ["add", "ask_user"]), (PoolConfiguration(ask_user=False), ["add"])):
        provider = PlayedProvider(STOP)
        step = claimed_step(request=TaskRequest(input="hello", tools=["add", "ask_user"]))
        await turn_handler(provider, DECLARED, pool=pool).perform(step)
        assert [tool.name for tool in provider.asked[0].tools] == names
        assert last(step, events.TurnCompleted).missing_tools is None


async def test_a_tool_that_nobody_serves_is_told_to_the_model_and_to_the_journal() -> None:
    provider = PlayedProvider(STOP)
    step = claimed_step(request=TaskRequest(input="hello", instructions="Be brief.", tools=["away", "add", "gone"]))
    await turn_handler(provider, DECLARED, pool=PoolConfiguration(tool_wait_seconds=0)).perform(step)
    instructions, note, said = provider.asked[0].messages
    assert (instructions, said) == (Message("system", "Be brief."), Message("user", "hello"))
    assert isinstance(note, Message)
    assert note.role == "system"
    assert "not available at present: away, gone." in note.content
    assert last(step, events.TurnCompleted).missing_tools == ["away", "gone"]


async def test_a_turn_waits_for_a_tool_that_comes_and_the_next_turn_not_for_one_that_did_not() -> None:
    class Coming(Declared):
        looks = 0

        async def offered(self, names: Sequence[str]) -> dict[str, OfferedTool]:
            self.looks += 1
            return await DECLARED.offered(names) if self.looks > 2 else {}

    provider, tools = PlayedProvider(STOP), Coming()
    step = claimed_step(request=TaskRequest(input="hello", tools=["add"]))
    await turn_handler(provider, tools, pool=PoolConfiguration(tool_wait_seconds=60)).perform(step)
    assert [tool.name for tool in provider.asked[0].tools] == ["add", "ask_user"]
    assert (tools.looks, last(step, events.TurnCompleted).missing_tools) == (3, None)


async def test_what_a_turn_has_waited_for_in_vain_the_next_does_not_wait_for() -> None:
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input="hello", tools=["away"]))
    journal.claimed()
    journal.asks(ToolCall("1-0", "away", {}, error=ErrorInfo("tool-unknown", "")), missing_tools=["away"])
    journal.tool_failed(tool="away", code="tool-unknown")
    provider = PlayedProvider(STOP)
    step = FoldedStep(journal, turn_work(turn=2), journal.claimed("2"))
    await turn_handler(provider, Declared(), pool=PoolConfiguration(tool_wait_seconds=3600)).perform(step)
    completed = journal.state.turn(2).completed
    assert completed is not None
    assert completed.missing_tools == ["away"]


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

"""A turn that its worker has to let go of, and what a turn throws away that begins again."""

from __future__ import annotations

import asyncio

import pytest

from contracts.journal import events
from contracts.journal.parts import ToolCall, Usage
from contracts.messages.work import TurnWork
from contracts.tasks import TaskRequest
from inference_worker.models.chunks import TextDelta
from mesh.steps.claimed_step import StepRecalled
from mesh.task.budget import budget_left, usage_so_far
from mesh.task.decisions import Claim, Settle, decide
from mesh.task.limits import tokens_left
from mesh.task.outbox import messages_after
from tests.support.patience import within
from tests.unit.journals import MESSAGE, START, TASK, TENANT, FoldedStep, HandMadeJournal, turn_work
from tests.unit.played import HEAD, STOP, PlayedProvider, claimed_step, last, turn_handler

PLAIN = ToolCall("1-0", "add", {"a": 1})
GUARDED = ToolCall("1-1", "wipe", {"path": "/"}, approval=True)


def recall(step: FoldedStep) -> None:
    """As a process does that stops."""
    step.recalled.set()
    if step.on_news is not None:
        step.on_news()


async def test_a_recalled_turn_closes_its_provider_and_keeps_all_that_was_said() -> None:
    step = claimed_step()

    async def stop() -> None:
        recall(step)
        await asyncio.Event().wait()

    provider = PlayedProvider(TextDelta("so "), TextDelta("far"), stop)
    async with within(10):
        with pytest.raises(StepRecalled):
            await turn_handler(provider).perform(step)
    assert provider.closed.is_set()
    assert step.state.turn(1).text == "so far"
    assert step.state.turn(1).completed is None


async def test_a_turn_that_is_recalled_before_it_asks_its_model_takes_nothing_back() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("so far")
    step, provider = claimed_step(journal), PlayedProvider(STOP, continues_prefix=False)
    recall(step)
    with pytest.raises(StepRecalled):
        await turn_handler(provider).perform(step)
    assert provider.asked == []
    assert journal.types()[-1] == "step.claimed"


def taken_over(text: str, *, reasoning: str = "", budget_tokens: int | None = None) -> FoldedStep:
    """A turn that another worker has begun."""
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input="hello", budget_tokens=budget_tokens))
    journal.claimed()
    if reasoning:
        journal.reasoning(reasoning)
    journal.delta(text)
    return claimed_step(journal)


async def test_a_turn_that_begins_again_tells_how_much_it_throws_away() -> None:
    step = taken_over("naïf, five", reasoning="hm")  # 11 + 2 bytes
    await turn_handler(PlayedProvider(TextDelta("new"), STOP, continues_prefix=False)).perform(step)
    assert last(step, events.TurnRestarted).discarded_tokens == 4
    assert last(step, events.TaskCompleted).usage == Usage(3, 4, 4)
    assert last(step, events.TurnCompleted).usage == Usage(3, 4)


async def test_a_turn_that_goes_on_throws_nothing_away() -> None:
    step = taken_over("so far, ")
    await turn_handler(PlayedProvider(TextDelta("so good"), STOP)).perform(step)
    assert step.journal.types()[:2] == HEAD
    assert last(step, events.TaskCompleted).usage == Usage(3, 4)


async def test_what_was_thrown_away_is_taken_from_the_budget_of_the_turn_that_begins_again() -> None:
    step, provider = taken_over("t" * 40, budget_tokens=25), PlayedProvider(STOP, continues_prefix=False)
    await turn_handler(provider).perform(step)
    assert provider.asked[0].max_output_tokens == 15


async def test_a_turn_ends_with_what_there_is_where_the_budget_has_no_room_to_begin_it_again() -> None:
    step, provider = taken_over("t" * 40, budget_tokens=10), PlayedProvider(STOP, continues_prefix=False)
    await turn_handler(provider).perform(step)
    assert provider.asked == []
    completed = last(step, events.TurnCompleted)
    assert (completed.text, completed.finish_reason, completed.usage) == ("t" * 40, "length", Usage(0, 10))
    assert (last(step, events.TaskCompleted).output, last(step, events.TaskCompleted).incomplete) == (
        "t" * 40,
        "budget",
    )


async def test_a_redirect_is_answered_though_it_throws_away_the_last_of_the_budget() -> None:
    step, provider = taken_over("t" * 40, budget_tokens=10), PlayedProvider(TextDelta("new"), STOP)
    step.journal.told("rather this", mode="redirect")
    await turn_handler(provider).perform(step)
    assert provider.asked[0].max_output_tokens == 1
    assert last(step, events.TaskCompleted).output == "new"


def begun(request: TaskRequest | None = None) -> HandMadeJournal:
    """A journal whose first turn is claimed."""
    journal = HandMadeJournal()
    journal.queued(request)
    journal.claimed()
    return journal


def test_what_a_restart_has_thrown_away_counts_for_the_budget_and_not_for_the_output() -> None:
    journal = begun(TaskRequest(input="hi", budget_tokens=50, max_output_tokens=40))
    journal.restarted(2, discarded_tokens=7)
    journal.restarted(2)  # as a writer before 0.2 told it
    journal.restarted(2, discarded_tokens=3)
    assert (budget_left(journal.state), tokens_left(journal.state)) == (40, 40)
    assert usage_so_far(journal.state) == Usage(0, 0, 10)
    journal.asks(PLAIN, usage=Usage(15, 5))
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.restarted(20, turn=2, discarded_tokens=4)
    assert budget_left(journal.state) == 16
    assert usage_so_far(journal.state) == Usage(15, 5, 14)
    assert usage_so_far(journal.state, after_turn=1) == Usage(15, 5, 10)


@pytest.mark.parametrize("asked", [(), (PLAIN, GUARDED)])
def test_a_completed_turn_that_was_released_before_it_led_on_has_a_message_again(asked: tuple[ToolCall, ...]) -> None:
    journal = begun()
    if asked:
        journal.asks(*asked)
    else:
        journal.turn_completed()
    journal.released()
    assert isinstance(decide(journal.state, turn_work(), MESSAGE, START), Settle), "it publishes what is due"
    (due,) = messages_after(journal.state, "1")
    work = TurnWork(task=TASK, tenant=TENANT, turn=1, releases=1, pool="default", priority="normal")
    assert (due.message_id, due.payload) == (f"{TASK}.1.g0.r1", work)
    assert isinstance(decide(journal.state, work, MESSAGE + 1, START), Claim)

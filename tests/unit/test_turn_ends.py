"""One model turn: the events that each way out leaves in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from contracts.journal import events, parts
from contracts.journal.parts import Usage
from contracts.tasks import TaskRequest
from inference_worker.models.chunks import Finished, ReasoningDelta, TextDelta
from inference_worker.turn import attempts
from mesh.clock import now
from mesh.errors import StepLost
from mesh.task import limits
from mesh.task.failures import StepFailed
from tests.support.patience import stretched
from tests.unit.journals import CHILD, START, FoldedStep, HandMadeJournal, turn_work
from tests.unit.played import END, HEAD, STOP, Event, PlayedProvider, claimed_step, deltas, last, turn_handler


async def silence() -> None:
    await asyncio.Event().wait()


async def test_what_came_before_a_failure_is_journaled() -> None:
    failure = StepFailed("provider-overloaded", "too much", retryable=True)
    step = claimed_step()
    with pytest.raises(StepFailed) as caught:
        await turn_handler(PlayedProvider(TextDelta("Hel"), TextDelta("lo"), failure)).perform(step)
    assert caught.value is failure
    assert deltas(step) == step.state.turn(1).text == "Hello"
    assert "turn.completed" not in step.journal.types()
    assert step.appends_open == 0


async def test_a_stream_that_just_ends_is_a_failure() -> None:
    step = claimed_step()
    with pytest.raises(StepFailed) as caught:
        await turn_handler(PlayedProvider(TextDelta("Hel"))).perform(step)
    assert (caught.value.code, caught.value.retryable) == ("provider-disconnected", True)
    assert deltas(step) == "Hel"


async def test_a_bug_of_a_provider_is_not_taken_for_an_answer() -> None:
    step = claimed_step()
    with pytest.raises(ZeroDivisionError):
        await turn_handler(PlayedProvider(TextDelta("Hel"), ZeroDivisionError())).perform(step)
    assert "turn.completed" not in step.journal.types()


@pytest.mark.parametrize(
    ("finish_reason", "incomplete"),
    [("stop", None), ("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
async def test_the_end_says_whether_something_is_missing(
    finish_reason: parts.FinishReason, incomplete: str | None
) -> None:
    step = claimed_step()
    finished = Finished(finish_reason=finish_reason, usage=Usage(1, 1))
    await turn_handler(PlayedProvider(TextDelta("text"), finished)).perform(step)
    assert last(step, events.TurnCompleted).finish_reason == finish_reason
    assert last(step, events.TaskCompleted).incomplete == incomplete


@pytest.mark.parametrize(
    ("so_far", "chunks", "output"),
    [
        ("", ["abcd", "efgh", "ijkl"], "abcdefgh"),
        ("", ["abcdefghijkl"], "abcdefgh"),
        ("", ["abcdefg", "😀", "z"], "abcdefg"),
        ("", ["abcd\n\n\nz"], "abcd\n\n"),
        ("abcdefg", ["😀", "z"], "abcdefg"),
        ("abcdefgh", ["z"], "abcdefgh"),
    ],
)
async def test_the_output_is_cut_at_a_character_where_it_would_not_fit_an_event(
    monkeypatch: pytest.MonkeyPatch, so_far: str, chunks: list[str], output: str
) -> None:
    monkeypatch.setattr(attempts, "OUTPUT_BYTES_MAX", 10)  # eight, and the quotes
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    if so_far:
        journal.delta(so_far)
    provider = PlayedProvider(*map(TextDelta, chunks), silence)
    step = claimed_step(journal)
    await turn_handler(provider).perform(step)
    assert deltas(step) == last(step, events.TaskCompleted).output == output
    assert last(step, events.TurnCompleted).finish_reason == "length"
    assert last(step, events.TaskCompleted).incomplete == "max_output_tokens"
    assert provider.closed.is_set()


async def test_a_run_ends_with_the_turn_at_which_its_journal_is_as_long_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deltas don't count: they go. And a turn that led on stays one that did."""
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    for _ in range(20):
        journal.delta("a long text " * 10)
    journal.turn_completed("first", calls=1)
    before = journal.state.milestone_bytes
    monkeypatch.setattr(limits, "JOURNAL_BYTES_MAX", before + 1)
    first = journal.state.turn(1).completed
    assert first is not None
    assert not limits.is_last_turn(journal.state, first)
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.turn_completed("second", turn=2, calls=1)
    second = journal.state.turn(2).completed
    assert second is not None
    assert limits.is_last_turn(journal.state, second)
    assert limits.incomplete_after(journal.state, second) == "journal_bytes"
    assert not limits.is_last_turn(journal.state, first)


async def test_an_output_that_just_fits_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "OUTPUT_BYTES_MAX", 10)
    step = claimed_step()
    await turn_handler(PlayedProvider(TextDelta("abcd"), TextDelta("efgh"), STOP)).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete, end.usage) == ("abcdefgh", None, Usage(3, 4))


async def test_reasoning_over_its_limit_is_left_out_and_the_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "REASONING_BYTES_MAX", 6)
    chunks: list[Event] = [ReasoningDelta("abc"), ReasoningDelta("😀"), ReasoningDelta("z"), TextDelta("text")]
    step = claimed_step()
    await turn_handler(PlayedProvider(*chunks, STOP)).perform(step)
    turn = last(step, events.TurnCompleted)
    assert (turn.reasoning, turn.text, turn.finish_reason) == ("abc", "text", "stop")


async def test_the_deadline_stops_the_provider_and_ends_with_what_there_is() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.3)))
    provider = PlayedProvider(TextDelta("Hel"), TextDelta("lo"), silence)
    step = claimed_step(journal)
    await turn_handler(provider).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete) == ("Hello", "deadline")
    assert last(step, events.TurnCompleted).finish_reason == "length"
    assert provider.closed.is_set()


async def test_a_clock_that_is_put_back_at_the_deadline_does_not_hide_why_a_turn_was_cut() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.3)))
    step = claimed_step(journal)
    append = step.append

    async def append_behind(build: Callable[[events.Stamp], events.JournalEvent]) -> events.JournalEvent:
        return await append(lambda stamp: build(stamp._replace(time=stamp.time - timedelta(seconds=1))))

    step.append = append_behind  # type: ignore[method-assign]  # stamped by a clock that has been put back
    await turn_handler(PlayedProvider(TextDelta("Hello"), silence)).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete) == ("Hello", "deadline")


async def test_the_deadline_never_cancels_an_append() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.3)))
    step = claimed_step(journal)
    append = step.append
    provider = PlayedProvider(TextDelta("Hello"), silence)
    ended: list[str] = []

    async def slow_append(build: Callable[[events.Stamp], events.JournalEvent]) -> events.JournalEvent:
        await provider.closed.wait()  # in flight when the deadline passes
        event = await append(build)
        ended.append(events.event_type(event))
        return event

    step.append = slow_append  # type: ignore[method-assign]  # a broker that takes its time
    await turn_handler(provider).perform(step)
    assert ended == ["output.delta", *END]
    assert last(step, events.TaskCompleted).output == deltas(step) == "Hello"


async def test_a_deadline_that_has_passed_asks_nobody() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=START)
    journal.claimed()
    journal.delta("Hel")
    step = claimed_step(journal)
    provider = PlayedProvider(TextDelta("lo"), STOP)
    await turn_handler(provider).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete) == ("Hel", "deadline")
    assert provider.asked == []


async def test_a_turn_for_which_sub_tasks_have_left_nothing_of_the_budget_asks_nobody() -> None:
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input="hi", budget_tokens=10, tools=["spawn_task"]))
    journal.claimed()
    journal.asks(parts.ToolCall("1-0", "spawn_task", {"input": "hi"}), usage=Usage(1, 1))
    journal.add(events.SubtaskStarted, call="1-0", child=CHILD, budget_tokens=4)
    journal.add(events.SubtaskCompleted, call="1-0", child=CHILD, status="completed", usage=Usage(6, 4))
    provider = PlayedProvider(TextDelta("never"), STOP)
    step = FoldedStep(journal, turn_work(turn=2), journal.claimed("2", message=8))
    await turn_handler(provider).perform(step)
    assert provider.asked == []
    end = last(step, events.TaskCompleted)
    assert (end.incomplete, end.over_budget_tokens, end.tree_usage) == ("budget", 2, Usage(7, 5))


async def test_a_provider_that_never_waits_meets_the_deadline_too() -> None:
    async def pass_time() -> None:
        deadline = step.state.queued.deadline if step.state.queued else None
        while deadline is not None and now() < deadline:
            pass

    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.3)))
    step = claimed_step(journal)
    await turn_handler(PlayedProvider(TextDelta("Hel"), pass_time, TextDelta("lo"), TextDelta("!"), STOP)).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete) == ("Hello", "deadline")


async def test_a_providers_own_timeout_is_not_the_deadline() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=60))
    step = claimed_step(journal)
    with pytest.raises(TimeoutError):
        await turn_handler(PlayedProvider(TextDelta("Hel"), TimeoutError())).perform(step)
    assert "turn.completed" not in journal.types()


async def test_a_step_that_is_lost_closes_the_provider_and_writes_no_more() -> None:
    journal = HandMadeJournal()
    journal.queued()

    def take_over(event_type: str) -> None:
        if journal.types().count("step.claimed") == 1:
            journal.claimed(delivery=2)

    async def breathe() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    provider = PlayedProvider(TextDelta("Hel"), breathe, TextDelta("lo"), silence)
    step = claimed_step(journal, on_append=take_over)
    with pytest.raises(StepLost):
        await turn_handler(provider).perform(step)
    assert journal.types() == [*HEAD, "step.claimed"]
    assert provider.closed.is_set()


async def test_a_task_that_was_cancelled_gets_no_end_of_its_own() -> None:
    journal = HandMadeJournal()
    journal.queued()

    def cancel(event_type: str) -> None:
        if event_type == "turn.completed":
            journal.add(events.TaskCancelled, output="Hello")

    step = claimed_step(journal, on_append=cancel)
    with pytest.raises(StepLost):
        await turn_handler(PlayedProvider(TextDelta("Hello"), STOP)).perform(step)
    assert journal.types() == [*HEAD, "output.delta", "task.cancelled"]

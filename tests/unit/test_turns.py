"""One model turn: the events that each way in, and each way out, leaves in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.journal import events
from contracts.journal.events import Usage
from contracts.streams import MESSAGE_BYTES_MAX
from contracts.tasks import OUTPUT_BYTES_MAX, Message, TaskRequest, output_bytes
from inference_worker.dialects.scripted.model import ScriptedProvider
from inference_worker.models.chunks import Finished, ReasoningDelta, TextDelta, TurnInput
from inference_worker.turn import attempts
from inference_worker.turn.attempts import clip
from inference_worker.turn.turns import TurnHandler, failed_tries
from mesh.clock import now
from mesh.errors import StepLost
from mesh.task.conversation import opening
from mesh.task.failures import StepFailed
from tests.unit.journals import START, FoldedStep, HandMadeJournal
from tests.unit.played import (
    END,
    HEAD,
    STOP,
    Event,
    PlayedProvider,
    claimed_step,
    last,
    turn_handler,
)


async def silence() -> None:
    await asyncio.Event().wait()


def deltas(step: FoldedStep) -> str:
    return "".join(event.text for event in step.journal.events if isinstance(event, events.OutputDelta))


# Ways in


async def test_a_new_turn_is_streamed_completed_and_ends_the_task() -> None:
    step = claimed_step()
    await turn_handler(PlayedProvider(TextDelta("Hello "), TextDelta("world"), STOP)).perform(step)
    types = step.journal.types()
    assert types[:2] + types[-2:] == HEAD + END
    assert set(types[2:-2]) == {"output.delta"}
    turn: events.TurnCompleted = last(step, events.TurnCompleted)
    assert (turn.turn, turn.text, turn.reasoning, turn.calls) == (1, "Hello world", None, [])
    assert (turn.finish_reason, turn.usage) == ("stop", Usage(3, 4))
    end: events.TaskCompleted = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete, end.usage, end.timings) == ("Hello world", None, Usage(3, 4), turn.timings)
    assert turn.timings.queued_seconds == 1.0  # journals made by hand have a second between their events
    first, total = turn.timings.first_token_seconds, turn.timings.total_seconds
    assert first is not None
    assert total is not None
    assert 0 <= first <= total < 10
    assert step.journal.state.status == "completed"


async def test_the_provider_is_asked_for_what_the_request_says() -> None:
    request = TaskRequest(
        input="hi", instructions="Be brief.", model="large", max_output_tokens=7, temperature=0.5, priority="normal"
    )
    provider = PlayedProvider(STOP)
    handler = turn_handler(provider)
    step = claimed_step(request=request)
    assert handler.describe_claim(step.state, step.work) == {"provider": "played", "model": "large"}
    await handler.perform(step)
    assert provider.asked == [
        TurnInput(
            messages=[Message("system", "Be brief."), Message("user", "hi")],
            model="large",
            max_output_tokens=7,
            temperature=0.5,
            prefix="",
            tries=0,
            deliveries=1,
        )
    ]


async def test_a_request_without_a_model_gets_the_providers_own() -> None:
    provider = PlayedProvider(STOP)
    step = claimed_step()
    assert turn_handler(provider).describe_claim(step.state, step.work) == {"provider": "played", "model": "played-1"}
    await turn_handler(provider).perform(step)
    assert provider.asked[0].model == "played-1"


async def test_a_turn_without_text_completes_with_none() -> None:
    step = claimed_step()
    await turn_handler(PlayedProvider(STOP)).perform(step)
    assert step.journal.types() == HEAD + END
    assert last(step, events.TaskCompleted).output == ""
    assert last(step, events.TurnCompleted).timings.first_token_seconds is None


@pytest.mark.parametrize(
    ("finish_reason", "deadline_seconds", "incomplete"),
    [
        ("stop", None, None),
        ("content_filter", None, None),
        ("length", None, "max_output_tokens"),
        ("length", 1000, "max_output_tokens"),
        ("length", 2, "deadline"),
        ("stop", 2, None),
    ],
)
async def test_a_completed_turn_whose_task_lacks_its_end_only_gets_that(
    finish_reason: events.FinishReason, deadline_seconds: float | None, incomplete: str | None
) -> None:
    journal = HandMadeJournal()
    deadline = None if deadline_seconds is None else START + timedelta(seconds=deadline_seconds)
    journal.queued(deadline=deadline)
    journal.claimed()
    journal.delta("half")
    journal.turn_completed("whole", finish_reason=finish_reason, usage=Usage(5, 6))
    provider = PlayedProvider(STOP)
    step = claimed_step(journal)
    before = len(journal.events)
    await turn_handler(provider).perform(step)
    assert journal.types()[before:] == ["task.completed"]
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete, end.usage) == ("whole", incomplete, Usage(5, 6))
    assert provider.asked == []


def journal_with_part() -> HandMadeJournal:
    """A journal whose first attempt ended after "Hel" and "lo "."""
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("Hel")  # n = 2
    journal.delta("lo ")
    return journal


async def test_a_provider_that_can_goes_on_from_what_is_there() -> None:
    provider = PlayedProvider(TextDelta("world"), STOP)
    step = claimed_step(journal_with_part())
    await turn_handler(provider).perform(step)
    assert step.journal.types() == [*HEAD, "output.delta", "output.delta", "step.claimed", "output.delta", *END]
    assert provider.asked[0].prefix == "Hello "
    assert deltas(step) == last(step, events.TurnCompleted).text == last(step, events.TaskCompleted).output
    assert last(step, events.TaskCompleted).output == "Hello world"


async def test_a_provider_that_cannot_begins_again_and_says_so() -> None:
    provider = PlayedProvider(TextDelta("Hi!"), STOP, continues_prefix=False)
    step = claimed_step(journal_with_part())
    await turn_handler(provider).perform(step)
    assert step.journal.types()[5:] == ["turn.restarted", "output.delta", *END]
    restarted = last(step, events.TurnRestarted)
    assert (restarted.attempt, restarted.discard_from, restarted.reason) == (2, 2, "takeover")
    assert provider.asked[0].prefix == ""
    assert last(step, events.TaskCompleted).output == "Hi!"


async def test_a_restart_after_a_failed_try_gives_that_as_its_reason() -> None:
    journal = journal_with_part()
    journal.retrying(1)
    step = claimed_step(journal)
    await turn_handler(PlayedProvider(STOP, continues_prefix=False)).perform(step)
    assert last(step, events.TurnRestarted).reason == "retry"


async def test_reasoning_without_text_cannot_be_continued() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.reasoning("Hm")
    provider = PlayedProvider(ReasoningDelta("Let me see"), TextDelta("42"), STOP)
    step = claimed_step(journal)
    await turn_handler(provider).perform(step)
    assert last(step, events.TurnRestarted).discard_from == 2
    turn = last(step, events.TurnCompleted)
    assert (turn.reasoning, turn.text) == ("Let me see", "42")


async def test_a_restart_discards_reasoning_before_the_text_too() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.reasoning("Hm")
    journal.delta("4")
    step = claimed_step(journal)
    await turn_handler(PlayedProvider(TextDelta("42"), STOP, continues_prefix=False)).perform(step)
    assert last(step, events.TurnRestarted).discard_from == 2
    turn = last(step, events.TurnCompleted)
    assert (turn.reasoning, turn.text) == (None, "42")


@given(st.integers(0, 6))
async def test_the_scripted_model_gives_the_same_text_whatever_was_there(deltas_before: int) -> None:
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input="!say 6"))
    journal.claimed()
    for number in range(deltas_before):
        journal.delta(f"t{number} ")
    step = claimed_step(journal)
    await turn_handler(ScriptedProvider(exit_allowed=False)).perform(step)
    assert last(step, events.TaskCompleted).output == deltas(step) == "t0 t1 t2 t3 t4 t5 "
    assert last(step, events.TaskCompleted).usage == Usage(2, 6)


async def test_tries_and_deliveries_are_counted_over_all_replays() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.retrying(1)
    journal.claimed(delivery=2)
    journal.retrying(2)
    journal.claimed(delivery=3)
    journal.dead_lettered()
    journal.replayed(("1", 0))
    journal.claimed(gen=1, message=8)
    journal.retrying(1, gen=1)
    provider = PlayedProvider(STOP)
    await turn_handler(provider).perform(claimed_step(journal))
    # Two retries and the try that ended in the dead letter; one retry since.
    assert failed_tries(journal.state, "1") == provider.asked[0].tries == 4
    assert provider.asked[0].deliveries == 5


# Ways out


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
    ("finish_reason", "incomplete"), [("stop", None), ("length", "max_output_tokens"), ("content_filter", None)]
)
async def test_the_end_says_whether_something_is_missing(
    finish_reason: events.FinishReason, incomplete: str | None
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
    journal.queued(deadline=now() + timedelta(seconds=0.3))
    provider = PlayedProvider(TextDelta("Hel"), TextDelta("lo"), silence)
    step = claimed_step(journal)
    await turn_handler(provider).perform(step)
    end = last(step, events.TaskCompleted)
    assert (end.output, end.incomplete) == ("Hello", "deadline")
    assert last(step, events.TurnCompleted).finish_reason == "length"
    assert provider.closed.is_set()


async def test_the_deadline_never_cancels_an_append() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=0.3))
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


async def test_a_provider_that_never_waits_meets_the_deadline_too() -> None:
    async def pass_time() -> None:
        deadline = step.state.queued.deadline if step.state.queued else None
        while deadline is not None and now() < deadline:
            pass

    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=0.3))
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


# Lane statistics


class Reports:
    def __init__(self) -> None:
        self.claimed: list[tuple[str, str, float]] = []
        self.finished: list[tuple[str, str]] = []

    def handler(self, provider: PlayedProvider) -> TurnHandler:
        return turn_handler(
            provider,
            on_claimed=lambda *claimed: self.claimed.append(claimed),
            on_finished=lambda *finished: self.finished.append(finished),
        )


async def test_a_lane_is_told_of_the_first_claim_and_of_the_end() -> None:
    reports = Reports()
    await reports.handler(PlayedProvider(STOP)).perform(claimed_step())
    assert reports.claimed == [("default", "normal", 1.0)]
    assert reports.finished == [("default", "normal")]


@pytest.mark.parametrize(("terminal", "finished"), [(True, 1), (False, 0)])
async def test_a_failed_turn_is_over_only_if_it_will_not_be_tried_again(terminal: bool, finished: int) -> None:
    reports = Reports()
    failure = StepFailed("provider-error", "no", retryable=not terminal, terminal=terminal)
    with pytest.raises(StepFailed):
        await reports.handler(PlayedProvider(failure)).perform(claimed_step())
    assert (len(reports.claimed), len(reports.finished)) == (1, finished)


async def test_a_later_claim_waited_for_no_worker() -> None:
    reports = Reports()
    await reports.handler(PlayedProvider(STOP)).perform(claimed_step(journal_with_part()))
    assert (len(reports.claimed), len(reports.finished)) == (0, 1)


# Pure parts


@pytest.mark.parametrize(
    ("request_body", "messages"),
    [
        (TaskRequest(input="hi"), [Message("user", "hi")]),
        (TaskRequest(input="hi", instructions="Be brief."), [Message("system", "Be brief."), Message("user", "hi")]),
        (
            TaskRequest(input=[Message("user", "a"), Message("assistant", "b")], instructions="c"),
            [Message("system", "c"), Message("user", "a"), Message("assistant", "b")],
        ),
    ],
)
def test_a_request_begins_a_conversation(request_body: TaskRequest, messages: list[Message]) -> None:
    assert opening(request_body) == messages


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.integers(0, 50))
def test_a_clipped_text_is_the_longest_beginning_that_fits(text: str, bytes_max: int) -> None:
    kept = clip(text, bytes_max)
    assert text.startswith(kept)
    assert output_bytes(kept) <= bytes_max + 2
    if kept != text:
        assert output_bytes(text[: len(kept) + 1]) > bytes_max + 2


def test_the_largest_turn_fits_into_a_message() -> None:
    headroom = 64 * 1024  # calls and the common fields
    assert OUTPUT_BYTES_MAX + attempts.REASONING_BYTES_MAX + headroom <= MESSAGE_BYTES_MAX

"""One model turn: the events that each way in leaves in the journal."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.declarations import MESSAGE_BYTES_MAX
from contracts.journal import events, parts
from contracts.journal.parts import Usage
from contracts.records.tools import ASK_USER_DECLARATION
from contracts.tasks import OUTPUT_BYTES_MAX, Message, TaskRequest, output_bytes
from inference_worker.dialects.scripted.model import ScriptedProvider
from inference_worker.models.chunks import ReasoningDelta, TextDelta, TurnInput
from inference_worker.turn import attempts
from inference_worker.turn.attempts import clip
from inference_worker.turn.restarting import failed_tries
from inference_worker.turn.turns import TurnHandler
from mesh.task.conversation import opening
from mesh.task.failures import StepFailed
from tests.unit.journals import START, HandMadeJournal
from tests.unit.played import END, HEAD, STOP, PlayedProvider, claimed_step, deltas, last, turn_handler

# Ways in


async def test_a_new_turn_is_streamed_completed_and_ends_the_task() -> None:
    step = claimed_step()
    began_at = time.perf_counter()
    await turn_handler(PlayedProvider(TextDelta("Hello "), TextDelta("world"), STOP)).perform(step)
    took_seconds = time.perf_counter() - began_at
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
    assert 0 <= first <= total <= took_seconds
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
            tools=(ASK_USER_DECLARATION,),
            max_output_tokens=7,
            temperature=0.5,
            prefix="",
            tries=0,
            deliveries=1,
            meter=provider.asked[0].meter,
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
        ("content_filter", None, "content_filter"),
        ("length", None, "max_output_tokens"),
        ("length", 1000, "max_output_tokens"),
        ("length", 2, "deadline"),
        ("stop", 2, None),
    ],
)
async def test_a_completed_turn_whose_task_lacks_its_end_only_gets_that(
    finish_reason: parts.FinishReason, deadline_seconds: float | None, incomplete: str | None
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


# Lane statistics


class Reports:
    def __init__(self) -> None:
        self.claimed: list[tuple[str, str, float]] = []
        self.finished: list[tuple[str, int, bool]] = []

    def handler(self, provider: PlayedProvider) -> TurnHandler:
        return turn_handler(
            provider,
            on_claimed=lambda *claimed: self.claimed.append(claimed),
            on_finished=lambda work, completed, _: self.finished.append(
                (work.tenant, work.turn, completed is not None)
            ),
        )


async def test_a_lane_is_told_of_the_first_claim_and_of_the_end() -> None:
    reports = Reports()
    await reports.handler(PlayedProvider(STOP)).perform(claimed_step())
    assert reports.claimed == [("default", "normal", 1.0)]
    assert reports.finished == [("acme", 1, True)]


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

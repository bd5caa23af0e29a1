"""A turn whose model is unavailable, slow or too small: the events that each leaves, and what the next one is asked."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace

from contracts.journal import events
from contracts.journal.parts import Usage
from contracts.tasks import Message, TaskRequest
from inference_worker.models.chunks import Begun, Finished, RequestedCall, TextDelta
from inference_worker.turn.history import text_bytes
from mesh.clock import now
from mesh.configuration.mesh_toml import FallbackConfiguration, PoolConfiguration
from mesh.errors import StepLost
from mesh.task.failures import StepFailed
from tests.support.patience import stretched
from tests.unit.journals import FoldedStep, HandMadeJournal
from tests.unit.played import END, HEAD, STOP, Event, PlayedProvider, claimed_step, last, turn_handler

SLOW_SECONDS = 0.02
FALLBACKS = [FallbackConfiguration(provider="backup", model="small")]
SWITCHING = PoolConfiguration(fallbacks=FALLBACKS, on_slow="switch", slow_seconds=SLOW_SECONDS)
HEDGING = PoolConfiguration(fallbacks=FALLBACKS, on_slow="hedge", slow_seconds=SLOW_SECONDS)
PATIENT = PoolConfiguration(fallbacks=FALLBACKS, on_slow="hedge", slow_seconds=600)
"""Where nothing is slow, however busy the machine."""
COMPACTING = PoolConfiguration(on_context="compact")
TOO_LONG = StepFailed("context-too-long", "too long", retryable=False, terminal=True)
BROKEN = StepFailed("provider-error", "oh", retryable=True)


async def silence() -> None:
    await asyncio.Event().wait()


def backup(*chunks: Event, continues_prefix: bool = True) -> PlayedProvider:
    return PlayedProvider(*chunks, continues_prefix=continues_prefix, named=("backup", "small"))


def described(step: FoldedStep) -> list[tuple[str, str, str]]:
    switched = [event for event in step.journal.events if isinstance(event, events.ModelSwitched)]
    return [(event.from_model, event.to_model, event.reason) for event in switched]


def journal_claimed_by(provider: str, model: str) -> HandMadeJournal:
    """A turn that is claimed for a model, and has said a part."""
    journal = HandMadeJournal()
    journal.queued()
    claim = events.StepClaimed(
        *journal.stamp(), step="1", gen=0, message=7, worker="w", delivery=1, turn=1, provider=provider, model=model
    )
    journal.fold(claim)
    journal.delta("Hel")
    return journal


def claim_for(journal: HandMadeJournal, described: dict[str, str], **options: object) -> FoldedStep:
    """The turn claimed anew, as the work loop would."""
    step = claimed_step(journal, **options)  # type: ignore[arg-type]  # passed on
    claim = events.StepClaimed(
        *journal.stamp(),
        step="1",
        gen=0,
        message=7,
        worker="w",
        delivery=2,
        turn=1,
        attempt=2,
        provider=described["provider"],
        model=described["model"],
    )
    journal.fold(claim)
    step.claim = claim
    return step


# Unavailable


async def test_a_claim_names_the_model_that_is_available_and_the_switch_follows_it() -> None:
    journal = HandMadeJournal()
    journal.queued()
    first, second = PlayedProvider(STOP), backup(TextDelta("Hello"), STOP)
    handler = turn_handler(first, fallbacks=[second], available=lambda name: name != "played")
    step = claim_for(journal, handler.describe_claim(journal.state, claimed_step(journal).work))
    await handler.perform(step)
    assert (step.claim.provider, step.claim.model) == ("backup", "small")
    assert described(step) == [("played-1", "small", "unavailable")]
    assert journal.types()[-4:] == ["model.switched", "output.delta", *END]
    assert (first.asked, second.asked[0].model) == ([], "small")
    switched = last(step, events.ModelSwitched)
    assert (switched.turn, switched.provider) == (1, "backup")


@pytest.mark.parametrize("code", ["provider-unreachable", "provider-loading"])
async def test_a_turn_whose_provider_turns_out_to_be_away_goes_on_with_the_next_model_at_once(code: str) -> None:
    journal = HandMadeJournal()
    journal.queued()
    first, second = PlayedProvider(StepFailed(code, "no", retryable=True)), backup(TextDelta("Hello"), STOP)
    step = claimed_step(journal)
    await turn_handler(first, fallbacks=[second]).perform(step)
    assert described(step) == [("played-1", "small", "unavailable")]
    assert journal.types()[-4:] == ["model.switched", "output.delta", *END]


async def test_a_turn_whose_providers_are_all_away_fails_as_any() -> None:
    journal = HandMadeJournal()
    journal.queued()
    away = StepFailed("provider-unreachable", "no", retryable=True)
    handler = turn_handler(PlayedProvider(away), fallbacks=[backup(away)])
    with pytest.raises(StepFailed, match="no"):
        await handler.perform(claimed_step(journal))
    journal.retrying(1, reason="provider-unreachable")
    assert handler.describe_claim(journal.state, claimed_step(journal).work)["provider"] == "played", "the first again"


@pytest.mark.parametrize("continues_prefix", [True, False])
async def test_no_model_goes_on_with_the_text_of_another(continues_prefix: bool) -> None:
    journal = journal_claimed_by("played", "played-1")
    second = backup(TextDelta("Hello"), STOP, continues_prefix=continues_prefix)
    handler = turn_handler(PlayedProvider(STOP), fallbacks=[second], available=lambda name: name != "played")
    step = claim_for(journal, handler.describe_claim(journal.state, claimed_step(journal).work))
    await handler.perform(step)
    assert last(step, events.TurnRestarted).reason == "switch"
    assert second.asked[0].prefix == ""
    assert last(step, events.TaskCompleted).output == "Hello"


async def test_a_text_goes_on_with_its_own_model() -> None:
    journal = journal_claimed_by("played", "played-1")
    journal.switched("small", "latency")
    journal.delta("lo ")
    second = backup(TextDelta("world"), STOP)
    handler = turn_handler(PlayedProvider(STOP), fallbacks=[second], pool=SWITCHING)
    step = claim_for(journal, handler.describe_claim(journal.state, claimed_step(journal).work))
    await handler.perform(step)
    assert second.asked[0].prefix == "Hello "
    assert "turn.restarted" not in journal.types()


async def test_a_turn_whose_request_was_edited_begins_again() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("Hel")
    journal.dead_lettered()
    journal.replayed(("1", 0), instructions="Be brief.")
    provider = PlayedProvider(TextDelta("Hi"), STOP)
    step = claimed_step(journal)
    await turn_handler(provider).perform(step)
    assert last(step, events.TurnRestarted).reason == "edit"
    assert provider.asked[0].messages[0] == Message("system", "Be brief.")


# Slow


async def test_a_slow_model_is_closed_and_the_next_begins() -> None:
    first, second = PlayedProvider(silence), backup(TextDelta("Hello"), STOP)
    step = claimed_step()
    await turn_handler(first, fallbacks=[second], pool=SWITCHING).perform(step)
    assert step.journal.types() == [*HEAD, "model.switched", "output.delta", *END]
    assert described(step) == [("played-1", "small", "latency")]
    assert first.closed.is_set()


async def test_the_last_model_is_waited_for() -> None:
    async def a_while() -> None:
        await asyncio.sleep(4 * SLOW_SECONDS)

    step = claimed_step()
    second = backup(a_while, TextDelta("Hello"), STOP)
    await turn_handler(PlayedProvider(silence), fallbacks=[second], pool=SWITCHING).perform(step)
    assert len(described(step)) == 1
    assert len(second.asked) == 1


@pytest.mark.parametrize("pool", [SWITCHING, HEDGING])
async def test_a_slow_model_is_waited_for_where_no_other_is_available(pool: PoolConfiguration) -> None:
    async def a_while() -> None:
        await asyncio.sleep(4 * SLOW_SECONDS)

    step = claimed_step()
    handler = turn_handler(
        PlayedProvider(a_while, STOP), fallbacks=[backup(STOP)], pool=pool, available=lambda name: name != "backup"
    )
    await handler.perform(step)
    assert step.journal.types() == HEAD + END


async def test_a_model_that_writes_a_call_is_not_slow() -> None:
    slow_seconds = stretched(0.3)

    async def a_while() -> None:
        await asyncio.sleep(2 * slow_seconds)

    step = claimed_step()
    finished = Finished(finish_reason="tool_calls", usage=Usage(1, 1), calls=(RequestedCall("nothing", {}),))
    first = PlayedProvider(Begun(), a_while, finished)
    await turn_handler(first, fallbacks=[backup(STOP)], pool=replace(SWITCHING, slow_seconds=slow_seconds)).perform(
        step
    )
    assert described(step) == []
    assert len(last(step, events.TurnCompleted).calls) == 1


@pytest.mark.parametrize("winner", [0, 1])
async def test_of_two_models_the_first_that_gives_a_token_goes_on_and_nothing_of_the_other_is_kept(winner: int) -> None:
    both = asyncio.Event()

    async def other_is_asked() -> None:
        await both.wait()

    async def this_is_asked() -> None:
        both.set()

    first = PlayedProvider(*((other_is_asked, TextDelta("A"), TextDelta("A"), STOP) if winner == 0 else (silence,)))
    second = backup(this_is_asked, *((silence,) if winner == 0 else (TextDelta("B"), TextDelta("B"), STOP)))
    step = claimed_step()
    await turn_handler(first, fallbacks=[second], pool=HEDGING).perform(step)
    switched = ["model.switched"] if winner == 1 else []
    types = step.journal.types()
    assert types[: 3 + winner] == [*HEAD, "model.hedged", *switched]
    assert set(types[3 + winner : -2]) == {"output.delta"}
    assert last(step, events.TaskCompleted).output == ("AA" if winner == 0 else "BB")
    assert (second if winner == 0 else first).closed.is_set()


async def test_a_model_that_fails_in_the_race_leaves_the_other_one_in_it() -> None:
    failed = asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise BROKEN

    async def other_has_failed() -> None:
        await failed.wait()
        await asyncio.sleep(0)

    step = claimed_step()
    first = PlayedProvider(other_has_failed, TextDelta("Hello"), STOP)
    await turn_handler(first, fallbacks=[backup(fail)], pool=HEDGING).perform(step)
    assert last(step, events.TaskCompleted).output == "Hello"
    assert described(step) == []


async def test_where_both_fail_the_first_ones_failure_counts() -> None:
    hedged = asyncio.Event()

    async def other_has_failed() -> None:
        await hedged.wait()

    async def fail() -> None:
        hedged.set()
        raise StepFailed("quota-exhausted", "no", retryable=False)

    step = claimed_step()
    with pytest.raises(StepFailed) as caught:
        await turn_handler(PlayedProvider(other_has_failed, BROKEN), fallbacks=[backup(fail)], pool=HEDGING).perform(
            step
        )
    assert caught.value is BROKEN


@pytest.mark.parametrize("chunks", [[BROKEN], [TextDelta("Hel"), BROKEN]])
async def test_a_model_that_fails_in_time_fails_the_try(chunks: list[Event]) -> None:
    step = claimed_step()
    second = backup(STOP)
    with pytest.raises(StepFailed) as caught:
        await turn_handler(PlayedProvider(*chunks), fallbacks=[second], pool=PATIENT).perform(step)
    assert caught.value is BROKEN
    assert second.asked == []
    assert step.state.turn(1).text == "".join(each.text for each in chunks if isinstance(each, TextDelta))


@pytest.mark.parametrize("pool", [SWITCHING, HEDGING])
async def test_the_deadline_ends_a_race_with_what_there_is(pool: PoolConfiguration) -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.5)))
    first, second = PlayedProvider(silence), backup(silence)
    step = claimed_step(journal)
    await turn_handler(first, fallbacks=[second], pool=pool).perform(step)
    assert last(step, events.TaskCompleted).incomplete == "deadline"
    assert first.closed.is_set()
    assert second.closed.is_set()


async def test_a_redirect_ends_a_race_and_the_first_model_is_asked_again() -> None:
    step = claimed_step()

    async def redirect() -> None:
        if len(first.asked) == 1:
            step.journal.add(events.InputReceived, text="rather this", by="test", mode="redirect", command="c1")
            assert step.on_news is not None
            step.on_news()
            await silence()

    first = PlayedProvider(redirect, TextDelta("new"), STOP)
    await turn_handler(first, fallbacks=[backup(STOP)], pool=PATIENT).perform(step)
    assert last(step, events.TurnRestarted).reason == "redirect"
    assert last(step, events.TaskCompleted).output == "new"
    assert described(step) == []


async def test_a_step_that_is_lost_in_a_race_closes_all_of_it() -> None:
    journal = HandMadeJournal()
    journal.queued()

    def take_over(event_type: str) -> None:
        if event_type == "model.switched":
            journal.claimed(delivery=2)

    first, second = PlayedProvider(silence), backup(TextDelta("Hello"), silence)
    step = claimed_step(journal, on_append=take_over)
    with pytest.raises(StepLost):
        await turn_handler(first, fallbacks=[second], pool=HEDGING).perform(step)
    assert journal.types() == [*HEAD, "model.hedged", "step.claimed"]
    assert first.closed.is_set()
    assert second.closed.is_set()


async def test_more_than_a_race_holds_of_a_model_is_read_to_its_end() -> None:
    words = [TextDelta(f"{number} ") for number in range(1000)]
    step = claimed_step()
    await turn_handler(PlayedProvider(*words, STOP), fallbacks=[backup(STOP)], pool=PATIENT).perform(step)
    assert last(step, events.TaskCompleted).output == "".join(word.text for word in words)


@pytest.mark.parametrize("pool", [SWITCHING, HEDGING])
async def test_a_race_that_is_called_off_closes_all_of_it(pool: PoolConfiguration) -> None:
    asked = asyncio.Event()

    async def tell() -> None:
        asked.set()
        await silence()

    first, second = PlayedProvider(silence), backup(tell)
    running = asyncio.create_task(turn_handler(first, fallbacks=[second], pool=pool).perform(claimed_step()))
    await asked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert first.closed.is_set()
    assert second.closed.is_set()


# Too long


async def test_a_conversation_that_is_too_long_goes_to_the_next_model_in_the_same_claim() -> None:
    first, second = PlayedProvider(TOO_LONG), backup(TextDelta("Hello"), STOP)
    step = claimed_step()
    await turn_handler(first, fallbacks=[second], pool=PoolConfiguration(fallbacks=FALLBACKS)).perform(step)
    assert step.journal.types() == [*HEAD, "model.switched", "output.delta", *END]
    assert described(step) == [("played-1", "small", "context")]


async def test_without_a_next_model_the_try_fails_as_before() -> None:
    first = PlayedProvider(TOO_LONG)
    step = claimed_step()
    with pytest.raises(StepFailed) as caught:
        await turn_handler(first).perform(step)
    assert caught.value is TOO_LONG
    assert step.journal.types() == HEAD


async def test_a_bound_once_found_holds_for_a_takeover_and_is_halved_from_what_was_shown() -> None:
    said = [Message("user", f"{number:0100}") for number in range(16)]
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input=said))
    journal.claimed()
    journal.compacted(1600)
    first = PlayedProvider(TOO_LONG)
    step = claimed_step(journal)
    with pytest.raises(StepFailed):
        await turn_handler(first, pool=COMPACTING).perform(step)
    shown = [text_bytes(asked.messages) for asked in first.asked]
    assert shown == [800, 400, 200, 100]
    assert journal.state.compactions == 4  # Nothing can be left out of a last message.


async def test_a_conversation_is_halved_so_often_and_no_more() -> None:
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input=[Message("user", f"{number:010}") for number in range(500)]))
    first = PlayedProvider(TOO_LONG)
    with pytest.raises(StepFailed):
        await turn_handler(first, pool=COMPACTING).perform(claimed_step(journal))
    assert journal.state.compactions == 6
    assert len(first.asked) == 7


async def test_a_budget_bounds_what_a_turn_may_put_out() -> None:
    provider = PlayedProvider(STOP)
    await turn_handler(provider).perform(claimed_step(request=TaskRequest(input="hi", budget_tokens=9)))
    assert provider.asked[0].max_output_tokens == 9

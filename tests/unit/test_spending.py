"""What a turn's calls of models use: in its answer, beside it, and where nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta

import msgspec
import pytest

from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import ModelCall, Usage
from inference_worker.models.chunks import Chunk, Finished, Meter, TextDelta, TurnInput
from mesh.broker.requests import MESSAGE_TOO_LARGE
from mesh.clock import now
from mesh.configuration.mesh_toml import FallbackConfiguration, PoolConfiguration
from mesh.configuration.prices_table import ModelPrices
from mesh.errors import MessageTooLarge, StepLost
from mesh.task.budget import lost_calls, total, tree_usage, usage_so_far
from mesh.task.failures import StepFailed
from mesh.task.records import record
from tests.support.patience import stretched
from tests.unit.commanded import CANCEL, carried_out
from tests.unit.journals import FoldedStep, HandMadeJournal
from tests.unit.played import HEAD, STOP, Event, PlayedProvider, claimed_step, last, turn_handler

FALLBACKS = [FallbackConfiguration(provider="backup", model="small")]
HEDGING = PoolConfiguration(fallbacks=FALLBACKS, on_slow="hedge", slow_seconds=0.02)
SWITCHING = PoolConfiguration(fallbacks=FALLBACKS, on_slow="switch", slow_seconds=0.02)
BROKEN = StepFailed("provider-error", "oh", retryable=True)


async def silence() -> None:
    await asyncio.Event().wait()


class Metered(PlayedProvider):
    """A provider that tells `told` when it is asked, as Anthropic's does; `refuses`: it answers with an error."""

    def __init__(self, *chunks: Event, told: Usage | None = None, refuses: bool = False, **options: object) -> None:
        super().__init__(*chunks, **options)  # type: ignore[arg-type]  # passed on
        self._told = told
        self._refuses = refuses

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        turn.meter.ask()
        if self._refuses:
            turn.meter.refused()
        elif self._told is not None:
            turn.meter.tell(self._told)
        async for chunk in super().stream(turn):
            if isinstance(chunk, Finished):
                turn.meter.tell(chunk.usage)
                turn.meter.over()
            yield chunk


def backup(*chunks: Event, told: Usage | None = None) -> Metered:
    return Metered(*chunks, told=told, named=("backup", "small"))


def prices(provider: str, model: str) -> ModelPrices | None:
    return ModelPrices(input=2, output=10) if provider == "played" else None


def spent(step: FoldedStep) -> list[tuple[str, str, Usage]]:
    found = [event for event in step.journal.events if isinstance(event, events.ModelSpent)]
    assert all((event.pool, event.turn) == ("default", 1) for event in found)
    return [(event.provider, event.reason, event.usage) for event in found]


async def test_an_answer_tells_what_it_costs_and_where_it_counts() -> None:
    step = claimed_step()
    await turn_handler(Metered(TextDelta("a"), STOP), prices=prices).perform(step)
    turn = last(step, events.TurnCompleted)
    assert turn.usage == Usage(3, 4, cost_micros=46)
    assert (turn.provider, turn.model, turn.pool) == ("played", "played-1", "default")
    assert last(step, events.TaskCompleted).usage == turn.usage
    assert record(step.state).usage == turn.usage
    assert spent(step) == []


async def test_what_a_provider_does_not_tell_is_unknown_and_not_nothing() -> None:
    step = claimed_step()
    silent = Finished(finish_reason="stop", usage=Usage())
    await turn_handler(Metered(TextDelta("a"), silent), prices=prices).perform(step)
    assert last(step, events.TurnCompleted).usage == Usage(untold_calls=1)


async def test_a_provider_that_tells_only_what_it_has_put_out_has_not_told_all() -> None:
    step = claimed_step()
    half = Finished(finish_reason="stop", usage=Usage(0, 4))
    await turn_handler(Metered(TextDelta("a"), half), prices=prices).perform(step)
    assert last(step, events.TurnCompleted).usage == Usage(0, 4, cost_micros=40, untold_calls=1)


async def test_a_turn_that_its_deadline_cuts_off_has_what_was_told_by_then() -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=now() + timedelta(seconds=stretched(0.3)))
    step = claimed_step(journal)
    await turn_handler(Metered(TextDelta("a"), silence, told=Usage(9, 1)), prices=prices).perform(step)
    assert last(step, events.TurnCompleted).usage == Usage(9, 1, cost_micros=28, untold_calls=1)


@pytest.mark.parametrize(
    ("told", "usage"), [(Usage(9, 1), Usage(9, 1, cost_micros=28, untold_calls=1)), (None, Usage(untold_calls=1))]
)
async def test_a_call_that_breaks_off_is_told_before_its_try_has_failed(told: Usage | None, usage: Usage) -> None:
    step = claimed_step()
    with pytest.raises(StepFailed):
        await turn_handler(Metered(TextDelta("a"), BROKEN, told=told), prices=prices).perform(step)
    assert spent(step) == [("played", "failed", usage)]
    assert lost_calls(step.state) is None
    assert usage_so_far(step.state) == usage


async def test_an_answer_that_can_not_be_stored_has_been_paid_for_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    step = claimed_step()
    append = step.append

    async def too_small(build: Callable[[Stamp], JournalEvent]) -> JournalEvent:
        if isinstance(build(step.journal.stamp(now())), events.TurnCompleted):
            raise MessageTooLarge(MESSAGE_TOO_LARGE, "more than the broker takes")
        return await append(build)

    monkeypatch.setattr(step, "append", too_small)
    with pytest.raises(MessageTooLarge):
        await turn_handler(Metered(TextDelta("a"), STOP), prices=prices).perform(step)
    assert spent(step) == [("played", "failed", Usage(3, 4, cost_micros=46))]
    assert lost_calls(step.state) is None


async def test_what_broke_in_an_unknown_way_is_told_as_well() -> None:
    step = claimed_step()
    with pytest.raises(RuntimeError):
        await turn_handler(Metered(TextDelta("a"), RuntimeError("a bug"), told=Usage(9, 1))).perform(step)
    assert spent(step) == [("played", "failed", Usage(9, 1, untold_calls=1))]


async def test_whoever_has_lost_the_step_tells_nothing() -> None:
    step = claimed_step()

    async def taken_over() -> None:
        step.journal.claimed(delivery=2)

    with pytest.raises(StepLost):
        await turn_handler(Metered(taken_over, TextDelta("a"), STOP)).perform(step)
    assert spent(step) == []


async def test_a_request_that_is_refused_uses_nothing() -> None:
    step = claimed_step()
    with pytest.raises(StepFailed):
        await turn_handler(Metered(BROKEN, refuses=True), prices=prices).perform(step)
    assert spent(step) == []
    step.journal.retrying(1)
    assert usage_so_far(step.state) == Usage()
    assert lost_calls(step.state) is None


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_loser_of_a_hedge_is_told_before_the_other_goes_on(winner: int) -> None:
    both = asyncio.Event()

    async def other_is_asked() -> None:
        await both.wait()

    async def this_is_asked() -> None:
        both.set()

    first = Metered(*((other_is_asked, TextDelta("A"), STOP) if winner == 0 else (silence,)), told=Usage(9, 0))
    second = backup(this_is_asked, *((silence,) if winner == 0 else (TextDelta("B"), STOP)))
    step = claimed_step()
    await turn_handler(first, fallbacks=[second], pool=HEDGING, prices=prices).perform(step)
    assert step.journal.types()[: 4 + winner] == [
        *HEAD,
        "model.hedged",
        "model.spent",
        *["model.switched"] * winner,
    ]
    turn, end = last(step, events.TurnCompleted), last(step, events.TaskCompleted)
    if winner == 0:
        assert spent(step) == [("backup", "hedge", Usage(untold_calls=1))]
        assert (turn.provider, turn.usage) == ("played", Usage(3, 4, cost_micros=46))
        assert end.usage == Usage(3, 4, cost_micros=46, untold_calls=1)
    else:
        assert spent(step) == [("played", "hedge", Usage(9, 0, cost_micros=18, untold_calls=1))]
        assert (turn.provider, turn.model, turn.usage) == ("backup", "small", Usage(3, 4))
        assert end.usage == Usage(12, 4, cost_micros=18, unpriced_tokens=7, untold_calls=1)


async def test_a_model_that_is_too_slow_is_told_before_the_next_one_goes_on() -> None:
    step = claimed_step()
    handler = turn_handler(Metered(silence), fallbacks=[backup(TextDelta("B"), STOP)], pool=SWITCHING, prices=prices)
    await handler.perform(step)
    assert step.journal.types()[:4] == [*HEAD, "model.spent", "model.switched"]
    assert spent(step) == [("played", "slow", Usage(untold_calls=1))]
    assert last(step, events.TurnCompleted).provider == "backup"


async def test_a_redirect_tells_what_it_has_cut_off() -> None:
    step = claimed_step()

    async def redirect() -> None:
        if len(provider.asked) == 1:
            step.journal.add(events.InputReceived, text="rather this", by="test", mode="redirect", command="c1")
            assert step.on_news is not None
            step.on_news()
            await silence()

    provider = Metered(redirect, TextDelta("new"), STOP, told=Usage(9, 0))
    await turn_handler(provider, prices=prices).perform(step)
    assert spent(step) == [("played", "redirect", Usage(9, 0, cost_micros=18, untold_calls=1))]
    assert last(step, events.TaskCompleted).usage == Usage(12, 4, cost_micros=64, untold_calls=1)


async def test_what_a_provider_has_told_of_a_text_is_not_guessed_once_more_when_it_is_taken_back() -> None:
    journal = HandMadeJournal()
    journal.queued()
    step = claimed_step(journal)
    with pytest.raises(StepFailed):
        await turn_handler(Metered(TextDelta("x" * 40), BROKEN, told=Usage(9, 8))).perform(step)
    journal.retrying(1)
    again = claimed_step(journal)
    await turn_handler(Metered(TextDelta("y"), STOP, continues_prefix=False)).perform(again)
    assert last(again, events.TurnRestarted).discarded_tokens == 2  # of ten that the text seems to have
    assert last(again, events.TaskCompleted).usage == Usage(12, 12, discarded_tokens=2, untold_calls=1)


def test_the_calls_that_go_with_a_claim_or_a_task_are_known() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    call = ModelCall(turn=1, model="scripted", pool="default")
    assert lost_calls(journal.state) == [call]
    journal.add(events.ModelHedged, turn=1, provider="backup", model="small")
    other = ModelCall(turn=1, provider="backup", model="small", pool="default")
    assert lost_calls(journal.state) == [call, other]

    # Its worker dies. The next claim tells that, and asks anew.
    claim = msgspec.structs.replace(journal.events[1], lost=[call, other])
    journal.fold(msgspec.structs.replace(claim, n=journal.state.next_n, attempt=2))
    assert lost_calls(journal.state) == [call]
    assert usage_so_far(journal.state) == Usage(untold_calls=2)

    carried_out(journal, CANCEL)
    end = journal.events[-1]
    assert isinstance(end, events.TaskCancelled)
    assert end.lost == [call]
    assert record(journal.state).usage == Usage(untold_calls=3)


def test_what_goes_with_a_task_is_in_the_account_of_its_tree_as_well() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.turn_completed(calls=1)
    journal.child_started()
    journal.child_ended()
    journal.add(events.StepClaimed, step="2", gen=0, message=2, worker="w", delivery=1, turn=2, model="m")
    carried_out(journal, CANCEL)
    end = journal.events[-1]
    assert isinstance(end, events.TaskCancelled)
    assert end.tree_usage == tree_usage(journal.state)
    assert isinstance(end.tree_usage, Usage)
    assert end.tree_usage.untold_calls == 1


def test_nobody_is_asked_for_a_turn_that_is_completed() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.turn_completed(calls=1)
    assert lost_calls(journal.state) is None
    journal.claimed("1-0")
    journal.claimed(delivery=2)  # of the turn, to settle it
    assert lost_calls(journal.state) is None


def test_a_sum_has_a_cost_as_far_as_one_is_known() -> None:
    assert total([Usage(1, 2), Usage(3, 4)]) == Usage(4, 6)
    assert total([Usage(1, 2, cost_micros=5), Usage(3, 4)]) == Usage(4, 6, cost_micros=5, unpriced_tokens=7)
    assert total([Usage(1, 2, cost_micros=0), Usage(3, 4, cost_micros=1, unpriced_tokens=2)]) == Usage(
        4, 6, cost_micros=1, unpriced_tokens=2
    )
    assert total([Usage(5, 0, cached_tokens=3), Usage(untold_calls=1)]) == Usage(5, 0, cached_tokens=3, untold_calls=1)


def test_a_meter_adds_up_requests_and_knows_which_have_not_told_all() -> None:
    assert Meter().spent is None
    meter = Meter()
    meter.ask()
    assert meter.spent == Usage(untold_calls=1)
    meter.refused()
    assert str(meter.spent) == "None"  # mypy believes that it can't be
    meter.ask()
    meter.tell(Usage(3, 1))
    assert meter.spent == Usage(3, 1, untold_calls=1)
    meter.tell(Usage(3, 4))
    meter.over()
    assert meter.spent == Usage(3, 4)
    meter.ask()
    assert meter.spent == Usage(3, 4, untold_calls=1)
    # It has read something, and does not say how much: that is not all, also at its end.
    meter.tell(Usage(0, 2))
    assert meter.spent == Usage(3, 6, untold_calls=1)
    meter.over()
    assert meter.spent == Usage(3, 6, untold_calls=1)

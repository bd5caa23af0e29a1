"""Pools that choose among their models: what a claim says, who takes over, and what a model was seen to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from contracts.journal import events
from contracts.journal.parts import Estimate, Usage
from contracts.records.speeds import ModelSums
from contracts.tasks import TaskRequest
from inference_worker.models.breakers import Breakers
from inference_worker.models.candidates import Candidate, Candidates
from inference_worker.models.prompt_size import CACHED_SECONDS_MAX, PromptSize
from inference_worker.models.router import Routed, Router
from inference_worker.models.speeds import Speeds
from inference_worker.turn.turns import TurnHandler
from mesh.clock import now
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.mesh_toml import FallbackConfiguration, PoolConfiguration
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.prices_table import ModelPrices
from mesh.task.failures import StepFailed
from tests.unit.journals import START, FoldedStep, HandMadeJournal
from tests.unit.played import STOP, PlayedProvider, claimed_step, turn_handler

NAMES = (("main", "large"), ("backup", "small"), ("played", "played-1"))


class House:
    """Providers of known speed, and a router among them."""

    def __init__(self, *seconds: float | None, **options: object) -> None:
        self.speeds = Speeds()
        self.at = 1_000.0
        for (provider, model), each in zip(NAMES, seconds, strict=False):
            if each is not None:
                self.seen(provider, model, each)
        self.providers = [PlayedProvider(STOP, named=name) for name in NAMES[: len(seconds)]]
        defaults = {"prefer": "latency", "dice": random.Random(3), "now": lambda: START + timedelta(seconds=60)}
        self.router = Router(speeds=self.speeds, clock=lambda: self.at, **(defaults | options))  # type: ignore[arg-type]  # by name
        self.pool = Routed.of(Candidates.of_providers(self.providers), self.router)

    def seen(self, provider: str, model: str, seconds: float) -> None:
        sums = ModelSums(
            provider=provider,
            model=model,
            calls=20,
            first_token_seconds=20 * seconds,
            answers=20,
            output_tokens=2_000,
            output_seconds=20 * seconds,
        )
        self.speeds.saw(sums, self.at)


def always(_: str) -> bool:
    return True


def without(*names: str) -> Callable[[str], bool]:
    return lambda name: name not in names


def begun(request: TaskRequest | None = None) -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued(request)
    return journal


def claim(house: House, journal: HandMadeJournal, turn: int = 1, available: Callable[[str], bool] = always) -> str:
    """Claim a turn as the pool says, and append that; the reason."""
    said = house.pool.claim(journal.state, turn, available)
    journal.add(
        events.StepClaimed,
        step=str(turn),
        gen=0,
        message=7,
        worker="w",
        delivery=1,
        turn=turn,
        attempt=1,
        provider=said["provider"],
        model=said["model"],
        reason=said["reason"],
    )
    return said["reason"]


def of_turn(house: House, journal: HandMadeJournal, turn: int = 1) -> Candidate:
    return house.pool.of_turn(journal.state, turn)


def test_a_claim_names_the_best_and_says_why_and_the_turn_is_with_it() -> None:
    house, journal = House(5.0, 0.5, 5.0), begun()
    assert claim(house, journal) == "best seconds=1.00 of=3"
    assert of_turn(house, journal).place == NAMES[1]
    claimed = journal.events[-1]
    assert isinstance(claimed, events.StepClaimed)
    assert house.pool.claimed(journal.state, claimed).place == NAMES[1]
    assert of_turn(house, journal, turn=2).index == 0  # Nobody has claimed it.


def test_who_can_not_be_asked_is_not_chosen() -> None:
    house = House(5.0, 0.5, 5.0)
    journal = begun()
    claim(house, journal, available=without("backup", "played"))
    assert of_turn(house, journal).place == NAMES[0]
    journal = begun()
    assert claim(house, journal, available=without("main", "backup", "played")) == "none-available"
    assert of_turn(house, journal).index == 0


async def test_who_is_paused_or_has_nothing_left_of_its_pace_gets_nothing_and_without_any_other_none_does() -> None:
    paused, settings = set[str](), {name: BreakerSettings() for name, _ in NAMES}
    paces = {"backup": PaceSettings(requests_per_minute=1)}
    breakers = Breakers(None, settings, "w", paces, paused.__contains__)  # type: ignore[arg-type]  # nothing is asked here
    breakers.pacing.pacer("backup").begin(None, 0, None).refused(600.0, now().timestamp())
    house = House(0.5, 0.5, 5.0, is_closed=breakers.is_closed, room=breakers.pacing.room)

    def claims() -> set[tuple[str, str]]:
        said = [house.pool.claim(begun().state, 1, breakers.available) for _ in range(50)]
        return {(each["provider"], each["reason"].split()[0]) for each in said}

    assert {provider for provider, _ in claims()} == {"main"}
    paused.add("main")
    assert claims() == {("played", "only")}
    paused.add("played")
    assert claims() == {("main", "none-available")}
    paused.remove("main")
    assert claims() == {("main", "only")}


def test_a_turn_with_text_stays_with_the_model_that_has_said_it_unless_that_is_away_or_the_text_is_outdated() -> None:
    house, journal = House(0.5, 5.0, 5.0), begun()
    claim(house, journal, available=without("main"))
    left_with = of_turn(house, journal).place
    journal.delta("Hel")
    assert claim(house, journal) == "resumed"
    assert of_turn(house, journal).place == left_with
    assert left_with[0] is not None
    claim(house, journal, available=without(left_with[0]))
    assert of_turn(house, journal).place == NAMES[0]


def test_a_switch_of_the_turn_outranks_its_claim_and_one_for_context_outranks_all() -> None:
    house, journal = House(0.5, 5.0, 5.0), begun()
    claim(house, journal)
    journal.switched("small", "latency")
    assert of_turn(house, journal).place == NAMES[1]
    assert claim(house, journal) == "resumed"
    journal = begun()
    claim(house, journal)
    journal.switched("small", "context")
    journal.asks()
    claim(house, journal, turn=2)
    assert of_turn(house, journal, turn=2).index >= 1  # It does not fit the first.


def test_who_takes_over_is_the_best_that_this_claim_has_not_left() -> None:
    house, journal = House(0.5, 2.0, 1.0), begun()
    claim(house, journal)
    first = of_turn(house, journal)
    second = house.pool.after(journal.state, 1, first, always)
    assert (first.index, second and second.index) == (0, 2)
    journal.switched("played-1", "unavailable", provider="played")
    third = house.pool.after(journal.state, 1, of_turn(house, journal), always)
    assert third is not None
    assert third.index == 1
    journal.switched("small", "unavailable")
    assert house.pool.after(journal.state, 1, of_turn(house, journal), always) is None
    assert house.pool.after(journal.state, 1, first, without("backup", "played")) is None
    claim(house, journal)  # Whoever takes it over may ask them all again.
    assert house.pool.after(journal.state, 1, of_turn(house, journal), always) is not None


def test_a_try_that_failed_goes_elsewhere_if_another_is_nearly_as_good() -> None:
    house, journal = House(0.5, 0.7, 9.0), begun()
    claim(house, journal)
    assert of_turn(house, journal).index == 0
    journal.retrying(1)
    claim(house, journal)
    assert of_turn(house, journal).index == 1


def test_a_request_that_names_a_model_gets_it_from_whoever_has_it() -> None:
    house = House(5.0, 0.5, 9.0)
    named = house.pool.for_model("large")
    assert [each.place for each in named.all] == [NAMES[0], NAMES[1], NAMES[2]]
    assert {named.claim(begun().state, 1, always)["model"] for _ in range(50)} == {"large"}
    assert named.claim(begun().state, 1, without("main"))["model"] == "small"
    own = house.pool.for_model("own")
    assert {tuple(own.claim(begun().state, 1, always).values())[:2] for _ in range(50)} == {("main", "own")}
    assert house.pool.for_model(None) is house.pool
    assert [each.index for each in house.pool.for_model("played-1").all] == [0, 1, 2]


def test_a_provider_whose_breaker_lets_one_call_through_gets_that_call() -> None:
    house, journal = House(0.5, 9.0, 9.0, is_closed=without("played")), begun()
    assert claim(house, journal).startswith("probe ")
    assert of_turn(house, journal).place == NAMES[2]


def test_later_turns_stay_where_their_prompt_was_read_as_long_as_it_is_kept() -> None:
    prices = ModelPrices(input=1.0, cached_input=0.1, output=1.0)
    later = [START + timedelta(seconds=10)]
    house = House(1.0, 0.97, 9.0, prefer="balanced", prices_of=lambda *_: prices, now=lambda: later[0])
    journal = begun()
    claim(house, journal, available=without("backup", "played"))
    journal.asks(usage=Usage(20_000, 100))
    assert {house.pool.claim(journal.state, 2, always)["reason"].split()[0] for _ in range(50)} == {"prefix"}
    assert house.pool.size(journal.state, 2, house.pool.all[0]) == PromptSize(20_100, 20_000)
    assert house.pool.size(journal.state, 2, house.pool.all[1]) == PromptSize(20_100, 0)
    later[0] = START + timedelta(seconds=CACHED_SECONDS_MAX + 60)
    assert "prefix" not in {house.pool.claim(journal.state, 2, always)["reason"].split()[0] for _ in range(50)}


def test_the_cost_of_a_turn_is_of_its_estimate_and_its_deadline_counts() -> None:
    of = {"main": ModelPrices(input=1.0, output=2.0), "backup": ModelPrices(input=5.0, output=10.0)}
    house = House(9.0, 0.5, prefer="cost", prices_of=lambda provider, _: of[provider])
    estimate = Estimate(input_tokens=1_000, output_tokens=500, basis="median")

    def journal(seconds: float | None) -> HandMadeJournal:
        made = begun()
        deadline = None if seconds is None else house.router.now() + timedelta(seconds=seconds)
        assert made.state.queued is not None
        made.state.queued = msgspec.structs.replace(made.state.queued, estimate=estimate, deadline=deadline)
        return made

    reasons = [house.pool.claim(journal(None).state, 1, always)["reason"] for _ in range(20)]
    assert max(set(reasons), key=reasons.count).startswith("best seconds=")
    assert max(set(reasons), key=reasons.count).endswith("cost_micros=2000 of=2")
    in_time = [house.pool.claim(journal(20.0).state, 1, always)["model"] for _ in range(50)]
    assert in_time.count("small") > 40


def test_what_an_answer_may_have_is_bounded_by_pool_and_task() -> None:
    house = House(1.0, 1.0, max_output_tokens=40)
    assert claim(house, begun()).split()[1] == "seconds=1.40"  # One to the first token, and 40 of 100 tokens a second.
    limited = begun(TaskRequest(input="hello", max_output_tokens=10))
    assert claim(house, limited).split()[1] == "seconds=1.10"


# Turns


def failing_house(code: str, *, retryable: bool) -> House:
    """Of three the best fails, and so does the next best."""
    house = House(0.5, 9.0, 1.0)
    for index in (0, 2):
        house.providers[index] = PlayedProvider(StepFailed(code, "no", retryable=retryable), named=NAMES[index])
    house.pool = Routed.of(Candidates.of_providers(house.providers), house.router)
    return house


def claimed_by(handler: TurnHandler) -> FoldedStep:
    """The first turn of a new task, claimed as the handler says."""
    step = claimed_step()
    step.claim = msgspec.structs.replace(step.claim, **handler.describe_claim(step.state, step.work))
    step.state.turn(1).model = step.claim.provider, step.claim.model
    return step


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        ("provider-unreachable", True),
        ("provider-loading", True),
        ("rate-limited", True),
        ("quota-exhausted", False),
        ("provider-unauthorized", False),
        ("model-not-found", False),
    ],
)
async def test_a_turn_goes_on_with_the_best_of_the_others_where_its_provider_is_away_or_refuses(
    code: str, retryable: bool
) -> None:
    house = failing_house(code, retryable=retryable)
    handler = turn_handler(house.pool, pool=PoolConfiguration())
    step = claimed_by(handler)
    await handler.perform(step)
    switched = [event for event in step.journal.events if isinstance(event, events.ModelSwitched)]
    assert [(each.provider, each.reason) for each in switched] == [("played", "unavailable"), ("backup", "unavailable")]
    assert step.journal.types()[-2:] == ["turn.completed", "task.completed"]


@pytest.mark.parametrize(("code", "routed"), [("provider-error", True), ("rate-limited", False)])
async def test_other_failures_and_those_of_a_pool_with_an_order_are_tries_of_the_step(code: str, routed: bool) -> None:
    house = failing_house(code, retryable=True)
    handler = turn_handler(house.pool if routed else Candidates(house.pool.all), pool=PoolConfiguration())
    step = claimed_by(handler)
    with pytest.raises(StepFailed, match="no"):
        await handler.perform(step)
    assert "model.switched" not in step.journal.types()


# Hedging


async def test_a_slow_one_is_hedged_by_the_best_of_the_others_and_the_turn_is_with_whoever_speaks_first() -> None:
    house = House(0.5, 9.0, 1.0)
    house.providers[0] = PlayedProvider(asyncio.Event().wait, named=NAMES[0])
    house.pool = Routed.of(Candidates.of_providers(house.providers), house.router)
    fallbacks = [FallbackConfiguration(provider=name, model=model) for name, model in NAMES[1:]]
    handler = turn_handler(
        house.pool, pool=PoolConfiguration(fallbacks=fallbacks, on_slow="hedge", slow_seconds=0.02, prefer="latency")
    )
    step = claimed_by(handler)
    assert step.claim.provider == "main"
    await handler.perform(step)
    types = step.journal.types()
    assert types[types.index("model.hedged") :][-3:] == ["model.switched", "turn.completed", "task.completed"]
    hedged = next(event for event in step.journal.events if isinstance(event, events.ModelHedged))
    assert (hedged.provider, house.pool.of_turn(step.state, 1).provider) == ("played", "played")
    assert house.providers[1].asked == []
    # The next turn's prefix is where it was read, and not where it was claimed first.
    assert step.state.turn(1).model == NAMES[2]


async def test_who_comes_in_for_a_slow_one_is_the_best_of_those_that_are_there_by_then() -> None:
    house, away = House(0.5, 9.0, 1.0), set[str]()

    async def hangs() -> None:
        away.add("played")
        await asyncio.Event().wait()

    house.providers[0] = PlayedProvider(hangs, named=NAMES[0])
    house.pool = Routed.of(Candidates.of_providers(house.providers), house.router)
    pool = PoolConfiguration(
        fallbacks=[FallbackConfiguration(provider=name, model=model) for name, model in NAMES[1:]],
        on_slow="switch",
        slow_seconds=0.02,
        prefer="latency",
    )
    handler = turn_handler(house.pool, pool=pool, available=lambda name: name not in away)
    step = claimed_by(handler)
    await handler.perform(step)
    switched = [event for event in step.journal.events if isinstance(event, events.ModelSwitched)]
    assert [(each.provider, each.reason) for each in switched] == [("backup", "latency")]
    assert house.providers[2].asked == []

"""Which of several models a turn goes to: single choices, and fleets of workers that choose, simulated."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.journal.events import REASON_CHARACTERS_MAX
from inference_worker.models.routing import Choice, Option, Prefer, choose, ranked, scores_of
from tests.unit.simulated_routing import Fleet, Provider, Work

DRAWS = 2_000


def drawn(*options: Option, prefer: Prefer = "latency", left_seconds: float | None = None) -> Counter[tuple[int, str]]:
    """How often each was chosen, and why."""
    dice = random.Random(7)
    choices = (choose(options, prefer, left_seconds, dice) for _ in range(DRAWS))
    return Counter((choice.option.index, choice.why) for choice in choices)


def shares(*options: Option, prefer: Prefer = "latency", left_seconds: float | None = None) -> list[float]:
    counts = drawn(*options, prefer=prefer, left_seconds=left_seconds)
    return [sum(count for (index, _), count in counts.items() if index == each.index) / DRAWS for each in options]


# A single choice


@pytest.mark.parametrize(
    ("prefer", "left_seconds", "first"),
    [
        ("latency", None, 1),
        ("cost", None, 0),
        ("balanced", None, 2),
        ("cost", 60.0, 0),
        ("cost", 4.0, 2),
        ("cost", 1.5, 1),
        ("balanced", 1.5, 1),
        ("latency", 1.5, 1),
        ("cost", 0.5, 1),  # None meets it: the fastest is the least late.
        ("cost", -1.0, 1),
    ],
)
def test_the_preference_and_the_deadline_say_who_gets_nearly_all(
    prefer: Prefer, left_seconds: float | None, first: int
) -> None:
    options = (
        Option(index=0, seconds=10.0, cost=100.0),
        Option(index=1, seconds=1.0, cost=1_000.0),
        Option(index=2, seconds=3.0, cost=200.0),
    )
    assert shares(*options, prefer=prefer, left_seconds=left_seconds)[first] > 0.8


def test_models_that_are_alike_share_by_their_weights() -> None:
    one, three = Option(index=0, seconds=1.0), Option(index=1, seconds=1.0, weight=3.0)
    assert shares(one, three) == pytest.approx([0.25, 0.75], abs=0.03)


def test_no_weight_makes_up_for_a_model_that_is_five_times_slower() -> None:
    assert shares(Option(index=0, seconds=5.0, weight=10.0), Option(index=1, seconds=1.0))[0] < 0.01


@pytest.mark.parametrize("slower", [1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 20.0])
@pytest.mark.parametrize("others", [1, 3, 8])
def test_chance_makes_turns_no_more_than_a_tenth_longer(slower: float, others: int) -> None:
    options = [Option(index=0, seconds=1.0), *(Option(index=1 + at, seconds=slower) for at in range(others))]
    got = shares(*options)
    assert got[0] + slower * sum(got[1:]) <= 1.1


def test_one_that_nobody_knows_is_tried_now_and_then_beside_those_that_are_known() -> None:
    known, unknown = Option(index=0, seconds=1.0), Option(index=1, idle_seconds=float("inf"))
    counts = drawn(known, unknown)
    assert counts[1, "explore"] / DRAWS == pytest.approx(0.2, abs=0.03)
    assert counts[0, "best"] + counts[1, "explore"] == DRAWS
    assert shares(known, replace(unknown, idle_seconds=0.5))[1] == 0.0  # Somebody is just trying it.


def test_without_any_that_is_known_all_are_tried() -> None:
    assert min(shares(Option(index=0), Option(index=1), Option(index=2))) > 0.25
    # Prices are known. With a deadline they wait until it is known who can meet it.
    cheap, dear = Option(index=0, cost=1.0), Option(index=1, cost=100.0)
    assert shares(cheap, dear, prefer="cost")[0] > 0.95
    assert shares(cheap, dear, prefer="cost", left_seconds=60.0)[0] > 0.95
    assert shares(cheap, dear, prefer="cost", left_seconds=5.0) == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize(("slower", "part"), [(1.2, 0.2), (2.0, 0.05), (6.0, 0.01), (51.0, 0.001)])
def test_the_worse_one_is_the_more_seldom_it_is_tried_again(slower: float, part: float) -> None:
    quick, slow = Option(index=0, seconds=1.0), Option(index=1, seconds=slower, idle_seconds=60.0)
    assert drawn(quick, slow)[1, "explore"] / DRAWS == pytest.approx(part, rel=0.5, abs=0.001)


def test_one_that_failed_at_everything_is_tried_again_as_often_as_one_that_is_twice_as_slow() -> None:
    """A call that fails costs little more than another one."""
    failing = Option(index=1, seconds=1.0, success=0.05, idle_seconds=60.0)
    counts = drawn(Option(index=0, seconds=1.0), failing)
    assert counts[1, "explore"] / DRAWS == pytest.approx(0.05, abs=0.02)
    assert counts[1, "best"] + counts[1, "near"] == 0


def test_one_that_is_hopeless_hides_none_that_may_have_become_better() -> None:
    best, hopeless = Option(index=0, seconds=1.0), Option(index=1, seconds=1_000.0, idle_seconds=600.0)
    counts = drawn(best, hopeless, Option(index=2, seconds=1.5, idle_seconds=60.0))
    # A part of 0.05 / 0.5, of which each of the two that wait to be tried has the half.
    assert counts[2, "explore"] / DRAWS == pytest.approx(0.05, abs=0.02)


def test_what_nobody_has_tried_for_hours_is_tried_again_however_bad_it_was() -> None:
    """At a turn a minute one that once hung for five minutes would else be tried once in four days."""
    best, hung = Option(index=0, seconds=1.0), Option(index=1, seconds=300.0, success=0.1, idle_seconds=3_600.0)
    assert drawn(best, hung)[1, "explore"] / DRAWS < 0.005
    assert drawn(best, replace(hung, idle_seconds=12 * 3_600.0))[1, "explore"] / DRAWS > 0.1
    assert drawn(best, replace(hung, seconds=None, idle_seconds=12 * 3_600.0))[1, "explore"] / DRAWS > 0.1


def test_one_that_was_too_slow_for_the_deadline_is_believed_so_for_a_while() -> None:
    quick = Option(index=0, seconds=1.0, cost=100.0)
    cheap = Option(index=1, seconds=8.0, cost=10.0, idle_seconds=30.0)
    unknown = Option(index=2, cost=1_000.0)
    assert shares(cheap, unknown, prefer="cost", left_seconds=4.0) == [0.0, 1.0]
    assert shares(quick, cheap, prefer="cost", left_seconds=4.0)[1] == 0.0
    assert shares(quick, replace(cheap, idle_seconds=61.0), prefer="cost", left_seconds=4.0)[1] > 0.1


def test_a_task_stays_where_its_prefix_is_unless_another_is_much_better() -> None:
    kept = Option(index=0, seconds=1.05, has_prefix=True)
    assert drawn(kept, Option(index=1, seconds=1.0)) == {(0, "prefix"): DRAWS}
    assert shares(kept, Option(index=1, seconds=0.5))[0] < 0.02


def test_who_has_just_failed_at_the_step_is_not_asked_again_beside_one_as_good() -> None:
    assert shares(Option(index=0, seconds=1.0, just_failed=True), Option(index=1, seconds=1.3))[0] < 0.02


def test_one_without_room_gets_nothing_and_one_with_little_gets_less() -> None:
    full, free = Option(index=0, seconds=1.0, room=0.0), Option(index=1, seconds=5.0)
    assert drawn(full, free) == {(1, "only"): DRAWS}
    assert set(drawn(full, replace(free, room=0.0))) != {(1, "only")}  # All are full: it waits where it goes best.
    half, little = Option(index=0, seconds=1.0, room=0.5), Option(index=1, seconds=1.0, room=0.1)
    assert shares(half, little)[1] < 0.1
    assert shares(half, replace(little, room=0.3)) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_provider_that_is_to_be_probed_gets_the_turn_however_slow_it_was() -> None:
    probed = Option(index=0, seconds=100.0, success=0.0, is_probe=True)
    assert drawn(probed, Option(index=1, seconds=1.0)) == {(0, "probe"): DRAWS}


def test_a_model_that_costs_nothing_does_not_outweigh_any_time() -> None:
    own, bought = Option(index=0, seconds=1_000.0, cost=0.0), Option(index=1, seconds=1.0, cost=5.0)
    assert shares(own, bought, prefer="balanced")[1] > 0.95
    assert shares(own, bought, prefer="cost")[0] > 0.95
    assert shares(own, replace(bought, cost=0.0), prefer="cost")[1] > 0.6  # Of two that cost alike the faster one.


def test_who_takes_over_is_the_best_of_the_others() -> None:
    options = [Option(index=0, seconds=3.0), Option(index=1, seconds=1.0), Option(index=2, seconds=2.0)]
    assert [each.index for each in ranked(options, "latency")] == [1, 2, 0]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (Option(index=0), "best of=2"),
        (Option(index=0, seconds=1.8449), "best seconds=1.84 of=2"),
        (Option(index=0, seconds=0.0, cost=310.4), "best seconds=0.00 cost_micros=310 of=2"),
    ],
)
def test_a_reason_is_a_word_and_figures(option: Option, reason: str) -> None:
    assert Choice(option, "best", 2).reason == reason


def test_scores_are_finite_whatever_is_known() -> None:
    odd = [
        Option(index=0),
        Option(index=1, seconds=0.0, cost=0.0, success=0.0, room=0.0, just_failed=True),
        Option(index=2, seconds=1e9, cost=1e12, weight=0.01),
    ]
    preferences: tuple[Prefer, ...] = ("latency", "cost", "balanced")
    for prefer in preferences:
        assert all(0 < score < float("inf") for score in scores_of(odd, prefer))
        drawn(*odd, prefer=prefer)


times = st.floats(0.0, 1e9)
options = st.builds(
    Option,
    index=st.just(0),
    seconds=st.none() | times,
    cost=st.none() | times,
    weight=st.floats(0.01, 1_000.0),
    success=st.floats(0.0, 1.0),
    room=st.floats(0.0, 1.0),
    idle_seconds=st.floats(0.0, float("inf")),
    has_prefix=st.booleans(),
    just_failed=st.booleans(),
    is_probe=st.booleans(),
)


@given(
    st.lists(options, min_size=1, max_size=9),
    st.sampled_from(["latency", "cost", "balanced"]),
    st.none() | st.floats(-1e6, 1e6),
    st.integers(0, 100),
)
def test_whatever_is_known_one_is_chosen_that_has_room_and_its_reason_fits_a_claim(
    made: list[Option], prefer: Prefer, left_seconds: float | None, seed: int
) -> None:
    numbered = [replace(each, index=index) for index, each in enumerate(made)]
    choice = choose(numbered, prefer, left_seconds, random.Random(seed))
    assert choice.option in numbered
    assert choice.of == len(numbered)
    assert len(choice.reason) <= REASON_CHARACTERS_MAX
    if choice.why != "probe" and any(each.room > 0 for each in numbered):
        assert choice.option.room > 0
    known = [each for each in numbered if each.room > 0 and each.seconds is not None and not each.is_probe]
    in_time = [each for each in known if left_seconds is not None and (each.seconds or 0.0) <= left_seconds]
    if choice.why in ("best", "near", "prefix") and prefer != "latency" and in_time:
        assert choice.option in in_time


# Fleets


def slow_then_failing(at: float) -> float:
    return 5.0 if 20 <= at < 40 else 1.0


def failing(at: float) -> bool:
    return 40 <= at < 60


def unsteady() -> list[Provider]:
    """Of two providers the quicker one becomes five times slower, then fails, then recovers."""
    return [
        Provider(slower=slow_then_failing, fails=failing),
        Provider(first_token_seconds=0.3, seconds_per_output_token=0.007),
    ]


def run(providers: list[Provider], prefer: Prefer, *, fixed: int | None = None, **options: float) -> Fleet:
    fleet = Fleet(providers, prefer, int(options.get("workers", 8)), int(options.get("seed", 1)))
    fleet.fixed = fixed
    fleet.run(options.get("seconds", 90.0), options.get("per_second", 20.0))
    return fleet


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (8, 2), (8, 3)])
def test_shares_follow_within_seconds_what_becomes_of_a_provider(workers: int, seed: int) -> None:
    fleet = run(unsteady(), "latency", workers=workers, seed=seed)
    assert fleet.share(0, 5, 20) > 0.85
    assert fleet.share(0, 24, 40) < 0.05
    assert fleet.share(0, 40, 60) < 0.05
    assert fleet.share(0, 75, 90) > 0.85
    assert sum(turn.failed for turn in fleet.turns) <= 0.01 * len(fleet.turns)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_time_of_all_turns_is_at_most_a_fifth_above_that_of_the_best_fixed_choice(seed: int) -> None:
    chosen = run(unsteady(), "latency", seed=seed)
    fixed = [run(unsteady(), "latency", fixed=index, seed=seed) for index in (0, 1)]
    # Who always goes to the one that fails does not get all turns done.
    best = min(fleet.seconds for fleet in fixed if not any(turn.failed for turn in fleet.turns))
    assert chosen.seconds <= 1.2 * best


@pytest.mark.parametrize("others", [2, 8])
def test_many_bad_ones_beside_a_good_one_cost_little(others: int) -> None:
    def house() -> list[Provider]:
        return [Provider(), *(Provider(slower=lambda _: 5.0) for _ in range(others))]

    assert run(house(), "latency").seconds <= 1.2 * run(house(), "latency", fixed=0).seconds


@pytest.mark.parametrize("load", [0.25, 0.75, 0.95])
def test_a_fleet_does_not_herd_from_one_loaded_server_to_the_other(load: float) -> None:
    """Both have the same places. Who goes by the newest times alone has all turns here, then there."""

    def server() -> Provider:
        return Provider(places=20, seconds_per_output_token=0.003)

    seconds_each = 0.2 + 100 * 0.003
    fleet = run([server(), server()], "latency", seconds=60, per_second=load * 40 / seconds_each)
    by_twos = [fleet.share(0, at, at + 2) for at in range(10, 60, 2)]
    assert fleet.seconds / len(fleet.turns) <= {0.25: 1.2, 0.75: 1.3, 0.95: 3.0}[load] * seconds_each
    if load >= 0.75:
        assert all(0.2 <= share <= 0.8 for share in by_twos)


def market() -> list[Provider]:
    """A cheap one that takes its time, and two that are quick and dear."""
    return [
        Provider(first_token_seconds=2.0, seconds_per_output_token=0.03, price_input=1, price_output=4),
        Provider(price_input=3, price_output=15),
        Provider(first_token_seconds=0.4, price_input=2.5, price_output=12),
    ]


@pytest.mark.parametrize(("deadline_seconds", "cheapest"), [(None, 0), (60.0, 0), (3.0, 2)])
@pytest.mark.parametrize("per_second", [2.0, 10.0])
def test_with_cost_the_cheapest_that_meets_the_deadline_gets_the_turns(
    deadline_seconds: float | None, cheapest: int, per_second: float
) -> None:
    def work(_: random.Random) -> Work:
        return Work(deadline_seconds=deadline_seconds)

    def fleet_of(fixed: int | None) -> Fleet:
        fleet = Fleet(market(), "cost")
        fleet.fixed = fixed
        fleet.run(120.0, per_second, work)
        return fleet

    chosen, fixed = fleet_of(None), fleet_of(cheapest)
    assert chosen.cost / len(chosen.turns) <= 1.1 * fixed.cost / len(fixed.turns)
    assert sum(turn.late for turn in chosen.turns) <= 0.02 * len(chosen.turns) + 2


def conversations() -> Callable[[random.Random], Work]:
    """Fifty tasks at a time, whose prompts grow with each of their ten turns."""
    tokens = [0] * 50

    def next_turn(dice: random.Random) -> Work:
        task = dice.randrange(len(tokens))
        before = tokens[task]
        tokens[task] = 0 if before >= 18_000 else before + 2_000
        return Work(input_tokens=before + 2_000, prefix_tokens=before, task=task)

    return next_turn


def test_tasks_stay_where_their_prefix_is_cached_and_still_leave_a_slow_server() -> None:
    def house(slower: Callable[[float], float]) -> list[Provider]:
        return [
            Provider(seconds_per_input_token=0.0002, price_input=1, price_output=4, slower=slower),
            Provider(seconds_per_input_token=0.0002, price_input=1, price_output=4),
        ]

    steady = Fleet(house(lambda _: 1.0), "balanced")
    steady.run(60.0, 20.0, conversations())
    later = [turn for turn in steady.turns if turn.at > 10]
    assert sum(turn.why == "prefix" for turn in later) > 0.8 * len(later)
    assert 0.1 < steady.share(0, 10, 60) < 0.9
    unsteady_one = Fleet(house(lambda at: 8.0 if at > 30 else 1.0), "balanced")
    unsteady_one.run(60.0, 20.0, conversations())
    assert unsteady_one.share(0, 35, 60) < 0.1

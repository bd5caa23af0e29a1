"""The order of tenants: the mover's own rules, alone and in a simulated lane (ADR-30). No clock but a virtual one."""

from __future__ import annotations

import statistics

import pytest

from steward.admission.fair_order import AHEAD_MIN, EXPECTED_MIN, Ahead, FairOrder
from tests.support.fair_simulation import DeficitRoundRobin, Lane, Outcome, Task, burst, steady

FLOOD = 5_000
FEW = 10
MINUTE = 60.0


def share_alone(places: int, tenants: int) -> float:
    """How long the few take with an equal share of the places for themselves."""
    share = places / tenants
    alone = Lane(places=max(1, int(share)), rule="arrival").run(burst("few", FEW)).seconds
    return alone if share >= 1 else alone / share


@pytest.mark.parametrize("ingresses", [1, 8])
@pytest.mark.parametrize("others", [1, 20])
@pytest.mark.parametrize("places", [1, 4, 32, 256])
def test_who_comes_after_a_flood_is_done_within_twice_the_time_of_an_equal_share(
    places: int, others: int, ingresses: int
) -> None:
    floods = [task for number in range(others) for task in burst(f"flood-{number}", FLOOD // others)]
    came_at = 0.6
    outcome = Lane(places=places, ingresses=ingresses).run([*floods, *burst("few", FEW, came_at)])
    assert outcome.end_of("few") - came_at <= 2 * share_alone(places, others + 1)
    assert len(outcome.ended) == len(floods) + FEW


@pytest.mark.parametrize("rule", ["arrival", "window"])
def test_neither_the_order_of_arrival_nor_a_window_for_each_tenant_would_do(rule: str) -> None:
    floods = [task for number in range(20) for task in burst(f"flood-{number}", FLOOD // 20)]
    outcome = Lane(places=4, rule=rule, window=64).run([*floods, *burst("few", FEW, 0.6)])  # type: ignore[arg-type]  # one of Rule
    assert outcome.end_of("few") > 4 * share_alone(4, 21)


@pytest.mark.parametrize(("places", "seconds"), [(4, 0.01), (32, 0.05), (32, 1.0), (256, 0.5)])
def test_a_tenant_that_is_alone_gets_the_whole_fleet(places: int, seconds: float) -> None:
    flood = burst("alone", FLOOD, seconds=seconds)
    without = Lane(places=places, rule="arrival").run(flood).seconds
    assert without / Lane(places=places).run(flood).seconds >= 0.95


def mixed(lane: Lane, small: int, large: int) -> Outcome:
    """Two tenants whose tasks differ tenfold in tokens, and take as long as they have tokens."""
    tasks = burst("small", 8_000, seconds=0.3, estimate=small, tokens=300)
    return lane.run([*tasks, *burst("large", 800, seconds=3.0, estimate=large, tokens=3_000)])


def worst_share(outcome: Outcome, tenant: str, fair: float) -> float:
    """How far the tenant's part of the tokens of any minute is from what is fair, while both have work."""
    worst = 0.0
    for begin in range(10, int(outcome.seconds / 2 - MINUTE), 10):
        tokens = outcome.tokens(begin, begin + MINUTE)
        worst = max(worst, abs(tokens[tenant] / tokens.total() - fair) / fair)
    return worst


@pytest.mark.parametrize(("small", "large"), [(300, 3_000), (1_000, 1_000)])
def test_shares_of_tokens_are_those_of_the_weights_however_wrong_the_estimates(small: int, large: int) -> None:
    assert worst_share(mixed(Lane(places=16), small, large), "large", 0.5) <= 0.15


def test_weights_are_kept() -> None:
    outcome = mixed(Lane(places=16, weights={"small": 1.0, "large": 3.0}), 1_000, 1_000)
    assert worst_share(outcome, "large", 0.75) <= 0.15


def test_estimates_alone_would_not_do() -> None:
    lane = Lane(places=16)
    lane.order = DeficitRoundRobin(1_000, lane.head_cost)
    assert worst_share(mixed(lane, 1_000, 1_000), "large", 0.5) > 0.5


def test_a_thousand_tenants_hardly_feel_that_one_floods() -> None:
    calm = [task for number in range(1_000) for task in steady(f"t{number}", 0.02, 120)]
    flood = burst("flood", FLOOD // 2, 10)

    def median_seconds(tasks: list[Task]) -> float:
        """From acceptance to about the end: turns take a second."""
        waits = Lane(places=32).run(tasks).waits
        return statistics.median(wait + 1 for tenant, each in waits.items() if tenant != "flood" for wait in each)

    assert median_seconds([*calm, *flood]) / median_seconds(calm) <= 1.3


# The order alone


def went(order: FairOrder, tenants: list[str], count: int, tokens: int = 100) -> list[str]:
    """Who goes, so many times."""
    order.wait(tenants)
    turns = order.turns(tenants)
    gone: list[str] = []
    for _ in range(count):
        name = turns.next()
        assert name is not None
        gone.append(name)
        turns.went(tokens, 1.0)
    return gone


def test_tenants_take_turns() -> None:
    assert went(FairOrder(), ["a", "b", "c"], 6) == ["a", "b", "c", "a", "b", "c"]


def test_who_had_nothing_waiting_has_saved_nothing_up() -> None:
    order = FairOrder()
    went(order, ["a"], 50)
    order.used("a", 50, 5_000, 1.0)
    order.wait(["a"])
    assert sorted(went(order, ["a", "b"], 4)) == ["a", "a", "b", "b"]


def test_who_comes_anew_gets_as_much_under_way_as_the_others_and_then_its_turn() -> None:
    order = FairOrder()
    went(order, ["a"], 8)
    assert went(order, ["a", "b"], 12) == ["b"] * 8 + ["a", "b"] * 2


def test_who_comes_while_others_are_thought_to_be_dear_does_not_pay_for_that_later() -> None:
    order = FairOrder()
    went(order, ["flood"], 40, tokens=500)
    assert went(order, ["flood", "few"], 1, tokens=500) == ["few"]
    order.used("flood", 40, 400, 1.0)  # They were fifty times cheaper.
    order.used("few", 1, 10, 1.0)
    went(order, ["flood"], 10, tokens=10)
    assert "few" in went(order, ["flood", "few"], 2, tokens=10)


def test_usage_that_nobody_tells_of_is_taken_for_what_was_thought_once_it_can_be_under_way_no_more() -> None:
    order = FairOrder()
    order.under_way(10)
    went(order, ["untold"], 1_000)
    gone = went(order, ["untold", "new"], 200)
    assert gone.index("untold") == EXPECTED_MIN + 2 * 10


def test_of_equals_goes_who_has_waited_for_longest() -> None:
    order = FairOrder()
    order.wait(["z"])
    order.wait(["z", "a"])
    assert went(order, ["z", "a"], 2) == ["z", "a"]


def test_a_task_counts_by_what_it_has_used_once_that_is_known() -> None:
    order = FairOrder()
    assert went(order, ["a", "b"], 2) == ["a", "b"]
    order.used("a", 1, 1_000, 1.0)
    order.used("b", 1, 10, 1.0)
    assert went(order, ["a", "b"], 9) == ["b"] * 9


def test_who_may_not_go_now_is_passed_over() -> None:
    order = FairOrder()
    order.wait(["a", "b"])
    turns = order.turns(["a", "b"])
    turns.leave()
    assert turns.next() == "b"
    turns.leave()
    assert turns.next() is None


def test_what_was_used_while_nobody_waited_is_held_against_nobody() -> None:
    order = FairOrder()
    order.used("a", 5, 500, 1.0)
    went(order, ["b"], 3)
    order.used("b", 3, 300, 1.0)
    order.used("a", 5, 500, 1.0)
    assert sorted(went(order, ["a", "b"], 4)) == ["a", "a", "b", "b"]


def test_who_was_stopped_for_long_gets_no_more_than_its_share_afterwards() -> None:
    order = FairOrder()
    went(order, ["a", "stopped"], 2)
    went(order, ["a"], 50)
    order.used("a", 51, 5_100, 1.0)
    assert sorted(went(order, ["a", "stopped"], 4)) == ["a", "a", "stopped", "stopped"]


def test_who_leaves_and_comes_back_pays_what_it_owes() -> None:
    order = FairOrder()
    went(order, ["a", "b"], 2)
    order.used("a", 1, 1_000, 1.0)
    order.wait(["b"])
    assert went(order, ["a", "b"], 5) == ["b"] * 5


def test_estimates_that_are_wrong_for_a_tenant_are_set_right_for_its_next_tasks() -> None:
    order = FairOrder()
    went(order, ["dear", "cheap"], 60)
    for _ in range(30):
        order.used("dear", 1, 1_000, 1.0)
        order.used("cheap", 1, 10, 1.0)
    before = order.served("dear")
    order.moved("dear", 100, 1.0)
    assert order.served("dear") - before > 900
    before = order.served("cheap")
    order.moved("cheap", 100, 1.0)
    assert order.served("cheap") - before < 20


def test_one_that_has_not_gone_costs_nothing() -> None:
    order = FairOrder()
    order.moved("a", 100, 1.0)
    order.took_back("a")
    assert order.served("a") == 0


def test_few_lie_ready_unless_they_are_gone_at_the_next_look() -> None:
    ahead = Ahead()
    given = [ahead.look(0) for _ in range(5)]
    assert given == [2 * AHEAD_MIN, 4 * AHEAD_MIN, 8 * AHEAD_MIN, 16 * AHEAD_MIN, 32 * AHEAD_MIN]
    ready = given[-1]
    for _ in range(200):
        assert ahead.look(ready) == 0
    assert ahead.look(AHEAD_MIN) == 0

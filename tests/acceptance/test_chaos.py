"""A seeded part of the kill matrix, and its negative controls; `make chaos` runs all of it.

What goes without acks is found in test_negative_controls, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.agent import AGENT
from tests.chaos.archive import ARCHIVE, DROPPED
from tests.chaos.distant import DISTANT
from tests.chaos.matrix import CONTROLS, Matrix
from tests.chaos.moves import MOVES
from tests.chaos.points import FAULTS, Point
from tests.chaos.poison import POISON
from tests.chaos.repairs import REPAIRS
from tests.chaos.scenario import Scenario
from tests.chaos.skewed import SKEWED
from tests.chaos.starts import STARTS

pytestmark = pytest.mark.acceptance

SEED = 20261121
DEATHS = 3
STEWARD_DEATHS = 2


def some(points: list[Point], chance: random.Random) -> list[Point]:
    """Deaths of different services, and one of each other fault, at points that every run comes to."""
    sure = [point for point in points if not point.held and ":running" not in point.what]
    services = chance.sample(sorted({point.service for point in sure}), DEATHS)
    chosen = [
        chance.choice([point for point in sure if (point.fault, point.service) == ("kill", service)])
        for service in services
    ]
    return chosen + [chance.choice([point for point in sure if point.fault == fault]) for fault in FAULTS[1:]]


def deaths_of_the_steward(points: list[Point], chance: random.Random) -> list[Point]:
    """One at a message that a timer has brought or that goes on, and others, at points that every run comes to."""
    kills = [point for point in points if (point.fault, point.service) == ("kill", "steward")]
    sure = [point for point in kills if point.what.startswith(("append:", "before-ack:", "after-ack:"))]
    goes_on = [point for point in sure if point.what.startswith(("append:task.replayed", "before-ack:timers.fired"))]
    first = chance.choice(goes_on)
    return [first, *chance.sample([point for point in sure if point != first], STEWARD_DEATHS - 1)]


def one_death_of_the_steward(points: list[Point], _: random.Random) -> list[Point]:
    """Once it has appended what the broker's word comes to."""
    return [point for point in points if (point.fault, point.what) == ("kill", "append:task.dead_lettered")]


def death_of_the_steward_before_an_ack(points: list[Point], _: random.Random) -> list[Point]:
    """It has started the signal's task, and has the signal again."""
    return [point for point in points if (point.fault, point.what) == ("kill", "before-ack:signals.default")]


def sleep_of_the_steward_that_moves(points: list[Point], _: random.Random) -> list[Point]:
    """It has read a message; the other steward takes its lease, and moves it; it wakes up, and moves it, too."""
    wanted = ("pause", "before-move:tasks.default", 1)
    return [point for point in points if (point.fault, point.what, point.which) == wanted]


def one_death_of_a_worker(points: list[Point], _: random.Random) -> list[Point]:
    """It has ended a turn, and published nothing of what is due."""
    wanted = ("kill", "inference_worker", "append:turn.completed", 1)
    return [point for point in points if (point.fault, point.service, point.what, point.which) == wanted]


def death_of_the_worker_after_a_timer(points: list[Point], _: random.Random) -> list[Point]:
    """Whose clock is wrong: it has set the timer of a later try, and who comes next sets it again."""
    what = "after-publish:timers.at.retry"
    return [point for point in points if (point.fault, point.service, point.what) == ("kill", "inference_worker", what)]


def death_of_the_steward_before_anybody_finds_a_pack(points: list[Point], _: random.Random) -> list[Point]:
    """It has stored a pack, and has not said where its tasks lie."""
    wanted = ("kill", "after-pack:archive", 1)
    return [point for point in points if (point.fault, point.what, point.which) == wanted]


def death_of_a_steward_that_drops_a_pack(points: list[Point], _: random.Random) -> list[Point]:
    """It has purged what belongs to it."""
    return [point for point in points if (point.fault, point.what) == ("kill", "before-drop:archive")]


@pytest.mark.parametrize(
    ("scenario", "choose", "count"),
    [
        (AGENT, some, DEATHS + len(FAULTS) - 1),
        (REPAIRS, deaths_of_the_steward, STEWARD_DEATHS),
        (POISON, one_death_of_the_steward, 1),
        (STARTS, death_of_the_steward_before_an_ack, 1),
        (MOVES, sleep_of_the_steward_that_moves, 1),
        (DISTANT, one_death_of_a_worker, 1),
        (SKEWED, death_of_the_worker_after_a_timer, 1),
        (ARCHIVE, death_of_the_steward_before_anybody_finds_a_pack, 1),
        (DROPPED, death_of_a_steward_that_drops_a_pack, 1),
    ],
    ids=["agent", "repairs", "poison", "starts", "moves", "distant", "skewed", "archive", "dropped"],
)
async def test_a_run_comes_to_the_same_end_whoever_dies_in_it(
    tmp_path: Path,
    scenario: Scenario,
    choose: Callable[[list[Point], random.Random], list[Point]],
    count: int,
) -> None:
    report = await Matrix(tmp_path, SEED, scenario, slots=1, recordings=1).run(choose)
    assert report.violations == []
    assert len(report.points) == count
    assert report.missed == []
    assert report.tracebacks == []


@pytest.mark.parametrize("safeguard", sorted(CONTROLS.keys() - {"ack"}))
async def test_without_a_safeguard_the_checker_finds_what_breaks(tmp_path: Path, safeguard: str) -> None:
    matrix = Matrix(tmp_path, SEED)
    await matrix.control(safeguard)
    assert matrix.report.controls[safeguard]

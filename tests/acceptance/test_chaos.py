"""A seeded part of the kill matrix, and its negative controls; `make chaos` runs all of it.

What goes without acks is found in test_negative_controls, too.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.matrix import CONTROLS, Matrix
from tests.chaos.points import FAULTS, Point

pytestmark = pytest.mark.acceptance

SEED = 20261121
DEATHS = 3


def some(points: list[Point], chance: random.Random) -> list[Point]:
    """Deaths of different services, and one of each other fault, at points that every run comes to."""
    sure = [point for point in points if not point.held and ":running" not in point.what]
    services = chance.sample(sorted({point.service for point in sure}), DEATHS)
    chosen = [
        chance.choice([point for point in sure if (point.fault, point.service) == ("kill", service)])
        for service in services
    ]
    return chosen + [chance.choice([point for point in sure if point.fault == fault]) for fault in FAULTS[1:]]


async def test_a_run_comes_to_the_same_end_whoever_dies_in_it(tmp_path: Path) -> None:
    report = await Matrix(tmp_path, SEED, slots=1, recordings=1).run(some)
    assert report.violations == []
    assert len(report.points) == DEATHS + len(FAULTS) - 1
    assert report.missed == []
    assert report.tracebacks == []


@pytest.mark.parametrize("safeguard", sorted(CONTROLS.keys() - {"ack"}))
async def test_without_a_safeguard_the_checker_finds_what_breaks(tmp_path: Path, safeguard: str) -> None:
    matrix = Matrix(tmp_path, SEED)
    await matrix.control(safeguard)
    assert matrix.report.controls[safeguard]

"""When the ingress has no room for more tasks."""

from __future__ import annotations

import pytest

from mesh.broker.levels import Level, above


@pytest.mark.parametrize(
    ("used", "limit", "percent", "refused"),
    [
        (0, 100, 90, False),
        (89, 100, 90, False),
        (90, 100, 90, True),
        (200, 100, 90, True),
        (10**15, -1, 90, False),
        (10**15, 0, 90, False),
    ],
)
def test_a_level_is_too_high_from_its_mark_on_and_never_without_a_limit(
    used: int, limit: int, percent: float, refused: bool
) -> None:
    assert bool(above([Level("EVENTS", used, limit)], percent)) is refused


def test_the_fullest_comes_first() -> None:
    levels = [Level("TASKS", 91, 100), Level("EVENTS", 99, 100), Level("account", 5, 100)]
    assert [level.name for level in above(levels, 90)] == ["EVENTS", "TASKS"]

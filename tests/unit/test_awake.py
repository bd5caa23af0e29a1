"""Since when a process is known to be awake: what it reads after a sleep may have been sent in it."""

from __future__ import annotations

import pytest

from mesh.broker.deliveries import Awake


@pytest.mark.parametrize(
    ("looks", "since"),
    [
        ([1.0, 2.0, 3.0], 3.0),
        ([1.0, 2.9], 2.9),
        ([1.0, 60.0], 1.0),
        ([1.0, 60.0, 61.0], 61.0),
        ([60.0], 0.0),
    ],
    ids=["awake", "a little late", "asleep for a minute", "awake again", "asleep from the beginning"],
)
def test_since_when_it_is_awake(looks: list[float], since: float) -> None:
    awake = Awake(1.0)
    began = awake.since
    for at in looks:
        awake.look(began + at)
    assert awake.since == pytest.approx(began + since)

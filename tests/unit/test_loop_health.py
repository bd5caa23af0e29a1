"""A loop that fails: told at once, again while it lasts, and when it is over; and what the metric says of it."""

from __future__ import annotations

import asyncio

import structlog
from structlog.testing import capture_logs

from mesh.background import repeatedly
from mesh.errors import BrokerUnavailable
from mesh.loop_health import REMIND_SECONDS, LoopHealth, failing_seconds

log = structlog.get_logger("test")
AWAY = BrokerUnavailable("away")


class Clock:
    """A clock that is set."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_failure_is_told_at_once_and_again_while_it_lasts_and_its_end_too() -> None:
    clock = Clock()
    with capture_logs() as lines:
        health = LoopHealth(log, "walk.unavailable", clock=clock, stream="TASKS")
        health.succeeded()
        for _ in range(2 * int(REMIND_SECONDS)):
            health.failed(AWAY)
            clock.seconds += 1
        health.succeeded()
        health.succeeded()
        health.failed(AWAY)
    told = [(line["event"], line.get("failing_seconds"), line.get("failed_seconds")) for line in lines]
    assert told == [
        ("walk.unavailable", None, None),
        ("walk.unavailable", 300, None),
        ("loop.well_again", None, 600),
        ("walk.unavailable", None, None),
    ]
    assert all(line["stream"] == "TASKS" for line in lines)
    assert all(line["error"] == "away" for line in lines if line["event"] == "walk.unavailable")


def test_of_loops_that_share_a_name_the_one_that_has_failed_longest_counts() -> None:
    clock = Clock()
    loops = [LoopHealth(log, "lookout.unavailable", clock=clock) for _ in range(3)]
    assert failing_seconds()["lookout"] == 0
    with capture_logs():
        for health in loops[:2]:
            health.failed(AWAY)
            clock.seconds += 7
    assert failing_seconds()["lookout"] == 14
    loops[0].succeeded()
    assert failing_seconds()["lookout"] == 7
    loops.clear()
    del health
    assert "lookout" not in failing_seconds(), "a loop that is gone is told no more"


async def test_a_round_that_fails_is_followed_by_the_next() -> None:
    rounds = 0
    done = asyncio.Event()

    async def act() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            done.set()
        elif rounds < 3:
            raise AWAY

    with capture_logs() as lines:
        running = asyncio.create_task(repeatedly(act, 0.0, LoopHealth(log, "act.unavailable")))
        await done.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [line["event"] for line in lines] == ["act.unavailable", "loop.well_again"]

"""Bounds of waits: in seconds of a quiet machine, stretched by what this one gives, and never for ever."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import patience, watchdog
from tests.support.patience import STRETCH_MAX, TICK_SECONDS, Bound, Machine, within
from tests.support.watchdog import GRACE_SECONDS, TEST_SECONDS, Watchdog

STAT = """cpu  {idle} 0 0 0 0 0 0 {stolen} 0 0
cpu0 0 0 0 0 0 0 0 0 0 0
intr 0
procs_running {running}
procs_blocked {blocked}
"""
THIS_THREAD = 1
"""It is running while it looks."""


class Told:
    """A machine of two cores, of which a test says how it is."""

    def __init__(self, folder: Path) -> None:
        self._stat = folder / "stat"
        self._idle = self._stolen = 0
        self.tell()
        self.machine = Machine(self._stat, cores=2)

    def tell(self, running: int = 0, blocked: int = 0, stolen: int = 0) -> None:
        """`running`: processes that want a core; `stolen`: hundredths of the time since the last look."""
        self._idle += 100 - stolen
        self._stolen += stolen
        told = {"idle": self._idle, "stolen": self._stolen, "running": running + THIS_THREAD, "blocked": blocked}
        self._stat.write_text(STAT.format(**told))

    def ticks(self, count: int, **how: int) -> float:
        """Let ticks pass; how many seconds they were."""
        before = self.machine._passed
        self.tell(**how)
        for _ in range(count):
            self.machine.tick()
            if "stolen" in how:
                self.tell(**how)
        return self.machine._passed - before


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ({}, 1),
        ({"running": 2}, 1),
        ({"running": 8}, 4),
        ({"running": 40}, 20),
        ({"blocked": 3}, 3),
        ({"running": 8, "blocked": 3}, 4),
        ({"stolen": 50}, 2),
        ({"running": 8, "stolen": 50}, 8),
    ],
)
def test_a_second_lasts_as_many_times_longer_as_the_machine_is_shared(
    told: Told, how: dict[str, int], times: float
) -> None:
    assert told.ticks(10, **how) == pytest.approx(10 * TICK_SECONDS / times)


def test_the_crowd_is_that_of_the_last_seconds(told: Told) -> None:
    assert told.machine.crowd == 1
    told.ticks(200, running=12)
    assert told.machine.crowd == pytest.approx(6, rel=0.01)
    told.ticks(200)
    assert told.machine.crowd == pytest.approx(1, rel=0.01)


def test_a_bound_that_runs_is_stretched_by_what_happens_meanwhile(told: Told) -> None:
    bound = Bound(1.0, told.machine)
    told.ticks(5)
    # A tick that has begun counts for what is over of it, here and at the bound's beginning.
    assert bound.left == pytest.approx(0.5, abs=TICK_SECONDS)
    told.ticks(8, running=8)
    assert bound.left == pytest.approx(0.3, abs=TICK_SECONDS)
    told.ticks(4)
    assert bound.left == 0


async def test_a_bound_ends_whatever_the_machine_gives(told: Told) -> None:
    told.ticks(1, running=10_000)
    bound = Bound(0.01, told.machine)
    async with within(20):
        while bound.left:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0)
    assert bound.spent == pytest.approx(bound.seconds, rel=1.0)
    assert told.machine.crowd > STRETCH_MAX


async def test_a_block_that_takes_too_long_is_told_by_what_bound() -> None:
    with pytest.raises(TimeoutError, match=r"^not within 0\.01 s of a quiet machine "):
        async with within(0.01):
            await asyncio.Event().wait()


async def test_a_timeout_of_the_blocks_own_is_left_as_it_is() -> None:
    with pytest.raises(TimeoutError, match=r"^its own$"):
        async with within(20):
            raise TimeoutError("its own")


@pytest.mark.parametrize(
    ("running", "seconds", "lease"), [(0, 2.0, 2.0), (4, 2.0, 2.0), (8, 4.0, 2.0), (16, 8.0, 4.0), (80, 20.0, 10.0)]
)
def test_settings_are_stretched_and_leases_only_where_a_short_one_would_be_lost(
    told: Told, monkeypatch: pytest.MonkeyPatch, running: int, seconds: float, lease: float
) -> None:
    monkeypatch.setattr(patience, "MACHINE", told.machine)
    told.ticks(500, running=running)
    assert patience.stretched(2.0) == pytest.approx(seconds, rel=0.01)
    assert lease <= patience.lease(2.0) <= lease + 0.5
    assert (2 * patience.lease(2.0)).is_integer()


OUTPUT = 1_000_000
"""A descriptor that there is not."""


class Timer:
    """Stands for the timer of `faulthandler`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: float | None = None
        monkeypatch.setattr(faulthandler, "dump_traceback_later", self._set)
        monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", self._cancel)

    def _set(self, seconds: float, *, file: int, exit: bool) -> None:
        if file == OUTPUT:  # Not that of the watchdog that watches over this test.
            assert exit
            self.seconds = seconds

    def _cancel(self) -> None:
        self.seconds = None


def test_the_watchdog_lets_a_test_take_what_the_machine_takes_and_no_more(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> float | None:
        timer.seconds = None
        for watch in told.machine.watchers:
            watch()
        return timer.seconds

    bound: Callable[[float], Any] = lambda seconds: Bound(seconds, told.machine)  # noqa: E731 - stands for a class
    monkeypatch.setattr(watchdog, "MACHINE", told.machine)
    monkeypatch.setattr(watchdog, "Bound", bound)
    timer = Timer(monkeypatch)
    dog = Watchdog(OUTPUT)
    assert look() is None, "no test runs"
    dog.begin()
    ticks = int(TEST_SECONDS / TICK_SECONDS)
    told.ticks(ticks, running=8)
    assert look() == pytest.approx(TEST_SECONDS * 3 / 4 + GRACE_SECONDS, abs=0.5)
    told.ticks(ticks)
    assert look() is None, "the timer that is set goes off"
    dog.begin()
    assert timer.seconds == pytest.approx(TEST_SECONDS + GRACE_SECONDS, abs=0.5)
    dog.end()
    assert (timer.seconds, look()) == (None, None)

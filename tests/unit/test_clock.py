"""The mesh's clock: learnt from the broker's answers, whatever this machine takes the time to be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mesh import faults
from mesh.clock import MeshClock, lease_clock, wall_clock

BROKER = datetime(2031, 5, 1, 12, tzinfo=UTC)
"""No machine's time: a clock that is near it has it from the broker."""
MARGIN = timedelta(seconds=2)
"""More than lies between two lines here."""


def learn(clock: MeshClock, told: datetime, round_trip_seconds: float = 0.0) -> None:
    """An answer that has just come."""
    answered_at = lease_clock()
    clock.learn(told, answered_at - round_trip_seconds, answered_at)


def test_before_the_broker_is_asked_the_wall_clock_stands_in() -> None:
    clock = MeshClock()
    assert not clock.is_learnt
    assert abs(clock.now() - datetime.now(UTC)) < MARGIN
    assert clock.own_clock_ahead_seconds() == 0.0


@pytest.mark.parametrize("off_seconds", [0.0, 3600.0, -3600.0, 40 * 86400.0, -40 * 86400.0])
def test_the_time_is_the_brokers_wherever_the_wall_clock_is_and_however_it_jumps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, off_seconds: float
) -> None:
    file = tmp_path / "clock"
    file.write_text("0")
    monkeypatch.setattr(faults, "CLOCK_OFF", str(file))
    clock = MeshClock()
    learn(clock, BROKER)
    first, ahead_seconds = clock.now(), clock.own_clock_ahead_seconds()
    file.write_text(str(off_seconds))
    assert abs(wall_clock() - datetime.now(UTC) - timedelta(seconds=off_seconds)) < MARGIN
    assert BROKER <= first <= clock.now() < BROKER + MARGIN
    assert clock.own_clock_ahead_seconds() - ahead_seconds == pytest.approx(off_seconds, abs=0.5)


def test_without_the_brokers_clock_the_wall_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch by which tests show what the broker's clock is for."""
    monkeypatch.setattr(faults, "BROKER_CLOCK_ON", False)
    monkeypatch.setattr(faults, "CLOCK_OFF", "3600")
    clock = MeshClock()
    learn(clock, BROKER)
    assert abs(clock.now() - datetime.now(UTC) - timedelta(hours=1)) < MARGIN


@pytest.mark.parametrize("round_trip_seconds", [0.0, 0.02, 0.12])
def test_an_answer_is_off_by_half_its_round_trip_at_most(round_trip_seconds: float) -> None:
    """Wherever between the question and the answer the broker looked at its clock."""
    for part in (0.0, 0.5, 1.0):
        clock = MeshClock()
        told = BROKER - timedelta(seconds=round_trip_seconds * (1 - part))
        learn(clock, told, round_trip_seconds)
        learnt, passed = clock.now(), timedelta(seconds=0.05)
        off = learnt - BROKER
        half = timedelta(seconds=round_trip_seconds / 2)
        assert -half - timedelta(microseconds=10) <= off <= half + passed


def test_an_answer_that_agrees_moves_nothing_and_one_that_does_not_is_believed() -> None:
    clock = MeshClock()
    learn(clock, BROKER)
    before = clock.now() - timedelta(seconds=lease_clock())
    learn(clock, clock.now() - timedelta(seconds=0.3), round_trip_seconds=1.0)
    assert clock.now() - timedelta(seconds=lease_clock()) - before < timedelta(seconds=0.05)
    learn(clock, BROKER - timedelta(hours=1))
    assert abs(clock.now() - BROKER + timedelta(hours=1)) < MARGIN

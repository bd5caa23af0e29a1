"""Points at which a test may stop a process: what is written down, and how an order is carried out."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mesh import faults
from tests.chaos.points import Point, give_order, order_is_open, read_reached
from tests.support import children
from tests.support.processes import ROOT

pytestmark = pytest.mark.processes

POINTS = """
from mesh import faults
for kind, what in (
    ("append", "turn.completed"), ("before-publish", "tools.add"), ("before-publish", "events.default.x.log"),
    ("before-publish", "$KV.workers.w"), ("before-ack", "turns.default.normal.t"), ("append", "turn.completed"),
    ("after-ack", "timers.fired.retry.default.x.1"),
):
    faults.reach(kind, what)
"""


def run(folder: Path) -> int:
    """A process that comes to some points; how it ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "libs"), faults.POINTS_VARIABLE: str(folder)}
    return children.run_blocking([sys.executable, "-c", POINTS], environment).returncode


def reached(folder: Path) -> list[str]:
    return [line.what for line in read_reached(folder)]


def test_what_a_process_comes_to_is_written_down(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert reached(tmp_path) == [
        "append:turn.completed",
        "before-publish:tools.add",
        "before-ack:turns.default",
        "append:turn.completed",
        "after-ack:timers.fired.retry",
    ]


def test_a_process_dies_the_time_it_was_ordered_to_and_the_order_is_gone(tmp_path: Path) -> None:
    give_order(tmp_path, "first", Point("kill", "steward", "append:turn.completed", 2), broker_pid=0)
    assert run(tmp_path) == -signal.SIGKILL
    assert not order_is_open(tmp_path)
    assert len(reached(tmp_path)) == 4
    assert run(tmp_path) == 0


def test_a_process_kills_another_one_and_goes_on(tmp_path: Path) -> None:
    with children.start([sys.executable, "-c", "input()"], stdin=children.PIPE) as other:
        give_order(tmp_path, "first", Point("broker", "steward", "append:turn.completed", 1), broker_pid=other.pid)
        assert run(tmp_path) == 0
        assert other.wait() == -signal.SIGKILL


def test_an_order_for_a_point_that_is_not_come_to_stays(tmp_path: Path) -> None:
    give_order(tmp_path, "first", Point("kill", "steward", "append:turn.completed", 3), broker_pid=0)
    assert run(tmp_path) == 0
    assert order_is_open(tmp_path)

"""One incident of the chaos run `cluster`, small: a server that says it is about to stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import GAP_WORDS, SERVICES, Load, run_cluster

pytestmark = pytest.mark.processes

LOAD = Load(rate=5, seconds=8)


async def test_nothing_is_lost_doubled_or_stuck_while_a_leader_goes_as_a_lame_duck(tmp_path: Path) -> None:
    report = await run_cluster(tmp_path, "lame duck", LOAD, seed=1)
    # How long the followers heard nothing is judged on a machine that has nothing else to do.
    assert [problem for problem in report.violations if GAP_WORDS not in problem] == []
    assert report.accepted >= LOAD.rate * LOAD.seconds
    # Each process is at any of the nodes, and leaves the one that is about to stop; maybe none is there.
    assert min(1, report.warned) <= report.lines["broker.disconnected"] <= len(SERVICES)

"""How fast journals are counted, and held against their counters: events a second, beside reading them alone."""

from __future__ import annotations

import time
from datetime import timedelta

from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.ledger.audit import audit
from mesh.ledger.counting import Counting
from tests.benchmarks.bench import Run, stage
from tests.benchmarks.figures import Figure
from tests.support.months import Filler

RETENTION = timedelta(days=365)


async def measure(run: Run) -> list[Figure]:
    """Fill a store with ended tasks, of many tenants, and count them. Fails unless all add up in the end."""
    async with stage(run.folder) as on:
        requests = on.connection.requests
        await Filler(on.connection, f"127.0.0.1:{on.mesh.broker.port}", run.seed).fill(run.scale(20_000, 1_000))
        began_at = time.perf_counter()
        milestones = await _read(requests)
        alone = milestones / (time.perf_counter() - began_at)

        counting = Counting(requests, "bench")
        if not await counting.take():
            raise RuntimeError("somebody else counts")
        began_at, spent = time.perf_counter(), time.process_time()
        while await counting.count():
            pass
        counted = milestones / (time.perf_counter() - began_at)
        spent = time.process_time() - spent

        began_at = time.perf_counter()
        found = await audit(requests, counting, RETENTION)
        audited = milestones / (time.perf_counter() - began_at)
        if found.differences:
            raise RuntimeError(f"{len(found.differences)} counters differ from the journals")
    a_turn = f"{spent / found.turns * 1e6:.0f} µs of CPU for each"
    note = f"{milestones:,} milestones of {found.turns:,} turns, {a_turn}, reading included"
    return [
        Figure("ledger: milestones counted", "/s", counted, "read alone", alone, note=note),
        Figure("ledger: milestones verified", "/s", audited, "read alone", alone, note="no difference"),
    ]


async def _read(requests: Requests) -> int:
    reader, at, more, count = MilestoneReader(requests), 0, True, 0
    while more:
        page = await reader.read(at)
        at, more = page.looked_to, page.more
        count += len(page.messages)
    return count

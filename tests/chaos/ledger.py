"""The ledger after all runs of a mesh: once all is counted, each counter is what the journals say, to the token."""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from contracts.errors import TaskmeshError
from contracts.records.usage import Counter, counter_of
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.ledger import counters
from mesh.ledger.audit import Audit, Difference, audit, compared
from mesh.ledger.counting import Counting
from mesh.ledger.entries import increments_of
from tests.chaos.slot import Slot
from tests.chaos.witness import Witness
from tests.support.waiting import until

KEPT: Final = timedelta(days=30)


async def wrong_counters(slot: Slot) -> list[str]:
    """What is not right. Where tasks are dropped seconds after their end a witness alone knows what should be there."""
    requests = slot.connection.requests
    async with counted(requests, KEPT if slot.scenario.kept_seconds is None else timedelta()) as found:
        differences = found.differences
        if slot.witness is not None:
            names = await subjects_of(requests, "USAGE", "usage.>")
            is_ = await counters.read_from_leader(requests, [counter_of(name) for name in names])
            differences += compared(await _seen(slot.witness), is_)
    return told(differences)


@asynccontextmanager
async def counted(requests: Requests, retention: timedelta = KEPT) -> AsyncIterator[Audit]:
    """What a comparison comes to, once all is counted; nobody counts in the block."""
    counting = Counting(requests, "chaos")
    audits: list[Audit] = []

    async def is_compared() -> bool:
        try:
            if await counting.take(steal=True):
                audits.append(await audit(requests, counting, retention))
        except TaskmeshError:
            return False  # A broker that was killed is back in a moment, or a steward was faster.
        return bool(audits)

    await until(is_compared)
    try:
        yield audits[0]
    finally:
        await counting.leave()


def told(differences: list[Difference]) -> list[str]:
    """Each, for people."""
    return [f"{each.counter.subject} is {each.is_}, and should be {each.should_be}" for each in differences]


async def _seen(witness: Witness) -> dict[Counter, int]:
    """What counters should be, by all that was ever in EVENTS."""
    sums: Sums[Counter] = Sums()
    for task in [*witness.journals]:
        for stored in await witness.journal(task):
            sums.update(increments_of(stored.data))
    return dict(sums)

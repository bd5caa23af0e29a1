"""The ledger after all runs of a mesh: once all is counted, each counter is what the journals say, to the token."""

from __future__ import annotations

from datetime import timedelta

from contracts.errors import TaskmeshError
from mesh.ledger.audit import audit
from mesh.ledger.counting import Counting
from tests.chaos.slot import Slot
from tests.support.waiting import until


async def wrong_counters(slot: Slot) -> list[str]:
    """What is not right. Where tasks are dropped seconds after their end no journal says what should be there."""
    counting = Counting(slot.connection.requests, "chaos")

    async def is_taken() -> bool:
        try:
            return await counting.take(steal=True)
        except TaskmeshError:
            return False  # A broker that was killed is back in a moment.

    await until(is_taken)
    retention = timedelta(days=30) if slot.scenario.kept_seconds is None else timedelta()
    found = await audit(slot.connection.requests, counting, retention)
    await counting.leave()
    return [f"{each.counter.subject} is {each.is_}, and should be {each.should_be}" for each in found.differences]

"""Reading the milestones of all journals in their order, at a cost that does not grow with what is stored.

The stream is gone along as it is, and what lies between milestones, the deltas, is passed over: where these are many,
by reads of the next milestone, which cost 0.1 ms whatever is stored, unless they begin at the stream's first message.
"""

from __future__ import annotations

from typing import NamedTuple

from contracts import subjects
from contracts.streams import EVENTS
from mesh.broker.direct_get import Stored, read_next
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan

PAGE_EVENTS_MAX = 512
PAGE_EVENTS_MIN = 8
"""Of a page where most are deltas: as many cost about as much as the single read behind them."""
MANY = 4
"""Where there are more deltas for each milestone than this, single reads are cheaper."""
_LOG = ".log"


class Milestones(NamedTuple):
    """Some milestones in order. There is no other up to `looked_to`, and there may be some behind it if `more`."""

    messages: list[Stored]
    looked_to: int
    more: bool


class MilestoneReader:
    """Reads on from wherever it is told."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._scan = Scan(requests, EVENTS.name)
        self._page_events = PAGE_EVENTS_MAX

    async def read(self, after: int) -> Milestones:
        """The next ones with a sequence above `after`. Raises `BrokerUnavailable`."""
        page = await self._scan.page(after, self._page_events)
        if not page.messages:
            return Milestones([], after, more=False)
        looked_to = page.messages[-1].sequence
        found = [stored for stored in page.messages if stored.subject.endswith(_LOG)]
        if len(found) * (MANY + 1) >= len(page.messages):
            self._page_events = min(PAGE_EVENTS_MAX, self._page_events * 2)
            return Milestones(found, looked_to, page.more)
        self._page_events = max(PAGE_EVENTS_MIN, self._page_events // 2)
        if not page.more:
            return Milestones(found, looked_to, more=False)
        following = await read_next(self._requests, EVENTS.name, subjects.EVENTS_LOG, looked_to)
        if following is None:
            return Milestones(found, looked_to, more=False)
        return Milestones([*found, following], following.sequence, more=True)

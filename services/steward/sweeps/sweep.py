"""One sweep: a walk along a stream, from which what is left over is taken away, a piece at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from mesh.broker.direct_get import Stored, read_next
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL, Scan
from mesh.telemetry import metrics
from steward.walks.ages import Ages, ages
from steward.walks.walking import First, Walking

log = structlog.get_logger("steward.sweeps")

PIECE_SEQUENCES = 4_096
"""Looked along in one round: each message may cost some requests."""
PAGE_MESSAGES_MAX = 256
"""Looked at together."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is looked for: in a stream, among messages that are at least so old.

    `take_away` gets a page of them, of whatever subjects, and returns how many were left over.
    """

    name: str
    stream: str
    age: timedelta
    take_away: Callable[[list[Stored]], Awaitable[int]]


class Sweeping:
    """A sweep at work. `owner`: the name of this process."""

    def __init__(self, requests: Requests, sweep: Sweep, owner: str) -> None:
        self._requests = requests
        self._sweep = sweep
        self._walking = Walking(requests, f"sweep_{sweep.name}", owner, PIECE_SEQUENCES)

    async def round(self, at: datetime) -> bool:
        """Look along the next piece; whether there may be more. Raises `TaskmeshError`."""
        seen = ages(at, self._sweep.age)
        piece = await self._walking.take(at, lambda after: self._first_behind(after, seen))
        if piece is None:
            return False
        scan = Scan(self._requests, self._sweep.stream)
        done_to, met_young, swept = piece.from_ - 1, False, 0
        while done_to < piece.to and not met_young:
            page, _ = await scan.page(done_to, PAGE_MESSAGES_MAX)
            if not page:
                break
            old: list[Stored] = []
            for each in page:
                met_young = each.sequence <= piece.to and seen.is_young(each.stored_at)
                if met_young:
                    break
                done_to = min(each.sequence, piece.to)
                if each.sequence > piece.to:
                    break
                old.append(each)
            swept += await self._sweep.take_away(old)
        if swept:
            log.info("left_over.swept", sweep=self._sweep.name, count=swept)
            metrics.kept(f"swept_{self._sweep.name}", swept)
        await self._walking.give_back(piece, done_to, at, met_young=met_young)
        return True

    async def _first_behind(self, after: int, seen: Ages) -> First | None:
        first = await read_next(self._requests, self._sweep.stream, ALL, after)
        return None if first is None else First(first.sequence, not seen.is_young(first.stored_at))

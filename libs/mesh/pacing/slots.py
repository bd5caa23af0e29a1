"""The places that a worker holds under a provider's limit of concurrency: how many it has, uses and could use. No I/O.

A turn may take one on credit where the worker holds none, and the fleet is known not to hold all.
"""

from __future__ import annotations

from contracts.records.pace import PaceRecord
from mesh.pacing.rules import HOLD_SECONDS, RENEW_SECONDS, Booked, Wanted, is_short, slots_of_others

NO_LIMIT = 1_000_000
"""How much may begin where nothing is limited (`mesh.broker.gates.UNLIMITED`)."""
IDLE_SECONDS = 2.0
"""How long the last place is kept that nobody uses."""
AGAIN_SECONDS = 1.0
"""How often places are asked for in vain; those that get free are announced."""
SPARE_SECONDS = 0.1
"""How long after a booking spare places are kept that another worker could use."""
GAP_SECONDS = 0.02


class Slots:
    """Those of one worker at one provider. Times are the mesh's, in seconds since 1970."""

    def __init__(self, worker: str, concurrency: int | None) -> None:
        self.concurrency = concurrency
        """The limit. May be set again."""
        self.in_use = 0
        """Places that turns have, also where nothing is limited."""
        self.held = 0
        self._worker = worker
        self._lacks = False
        self._used_at = 0.0
        self._said_at = 0.0
        self._ask_at = 0.0

    def room(self, record: PaceRecord | None, at: float) -> int:
        """How many turns may begin now."""
        if self.concurrency is None:
            return NO_LIMIT
        if self.in_use < self.held:
            return self.held - self.in_use
        free = self.concurrency - slots_of_others(record, self._worker, at) - self.held
        return int(self.in_use == 0 and self.held == 0 and free > 0)

    def ask(self, record: PaceRecord | None, at: float) -> bool:
        """Somebody would begin a turn. True if that lacks a place, and nobody knew."""
        before, self._lacks = self._lacks, self._lacks or self.room(record, at) <= 0
        return self._lacks and not before

    def take(self, at: float) -> None:
        """A turn has one."""
        self.in_use += 1
        self._used_at = at

    def wanted(self, at: float) -> int:
        """How many are to be held, those in use included."""
        if self.concurrency is None:
            return 0
        if self._lacks:
            want = 2 * self.in_use + 1
        elif self.in_use:
            want = self.in_use + max(1, self.in_use // 4)
        else:
            want = int(at - self._used_at < IDLE_SECONDS)
        return min(want, self.concurrency)

    def is_due(self, wanted: int, record: PaceRecord | None, at: float) -> bool:
        """Whether that is to be said."""
        if self.concurrency is None:
            return self.held > 0
        if wanted > self.held or wanted < self.held // 2 or (wanted < self.held and wanted == 0):
            return at >= self._ask_at
        if self.held > self.in_use and at >= self._ask_at and is_short(record, self._worker, at):
            return at - self._said_at >= SPARE_SECONDS
        return self.held > 0 and at - self._said_at >= RENEW_SECONDS

    def next_at(self, at: float) -> float:
        """When there may be something to be said, if nothing happens."""
        if self.concurrency is None or not (self.held or self._lacks or self.in_use):
            return at + HOLD_SECONDS
        return max(self._ask_at, at + GAP_SECONDS, min(self._said_at + RENEW_SECONDS, at + AGAIN_SECONDS))

    def see(self, record: PaceRecord | None, at: float) -> None:
        """The record, as it was read."""
        if is_short(record, self._worker, at) or self.held < self.wanted(at):
            self._ask_at = at

    def got(self, wanted: Wanted, booked: Booked, at: float) -> None:
        """That was asked for, and this is what came of it."""
        if booked.slots > self.held or self.room(booked.record, at) > 0:
            self._lacks = False
        self._ask_at = at + AGAIN_SECONDS if booked.slots < wanted.slots else at
        self.held = booked.slots
        self._said_at = at

    def put_right(self, at: float) -> None:
        """The clock was put back."""
        self._ask_at = self._used_at = self._said_at = at

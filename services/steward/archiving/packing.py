"""The walk that packs: along the milestones of EVENTS, from the oldest to the first that is too young.

What is due is judged by each task's own end, as the broker stamped it. A task that has not ended is passed over, and so
is what can't be read: neither keeps another. The walk begins anew once a day, for the sake of what it has passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from contracts.errors import TaskmeshError
from contracts.records.walks import WalkPiece
from contracts.streams import EVENTS, TASKS_BUCKET, WEBHOOK_CONSUMER_PREFIX
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.direct_get import Stored, read_next
from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL, Scan
from mesh.configuration.settings import Settings
from mesh.ledger.counting import counted_up_to
from mesh.telemetry import metrics
from steward.archiving.gathering import Ended, Gathering
from steward.archiving.packer import Packed, Packer
from steward.walks.ages import Ages, ages
from steward.walks.walking import First, Walking

log = structlog.get_logger("steward.archiving")

WALK = "packing"
PIECE_SEQUENCES = 16_384
"""Of EVENTS, taken at once: some thousand tasks, so that three stewards share what is due of a busy hour."""
BATCH_TASKS_MAX = 512
BATCH_BYTES_MAX = 8 * 1024 * 1024
"""What is packed between two looks at the lease, and held in memory: a large task alone may be more."""
PAGE_EVENTS_MAX = 512
GATHERS = timedelta(minutes=15)
GATHERS_SHARE = 0.1
"""How long what is due may wait for more, so that a quiet mesh makes no pack of each task. Of a short age a part."""
FUTURE_PAGES_MAX = 100
"""Looked at in one round for the first that is of its time."""
UNDER_PRESSURE_AGE = timedelta(minutes=10)
"""How long tasks stay where they are at least, when there are too many: who follows one is by then at its end."""


@dataclass(frozen=True, slots=True)
class Due:
    """What may be packed: what is old enough, and, unless it is as old as `hold_until`, lies up to `sequence`."""

    seen: Ages
    gathers: timedelta
    sequence: int | None
    hold_until: datetime

    def is_due(self, sequence: int, stored_at: datetime) -> bool:
        """Whether a milestone is, or is passed over."""
        if self.seen.is_from_the_future(stored_at):
            return True
        if self.sequence is not None and sequence > self.sequence and stored_at > self.hold_until:
            return False
        return not self.seen.is_young(stored_at)


def age_to_pack(settings: Settings, hot_tasks: int) -> timedelta:
    """How long after its end a task is packed, with so many tasks that are not."""
    age = settings.pack_age
    return min(age, UNDER_PRESSURE_AGE) if hot_tasks > settings.hot_tasks_max else age


def unread_from(consumers: list[dict[str, Any]]) -> int | None:
    """The first sequence that a webhook may still have to be told of; None if there is none."""
    behind = [
        int(consumer["ack_floor"]["stream_seq"])
        for consumer in consumers
        if consumer["name"].startswith(WEBHOOK_CONSUMER_PREFIX)
        and (consumer["num_pending"] > 0 or consumer["num_ack_pending"] > 0)
    ]
    return min(behind) + 1 if behind else None


class Packing:
    """Packs what is due, a batch at a time."""

    def __init__(self, requests: Requests, settings: Settings, owner: str) -> None:
        self._requests = requests
        self._settings = settings
        self._walking = Walking(requests, WALK, owner, PIECE_SEQUENCES)
        self._piece: _Piece | None = None

    async def round(self, at: datetime) -> bool:
        """Pack a batch of what is due; whether more may be. Raises `TaskmeshError`."""
        due = await self._due(at)
        if self._piece is None:
            taken = await self._walking.take(at, lambda after: self._first_behind(due, after))
            if taken is None:
                return False
            self._piece = _Piece(self._requests, taken)
        piece = self._piece
        if not await self._walking.keep(piece.taken, at):
            self._piece = None  # It took too long, and another has it.
            return True
        try:
            is_over = await piece.batch(due)
        except Exception:
            self._piece = None  # What was gathered may be gone on from elsewhere: it is taken anew when its lease ends.
            raise
        if is_over:
            self._piece = None
            await self._walking.give_back(piece.taken, piece.done_to, at, met_young=piece.met_young)
        return True

    async def lag(self, at: datetime) -> timedelta:
        """How long the oldest milestone that was not looked at has been due. Raises `TaskmeshError`.

        Up to a quarter of an hour is no lag: what is due waits for more (`GATHERS`).
        """
        due = await self._due(at)
        first = await self._first_of_its_time(due, await self._walking.undone_from() - 1)
        return due.seen.overdue(first.stored_at) if first is not None else timedelta()

    async def leave(self, at: datetime) -> None:
        """Let others go on with what is in work here. Raises `BrokerUnavailable`."""
        if self._piece is not None:
            await self._walking.leave(self._piece.taken, at)
            self._piece = None

    async def _due(self, at: datetime) -> Due:
        hot_tasks = int((await self._requests.api(f"STREAM.INFO.{TASKS_BUCKET.stream_name}"))["state"]["messages"])
        age = age_to_pack(self._settings, hot_tasks)
        unread = await self._unread_from()
        return Due(
            seen=ages(at, age),
            gathers=min(GATHERS, age * GATHERS_SHARE),
            sequence=unread - 1 if unread is not None else None,
            hold_until=at - self._settings.retention_age,
        )

    async def _unread_from(self) -> int | None:
        """The first sequence that has still to be told to a webhook, or counted."""
        counted = await counted_up_to(self._requests)
        told = unread_from(await all_consumers(self._requests, EVENTS.name))
        return min(
            (each for each in (told, None if counted is None else counted + 1) if each is not None), default=None
        )

    async def _first_behind(self, due: Due, after: int) -> First | None:
        """The first message behind a cursor, and whether so much is due that it is worth a pack."""
        first = await self._first_of_its_time(due, after)
        if first is None:
            return None
        is_worth_it = due.is_due(first.sequence, first.stored_at)
        if is_worth_it and first.stored_at > due.seen.cutoff - due.gathers:
            # A whole piece of younger ones is worth it, too.
            behind = await read_next(self._requests, EVENTS.name, ALL, first.sequence + PIECE_SEQUENCES)
            is_worth_it = behind is not None and behind.stored_at <= due.seen.cutoff
        return First(first.sequence, is_worth_it)

    async def _first_of_its_time(self, due: Due, after: int) -> Stored | None:
        """The first one that is not from the future: those are passed over."""
        # Milestones and deltas alike: they are as old.
        scan = Scan(self._requests, EVENTS.name)
        messages_max = 1
        for _ in range(FUTURE_PAGES_MAX):
            page = await scan.page(after, messages_max)
            for stored in page.messages:
                if not due.seen.is_from_the_future(stored.stored_at):
                    return stored
            if not page.messages:
                break
            after, messages_max = page.messages[-1].sequence, PAGE_EVENTS_MAX
        return None


class _Piece:
    """A piece in work."""

    def __init__(self, requests: Requests, taken: WalkPiece) -> None:
        self.taken = taken
        self.done_to = taken.from_ - 1
        """Up to here all is packed that was due."""
        self.met_young = False
        """Whether it is over because the next message is too young."""
        self._milestones = MilestoneReader(requests)
        self._packer = Packer(requests, taken.from_)
        self._gathering = Gathering()
        self._read_to = taken.from_ - 1

    async def batch(self, due: Due) -> bool:
        """Read on until there is a batch, and pack it; whether the piece is over. Raises `TaskmeshError`."""
        batch: list[Ended] = []
        size = 0
        is_over = False
        while not is_over and len(batch) < BATCH_TASKS_MAX and size < BATCH_BYTES_MAX:
            page = await self._milestones.read(self._read_to)
            is_over = not page.more
            for stored in page.messages:
                if stored.sequence > self.taken.to:
                    self._read_to, is_over = self.taken.to, True
                    break
                if not due.is_due(stored.sequence, stored.stored_at):
                    self.met_young = is_over = True
                    break
                self._read_to = stored.sequence
                ended = self._add(stored)
                if ended is not None and not due.seen.is_from_the_future(stored.stored_at):
                    batch.append(ended)
                    size += sum(len(each.payload) for each in ended.milestones)
            else:
                self._read_to = min(page.looked_to, self.taken.to)
                is_over = is_over or page.looked_to >= self.taken.to
        if batch:
            _tell(await self._packer.pack(batch))
        self.done_to = self._read_to
        return is_over

    def _add(self, stored: Stored) -> Ended | None:
        try:
            return self._gathering.add(stored)
        except TaskmeshError as error:
            # It is for people to look at, and must not keep the others.
            log.error("retention.unreadable", subject=stored.subject, error=str(error))
            return None


def _tell(packed: Packed) -> None:
    log.info(
        "tasks.packed",
        tasks=packed.tasks,
        already=packed.already,
        unreadable=packed.unreadable,
        payload_bytes=packed.payload_bytes,
    )
    metrics.kept("packed", packed.tasks + packed.already)
    metrics.kept("unreadable", packed.unreadable)

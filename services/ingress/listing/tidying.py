"""Taking out of the index what its streams have no more: nobody tells of a deletion, so it is looked for.

What is below a stream's first sequence is gone. Beyond that, of ARCHIVE and DEAD_LETTERS the index has each message, so
that a number says whether any is gone, and the broker lists which. In KV_tasks each change of a record leaves a gap, of
which there are too many to list: there a slow walk compares the hot tasks with what the stream has, from the oldest on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from contracts.streams import ARCHIVE, DEAD_LETTERS, TASKS_BUCKET
from ingress.listing.index import Index
from ingress.listing.sources import TASKS_SOURCE
from ingress.listing.store import Store
from mesh.broker.direct_get import first_from_leader
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL, Scan
from mesh.broker.stream_states import StreamState, deleted_sequences

ROUND_REMOVALS_MAX = 8
"""Transactions of one round: a day's packs may go at once, and nobody waits for that."""
LETTERS_REMOVED_MAX = 1_000
"""Rows of dead letters that go before a list is answered; the rest goes with the next one."""
LISTED_AT_ONCE_MAX = 10_000
"""Deleted sequences that the broker is asked to list at any time. More of them only now and then."""
LISTED_PAUSE_SECONDS = 60.0
WALK_ROWS_MAX = 256
WALK_BYTES_MAX = 256 * 1024
WALK_PAUSE_SECONDS = 60.0
"""A page of the walk a minute, but one in each round while the index has more hot tasks than the stream has records."""


class Tidying:
    """Removes rows whose messages are gone."""

    def __init__(self, requests: Requests, store: Store) -> None:
        self._requests = requests
        self._store = store
        self._in_vain: dict[str, StreamState] = {}
        """How a stream stood when its deleted sequences were listed, and none of them was here."""
        self._listed_at: dict[str, float] = {}
        self._walked_to = 0
        self._walked_at = 0.0

    async def round(self, states: dict[str, StreamState]) -> None:
        """Remove some of what is gone. `states`: of all streams, as the index has them.

        Raises `ListUnavailable`, `BrokerUnavailable`, `BrokerError`.
        """
        await self._packs(states[ARCHIVE.name])
        await self._hot_tasks(states[TASKS_BUCKET.stream_name])

    async def letters(self, state: StreamState) -> None:
        """Remove the dead letters that are gone from a stream which the index has up to its end."""
        below = await self._store.run(_letters_below, state.first)
        await self._store.run(Index.remove_letters, below)
        missing = await self._store.run(_total_letters) - state.messages
        if missing > 0:
            removed = 0
            for some in _slices(await self._deleted(DEAD_LETTERS.name, state)):
                removed += await self._store.run(Index.remove_letters, some)
            if removed:
                self._in_vain.pop(DEAD_LETTERS.name, None)

    async def _packs(self, state: StreamState) -> None:
        gone = await self._store.run(_packs_below, state.first)
        if not gone and await self._store.run(_total_packs) > state.messages:
            for some in _slices(await self._deleted(ARCHIVE.name, state)):
                gone += await self._store.run(_present_packs, some)
            if gone:
                self._in_vain.pop(ARCHIVE.name, None)
        removals = 0
        for sequence in gone:
            done = False
            while not done and removals < ROUND_REMOVALS_MAX:
                done = await self._store.run(Index.remove_pack, sequence)
                removals += 1

    async def _hot_tasks(self, state: StreamState) -> None:
        """Those whose records are gone, and that are in no pack: records without a journal are swept like that."""
        below = await self._store.run(_hot_tasks, 0, state.first - 1)
        await self._store.run(Index.remove_hot, below)
        too_many = await self._store.run(_total_hot) > state.messages
        if too_many or time.monotonic() - self._walked_at >= WALK_PAUSE_SECONDS:
            self._walked_at = time.monotonic()
            await self._walk(state)

    async def _walk(self, state: StreamState) -> None:
        rows = await self._store.run(_hot_tasks, self._walked_to, state.last)
        if not rows:
            self._walked_to = 0
            return
        source = TASKS_SOURCE
        messages, _ = await Scan(self._requests, source.stream).page(self._walked_to, len(rows), WALK_BYTES_MAX)
        until = messages[-1].sequence if messages else self._walked_to
        if until < rows[-1]:
            # The page ended by its bytes, or at the stream's end, or this replica is behind: the leader knows.
            following = await first_from_leader(self._requests, source.stream, ALL, until)
            until = state.last if following is None else following.sequence - 1
        there = {message.sequence for message in messages}
        await self._store.run(Index.remove_hot, [row for row in rows if row <= until and row not in there])
        self._walked_to = until

    async def _deleted(self, stream: str, state: StreamState) -> list[int]:
        """Which sequences are gone; none if that was told as the stream stands, or if they are many and were lately."""
        pause_seconds = LISTED_PAUSE_SECONDS if state.deleted > LISTED_AT_ONCE_MAX else 0.0
        if self._in_vain.get(stream) == state or time.monotonic() < self._listed_at.get(stream, 0.0) + pause_seconds:
            return []
        self._in_vain[stream] = state
        self._listed_at[stream] = time.monotonic()
        return await deleted_sequences(self._requests, stream)


def _letters_below(index: Index, first: int) -> list[int]:
    return index.letters.sequences(0, first - 1, LETTERS_REMOVED_MAX)


def _packs_below(index: Index, first: int) -> list[int]:
    return index.packs.below(first, ROUND_REMOVALS_MAX)


def _present_packs(index: Index, sequences: Sequence[int]) -> list[int]:
    return index.packs.present(sequences)


def _hot_tasks(index: Index, after: int, until: int) -> list[int]:
    return index.tasks.hot_sequences(after, until, WALK_ROWS_MAX)


def _total_letters(index: Index) -> int:
    return index.totals.read("letters")


def _total_packs(index: Index) -> int:
    return index.totals.read("packs")


def _total_hot(index: Index) -> int:
    return index.totals.read("hot")


def _slices(sequences: Sequence[int]) -> list[Sequence[int]]:
    return [sequences[start : start + LETTERS_REMOVED_MAX] for start in range(0, len(sequences), LETTERS_REMOVED_MAX)]

"""Going along a whole stream, or bucket, at a cost that does not grow with what is stored.

A batched direct get makes the server count what is left behind it. From the middle of a stream in which messages were
deleted, or that keeps one message of each subject, as buckets do, it goes through all subjects for that, each time:
some 0.2 µs each, so 45 ms with 100,000 ended tasks in EVENTS, in which nobody can write (measured; ADR-19). A read of
one message counts nothing, and takes 0.03 ms where many are in flight.

So each message is asked for by itself, several at a time, by the sequences that they should have. Any replica answers
each of them. A message that comes tells that from the sequence asked for up to it there is none, and so much is sure:
a replica that has it had all that came before. That there is none is only one replica's word, and ends the page.
"""

from __future__ import annotations

import asyncio

from mesh.broker.direct_get import PAGE_BYTES_MAX, PAGE_EVENTS_MAX, Page, Stored, read_next
from mesh.broker.requests import Requests

AHEAD_MIN, AHEAD_MAX = 4, 128
"""Messages asked for at once. Where sequences are gone, several of them are answered by the same message."""
ALL = ">"


class Scan:
    """Reads on from wherever it is told. What it has seen of the stream says how much it asks for at once."""

    def __init__(self, requests: Requests, stream: str) -> None:
        self._requests = requests
        self._stream = stream
        self._ahead = AHEAD_MIN
        self._message_bytes = 0
        """Of the largest one lately."""

    async def page(self, after: int, messages_max: int = PAGE_EVENTS_MAX, bytes_max: int = PAGE_BYTES_MAX) -> Page:
        """The next messages with a sequence above `after`, whatever their subjects.

        A page ends at the first message that reaches `bytes_max`, as one of the server does. It has `more` unless the
        stream's end was seen; any replica answers, and may be behind. Raises `BrokerUnavailable`.
        """
        found: list[Stored] = []
        bytes_left, ended = bytes_max, False
        while len(found) < messages_max and not ended:
            some, ended = await self._next(after, min(messages_max - len(found), self._fitting(bytes_left)))
            for stored in some:
                found.append(stored)
                after = stored.sequence
                bytes_left -= len(stored.payload)
                if bytes_left <= 0:
                    return Page(found, more=True)
        return Page(found, more=not ended)

    async def _next(self, after: int, messages_max: int) -> tuple[list[Stored], bool]:
        """The next few messages, and whether they are the last ones."""
        sequences = range(after + 1, after + 1 + min(self._ahead, messages_max))
        answers = await asyncio.gather(
            *(read_next(self._requests, self._stream, ALL, sequence - 1) for sequence in sequences)
        )
        some: list[Stored] = []
        for sequence, stored in zip(sequences, answers, strict=True):
            if sequence <= after:
                continue  # The one before said that it is gone.
            if stored is None:
                # Others may have come from a replica that has more: what is passed over here is read the next time.
                return some, True
            some.append(stored)
            after = stored.sequence
        self._ahead = max(AHEAD_MIN, min(AHEAD_MAX, 2 * len(some)))
        self._message_bytes = max(len(stored.payload) for stored in some)
        return some, False

    def _fitting(self, bytes_left: int) -> int:
        """How many messages fit, if they are as large as the last ones."""
        return max(1, bytes_left // max(1, self._message_bytes))

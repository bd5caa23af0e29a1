"""Replicas that are behind: journals are read as they were up to a sequence, while the stream's leader has it all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mesh.broker.direct_get import Page, Stored, last_of_each, read_page
from mesh.journal import reading


@contextmanager
def replicas_behind(sequence: int) -> Iterator[list[str]]:
    """Give journals no event above a sequence; yields the subjects that were read so, as a list that grows."""
    reads: list[str] = []

    async def page_of(requests: Any, stream: str, subject_filter: str, *more: Any) -> Page:
        page = await read_page(requests, stream, subject_filter, *more)
        reads.append(subject_filter)
        seen = [message for message in page.messages if message.sequence <= sequence]
        return Page(seen, more=page.more and len(seen) == len(page.messages))

    async def last_of(requests: Any, stream: str, *filters: str) -> list[Stored]:
        found = await last_of_each(requests, stream, *filters)
        reads.extend(filters)
        return [each for each in found if each.sequence <= sequence]

    with mock.patch.object(reading, "read_page", page_of), mock.patch.object(reading, "last_of_each", last_of):
        yield reads

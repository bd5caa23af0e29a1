"""Replicas that are behind: journals are read as they were up to a sequence, while the stream's leader has it all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mesh.broker.direct_get import Page, Stored, last_event, read_page
from mesh.journal import folded


@contextmanager
def replicas_behind(sequence: int) -> Iterator[list[str]]:
    """Give journals no event above a sequence; yields the subjects that were read so, as a list that grows."""
    reads: list[str] = []

    async def page_of(requests: Any, stream: str, subject_filter: str, *more: Any) -> Page:
        page = await read_page(requests, stream, subject_filter, *more)
        reads.append(subject_filter)
        seen = [message for message in page.messages if message.sequence <= sequence]
        return Page(seen, more=page.more and len(seen) == len(page.messages))

    async def last_of(requests: Any, subject_filter: str) -> Stored | None:
        last = await last_event(requests, subject_filter)
        reads.append(subject_filter)
        return last if last is not None and last.sequence <= sequence else None

    with mock.patch.object(folded, "read_page", page_of), mock.patch.object(folded, "last_event", last_of):
        yield reads

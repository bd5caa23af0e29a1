"""Replicas that are behind: journals are read as they were up to a sequence, while the stream's leader has it all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from nats.aio.msg import Msg

from contracts.headers import STATUS
from mesh.broker.connection import Connection
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


@contextmanager
def empty_replicas(connection: Connection) -> Iterator[list[str]]:
    """Let each direct get say that there is nothing, as replicas do that are behind; yields their subjects.

    Whatever reads is imitated alike, since it is the request that is answered so. Leaders answer as ever.
    """
    requests = connection.requests
    asked: list[str] = []
    send = requests._send

    async def answered(subject: str, *rest: Any) -> Msg:
        if ".DIRECT.GET." not in subject:
            return await send(subject, *rest)
        asked.append(subject)
        return Msg(_client=connection.client, headers={STATUS: "404", "Description": "Message Not Found"})

    with mock.patch.object(requests, "_send", answered):
        yield asked

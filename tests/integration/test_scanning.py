"""A stream is gone along whole: each message once and in order, whatever was deleted, and whoever answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from mesh.broker import scanning
from mesh.broker.connection import Connection
from mesh.broker.direct_get import PAGE_BYTES_MAX, Stored, read_next, read_page
from mesh.broker.scanning import AHEAD_MAX, Scan

pytestmark = pytest.mark.integration

STREAM = "SCANNED"
COUNT = 600


async def fill(connection: Connection, sizes: Sequence[int]) -> None:
    """Messages of these sizes, each with a subject of its own."""
    config = {"name": STREAM, "subjects": ["scanned.*"], "allow_direct": True, "storage": "memory"}
    await connection.requests.api(f"STREAM.CREATE.{STREAM}", config)
    for number, size in enumerate(sizes):
        await connection.client.publish(f"scanned.{number}", b"x" * size)
    await connection.requests.publish("scanned.last", b"")


async def scanned(connection: Connection, messages_max: int, bytes_max: int = PAGE_BYTES_MAX) -> list[int]:
    scan, found, after, more = Scan(connection.requests, STREAM), list[int](), 0, True
    while more:
        page, more = await scan.page(after, messages_max, bytes_max)
        assert len(page) <= messages_max
        size = sum(len(stored.payload) for stored in page[:-1])
        assert size < bytes_max, "a page ends with the message that reaches it"
        found += [stored.sequence for stored in page]
        after = found[-1] if found else 0
    return found


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.5, 0.02])
async def test_each_message_comes_once_and_in_order(connection: Connection, kept: float) -> None:
    await fill(connection, [100] * COUNT)
    left = set(range(1, COUNT + 2))
    for sequence in random.Random(1).sample(range(2, COUNT + 1), round(COUNT * (1 - kept))):
        await connection.requests.delete_message(STREAM, sequence)
        left.discard(sequence)
    for messages_max in (1, 7, 256, 2 * COUNT):
        assert await scanned(connection, messages_max) == sorted(left)


async def test_a_page_holds_no_more_bytes_than_it_may_and_asks_for_few_large_ones(connection: Connection) -> None:
    sizes = [10] * AHEAD_MAX * 2 + [300_000] * 20 + [10] * 20
    await fill(connection, sizes)
    asked: list[int] = []

    async def counting(*arguments: Any) -> Stored | None:
        stored = await read_next(*arguments)
        asked.append(len(stored.payload) if stored is not None else 0)
        return stored

    with mock.patch.object(scanning, "read_next", counting):
        assert await scanned(connection, 1_000, 1_000_000) == list(range(1, len(sizes) + 2))
    # Those that were on their way when the first large one came, once; and then as many as fit.
    assert sum(size > 10 for size in asked) < 20 + AHEAD_MAX


async def test_nothing_is_passed_over_where_one_replica_is_behind(connection: Connection) -> None:
    await fill(connection, [100] * COUNT)
    behind = random.Random(2)

    async def from_any_replica(requests: Any, stream: str, subject_filter: str, after: int) -> Stored | None:
        stored = await read_next(requests, stream, subject_filter, after)
        return None if stored is not None and behind.random() < 0.02 else stored

    scan, found = Scan(connection.requests, STREAM), list[int]()
    with mock.patch.object(scanning, "read_next", from_any_replica):
        while len(found) < COUNT + 1:
            page = await scan.page(found[-1] if found else 0, 256)
            found += [stored.sequence for stored in page.messages]
    assert found == list(range(1, COUNT + 2))


async def test_what_comes_and_goes_meanwhile_is_seen_or_not_and_nothing_else(connection: Connection) -> None:
    await fill(connection, [100] * COUNT)
    scan = Scan(connection.requests, STREAM)
    first = await scan.page(0, 200)
    await connection.requests.api(f"STREAM.PURGE.{STREAM}", {"seq": COUNT - 10})
    await connection.requests.publish("scanned.new", b"")
    rest = await scan.page(first.messages[-1].sequence, COUNT)
    assert [stored.sequence for stored in rest.messages] == list(range(COUNT - 10, COUNT + 3))
    assert not rest.more
    assert (await scan.page(COUNT + 2)) == ([], False)
    assert (await read_page(connection.requests, STREAM, "scanned.new", 0)).messages[0].sequence == COUNT + 2

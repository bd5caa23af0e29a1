"""Room for what many hold at once: the first who comes is the first who gets it, and nobody waits for ever."""

from __future__ import annotations

import asyncio

from inference_worker.dialects.room import Room
from tests.support.patience import within
from tests.support.waiting import until

LONG_SECONDS = 1e6


async def test_who_wants_more_than_is_free_waits_until_it_is_given_back() -> None:
    room = Room(10)
    async with within(20):
        assert await room.take(6, LONG_SECONDS)
        waiting = asyncio.create_task(room.take(5, LONG_SECONDS))
        await asyncio.sleep(0)
        assert not waiting.done()
        room.give_back(6)
        assert await waiting
    assert room.free_bytes == 5


async def test_who_wants_little_does_not_overtake_who_wants_much() -> None:
    room = Room(10)
    came: list[int] = []

    async def take(wanted_bytes: int) -> None:
        assert await room.take(wanted_bytes, LONG_SECONDS)
        came.append(wanted_bytes)

    await take(9)
    tasks = [asyncio.create_task(take(wanted_bytes)) for wanted_bytes in (8, 1)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert came == [9]
    room.give_back(9)
    await until(lambda: all(task.done() for task in tasks))
    assert came == [9, 8, 1]


async def test_who_waits_in_vain_or_is_cancelled_takes_nothing_and_keeps_nobody() -> None:
    room = Room(10)
    async with within(20):
        assert await room.take(10, LONG_SECONDS)
        assert not await room.take(1, 0.01)
        cancelled = asyncio.create_task(room.take(1, LONG_SECONDS))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        room.give_back(10)
        assert await room.take(10, LONG_SECONDS)
    assert room.free_bytes == 0


async def test_what_can_not_ever_fit_is_not_waited_for() -> None:
    async with within(20):
        assert not await Room(10).take(11, LONG_SECONDS)

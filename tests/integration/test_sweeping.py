"""Sweeps against a real broker: each message that is old enough is looked at, whoever else is at work."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mesh.broker.connection import Connection
from mesh.broker.direct_get import Stored
from mesh.clock import now
from steward.sweeps.sweep import PAGE_MESSAGES_MAX, PIECE_SEQUENCES, Sweep, Sweeping
from steward.walks.walking import Walking

pytestmark = pytest.mark.integration

SIGNALS = 2 * PAGE_MESSAGES_MAX + 10


async def test_all_of_a_piece_is_looked_at_though_another_steward_is_further_on(connection: Connection) -> None:
    requests = connection.requests
    for number in range(SIGNALS):
        await requests.publish(f"signals.default.s{number}", b"{}")
    looked_at: list[int] = []

    async def take_away(messages: list[Stored]) -> int:
        looked_at.extend(each.sequence for each in messages)
        # While this one is at its piece, another has taken one behind it.
        walk, revision = await other._read()
        await other._write(type(walk)(cursor=2 * PIECE_SEQUENCES, pieces=walk.pieces, again_at=walk.again_at), revision)
        return 0

    sweep = Sweep("test", "SIGNALS", timedelta(), take_away)
    other = Walking(requests, "sweep_test", "other", PIECE_SEQUENCES)
    at = now() + timedelta(minutes=1)
    assert await Sweeping(requests, sweep, "first").round(at)
    assert looked_at == list(range(1, SIGNALS + 1))


async def test_what_is_young_ends_a_piece_and_is_looked_at_once_it_is_old(connection: Connection) -> None:
    requests = connection.requests
    for number in range(3):
        await requests.publish(f"signals.default.s{number}", b"{}")
    looked_at: list[int] = []

    async def take_away(messages: list[Stored]) -> int:
        looked_at.extend(each.sequence for each in messages)
        return 0

    sweeping = Sweeping(requests, Sweep("test", "SIGNALS", timedelta(hours=1), take_away), "first")
    at = now()
    assert not await sweeping.round(at + timedelta(minutes=30))
    assert await sweeping.round(at + timedelta(minutes=61))
    await requests.publish("signals.default.later", b"{}")
    assert await sweeping.round(at + timedelta(minutes=62))
    assert not await sweeping.round(at + timedelta(minutes=62))
    assert looked_at == [1, 2, 3, 4]

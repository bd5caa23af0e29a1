"""Walks against a real broker: whose piece is whose."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mesh.broker.connection import Connection
from mesh.clock import now
from steward.walks import walking
from steward.walks.walking import First, Walking

pytestmark = pytest.mark.integration


async def test_what_a_steward_has_left_is_taken_from_its_beginning_before_the_walk_begins_anew(
    connection: Connection,
) -> None:
    """What is packed of a piece is known, and fenced, by the piece's beginning."""
    due = [3, 40, 41]

    async def first_behind(after: int) -> First | None:
        return next((First(each, True) for each in due if after < each), None)

    first, second = (Walking(connection.requests, "test", name, 10) for name in ("first", "second"))
    at = now()
    piece = await first.take(at, first_behind)
    assert piece is not None
    await first.give_back(piece, piece.to, at, met_young=False)
    left = await first.take(at, first_behind)
    assert left is not None
    assert left.from_ == 40
    later = at + walking.AGAIN_EVERY + timedelta(minutes=1)
    taken = await second.take(later, first_behind)
    assert taken is not None
    assert (taken.from_, taken.to) == (left.from_, left.to)
    assert not await first.keep(left, later)
    await second.give_back(taken, taken.to, later, met_young=False)
    anew = await second.take(later, first_behind)
    assert anew is not None
    assert anew.from_ == due[0]

"""Who has which piece of a walk: the rules, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from contracts.records.walks import WalkPiece, WalkRecord
from steward.walks import rules

AT = datetime(2026, 1, 1, tzinfo=UTC)
LATER = AT + timedelta(minutes=1)
DAY = timedelta(days=1)


def piece(first: int, last: int, owner: str = "a", until: datetime = LATER) -> WalkPiece:
    """A piece of a walk."""
    return WalkPiece(from_=first, to=last, owner=owner, until=until)


def test_a_new_piece_moves_the_cursor_and_is_its_owners() -> None:
    walk, mine = rules.taken(WalkRecord(cursor=10), piece(15, 24, until=AT), "b", LATER)
    assert walk == WalkRecord(cursor=24, pieces=[piece(15, 24, "b")])
    assert rules.owns(walk, mine)
    assert not rules.owns(walk, piece(15, 24, "a"))
    assert rules.orphans(walk, AT) == []
    assert rules.orphans(walk, LATER) == [mine]


def test_what_is_done_is_given_back_and_what_is_left_of_it_is_an_orphan_or_ahead() -> None:
    walk = WalkRecord(cursor=30, pieces=[piece(1, 10), piece(11, 20), piece(21, 30)])
    assert rules.given_back(walk, piece(1, 10), 10, AT) == WalkRecord(cursor=30, pieces=[piece(11, 20), piece(21, 30)])
    assert rules.given_back(walk, piece(11, 20), 14, AT, met_young=True).pieces[1] == piece(11, 20, until=AT)
    assert rules.given_back(walk, piece(11, 20), 14, AT).pieces == [piece(1, 10), piece(21, 30)], "no more is there"
    # The last one goes on when there is more: it had reached into what is still to come.
    assert rules.given_back(walk, piece(21, 30), 24, AT) == WalkRecord(cursor=24, pieces=[piece(1, 10), piece(11, 20)])


def test_an_orphan_in_which_nothing_is_left_is_dissolved() -> None:
    walk = WalkRecord(cursor=20, pieces=[piece(1, 10, until=AT), piece(11, 20, until=AT)])
    assert rules.dissolved(walk, piece(1, 10), AT) == WalkRecord(cursor=20, pieces=[piece(11, 20, until=AT)])
    assert rules.dissolved(walk, piece(11, 20), AT) == WalkRecord(cursor=10, pieces=[piece(1, 10, until=AT)])


def test_a_walk_begins_anew_each_day_but_not_under_the_feet_of_others() -> None:
    first = rules.begun_anew(WalkRecord(cursor=7), AT, DAY)
    assert first == WalkRecord(cursor=7, again_at=AT + DAY)
    assert rules.begun_anew(first, LATER, DAY) is None
    busy = WalkRecord(cursor=7, pieces=[piece(1, 7, until=AT + DAY + timedelta(seconds=1))], again_at=AT + DAY)
    assert rules.begun_anew(busy, AT + DAY, DAY) is None
    left = WalkRecord(cursor=7, pieces=[piece(1, 7)], again_at=AT + DAY)
    assert rules.begun_anew(left, AT + DAY, DAY) == WalkRecord(again_at=AT + 2 * DAY)


@given(st.lists(st.tuples(st.sampled_from(["new", "orphan", "give", "part", "die"]), st.integers(0, 5)), max_size=40))
def test_each_sequence_is_done_or_somebodys_or_ahead(moves: list[tuple[str, int]]) -> None:
    """Whoever takes, gives back or dies: nothing below the cursor is forgotten, and no two pieces overlap."""
    walk, done, at = WalkRecord(), set[int](), AT
    for move, number in moves:
        at += timedelta(seconds=1)
        living = [each for each in walk.pieces if each.until > at]
        orphans = rules.orphans(walk, at)
        if move == "new":
            wanted = piece(walk.cursor + 1, walk.cursor + 5, until=at)
            walk, _ = rules.taken(walk, wanted, f"s{number}", at + timedelta(seconds=30))
        elif move == "orphan" and orphans:
            walk, _ = rules.taken(walk, orphans[number % len(orphans)], f"s{number}", at + timedelta(seconds=30))
        elif move in ("give", "part") and living:
            mine = living[number % len(living)]
            to = mine.to if move == "give" else mine.from_ + number % 5 - 1
            done |= set(range(mine.from_, to + 1))
            walk = rules.given_back(walk, mine, to, at, met_young=True)
        elif move == "die":
            at += timedelta(minutes=1)
        held = [sequence for each in walk.pieces for sequence in range(each.from_, each.to + 1)]
        assert len(held) == len(set(held))
        assert set(range(1, walk.cursor + 1)) <= done | set(held)

"""The counters are held against journals, packed ones included, and set to what these say."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from contracts.journal import events
from contracts.journal.parts import Timings
from contracts.records.usage import Counter, Place, What, day_of, is_month, month_of
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.journal.projection import project
from mesh.ledger import counters
from mesh.ledger.audit import Audit, audit, corrections
from mesh.ledger.counting import Counting, LeaseLost
from mesh.task.records import record
from steward.archiving import packing
from steward.archiving.packing import Packing
from steward.usage_counting import UsageCounting
from tests.integration.test_usage_counting import USAGE, count_all, counted, expected, lately, turn
from tests.support.past import PastJournal
from tests.support.stale import empty_replicas

pytestmark = pytest.mark.integration

RETENTION = timedelta(days=30)
TURN: dict[What, int] = {"input": 10, "output": 4, "cached": 3, "cost": 25, "turns": 1}
"""What a turn of these tests adds."""


@pytest.fixture
async def requests(connection: Connection) -> Requests:
    return connection.requests


async def ended(requests: Requests) -> None:
    journal = await turn(requests)
    await journal.append(
        lambda stamp: events.TaskCompleted(*stamp, output="x", usage=USAGE, timings=Timings()), lambda _: True
    )
    await project(requests, record(journal.state))


async def pack_all(requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "GATHERS", timedelta())
    packs = Packing(requests, replace(settings, pack_after_hours=0.001), "steward")
    while await packs.round(now() + timedelta(minutes=5)):
        pass
    assert not await subjects_of(requests, "EVENTS", "events.>")


async def counted_and_packed(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch, tasks: int = 1
) -> Counting:
    """Let tasks end, count them, and pack them; who counts."""
    steward = Counting(requests, "steward")
    assert await steward.take()
    for _ in range(tasks):
        await ended(requests)
    await count_all(steward)
    await pack_all(requests, settings, monkeypatch)
    return steward


async def audited(requests: Requests) -> Audit:
    counting = Counting(requests, "operator")
    assert await counting.take(steal=True)
    found = await audit(requests, counting, RETENTION)
    await counting.leave()
    return found


async def test_what_is_counted_agrees_with_journals_that_are_there_and_those_that_are_packed(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await counted_and_packed(requests, settings, monkeypatch, tasks=3)
    await ended(requests)
    await turn(requests)  # not counted yet, nor ended
    found = await audited(requests)
    assert (found.differences, found.turns, found.unreadable) == ([], 5, 0)
    assert await counted(requests) == expected(5)


def planted(kind: str, counted: dict[Counter, int]) -> dict[Counter, int]:
    """What to add so that the counters of a day are wrong in one way."""
    place = next(counter.place for counter in counted if not is_month(counter.place.period))
    of_turn = {Counter(place, what): value for what, value in TURN.items()}
    before = day_of(datetime.fromisoformat(f"{place.period}T12:00:00+00:00") - timedelta(days=1))
    elsewhere = {
        "another day": place._replace(period=before),
        "another provider": place._replace(provider="planted"),
        "another tenant": place._replace(tenant="planted"),
    }
    match kind:
        case "missing":
            return {counter: -value for counter, value in of_turn.items()}
        case "doubled":
            return of_turn
        case "cost":
            return {Counter(place, "cost"): 1}
        case "month":
            return {Counter(place._replace(period=month_of(place.period)), "output"): -5}
        case "untold":
            return {Counter(place, "untold"): 1}
        case _:
            moved = {counter._replace(place=elsewhere[kind]): value for counter, value in of_turn.items()}
            return moved | {counter: -value for counter, value in of_turn.items()}


async def test_each_kind_of_difference_that_somebody_has_planted_is_found_and_set_right(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = await counted_and_packed(requests, settings, monkeypatch)
    await turn(requests)
    await count_all(steward)
    right = await counters.read(requests, None, lately())
    kinds = ("missing", "doubled", "cost", "month", "untold", "another day", "another provider", "another tenant")
    for kind in kinds:
        wrong = planted(kind, right)
        await counters.add(requests, counters.by_subject(wrong), kind)
        found = {each.counter: each.is_ - each.should_be for each in (await audited(requests)).differences}
        assert found.items() >= wrong.items(), kind
        # A day that is wrong makes its month look wrong as well, unless somebody has planted that, too.
        assert {each.place.period for each in found} <= {*lately(), *(each.place.period for each in wrong)}, kind

        counting = Counting(requests, "operator")
        assert await counting.take(steal=True)
        await counting.correct(corrections((await audit(requests, counting, RETENTION)).differences))
        await counting.leave()
        assert (await audited(requests)).differences == [], kind
        assert await counters.read(requests, None, lately()) == right, kind


async def test_replicas_that_are_behind_make_no_difference(requests: Requests, connection: Connection) -> None:
    """None of them has anything yet: the leader is asked before anybody is told."""
    await turn(requests)
    counting = Counting(requests, "operator")
    assert await counting.take()
    await count_all(counting)
    with empty_replicas(connection):
        found = await audit(requests, counting, RETENTION)
    assert (found.differences, found.turns) == ([], 1)


async def test_whoever_is_overtaken_in_the_middle_says_nothing_of_what_it_has_seen(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    await turn(requests)
    one, other = Counting(requests, "one"), Counting(requests, "other")
    assert await one.take()
    read = counters.read

    async def read_slowly(*asked: Any) -> dict[Counter, int]:
        monkeypatch.setattr(counters, "read", read)
        await other.take(steal=True)
        await turn(requests)
        await count_all(other)
        return await read(*asked)

    monkeypatch.setattr(counters, "read", read_slowly)
    with pytest.raises(LeaseLost):
        await audit(requests, one, RETENTION)


async def test_days_whose_counters_stewards_have_let_go_of_are_left_alone_and_so_are_their_months(
    requests: Requests,
) -> None:
    """Where journals are kept for longer than a year."""
    old = now() - timedelta(days=400)
    late = now() - timedelta(days=364)
    for time in (old, late):
        journal = PastJournal(requests)
        await journal.begin(time)
        await journal.turn(time)
        await journal.end(time)
    steward = UsageCounting(requests, "steward")
    await steward.round()
    assert await counters.read(requests, None, [day_of(old)]) == {}
    assert await counters.read(requests, None, [month_of(day_of(old))])
    assert await counters.read(requests, None, [day_of(late)])
    counting = Counting(requests, "operator")
    assert await counting.take(steal=True)
    found = await audit(requests, counting, timedelta(days=3_650))
    assert (found.differences, found.turns) == ([], 1)


async def test_where_journals_are_kept_for_less_than_a_day_nothing_is_compared(requests: Requests) -> None:
    await turn(requests)
    counting = Counting(requests, "operator")
    assert await counting.take()
    found = await audit(requests, counting, timedelta(hours=1))
    assert found.since > found.until
    assert (found.differences, found.turns) == ([], 0)
    assert await counted(requests) == expected(1)


async def test_counters_that_are_gone_are_made_again_from_journals(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = await counted_and_packed(requests, settings, monkeypatch)
    await turn(requests)
    await count_all(steward)
    await requests.purge("USAGE", "usage.>")
    counting = Counting(requests, "operator")
    assert await counting.take(steal=True)
    found = await audit(requests, counting, RETENTION)
    assert len(found.differences) == len(expected(2))
    await counting.correct(corrections(found.differences))
    assert await counted(requests) == expected(2)
    # And what comes then is counted on top.
    await turn(requests)
    await count_all(counting)
    assert await counted(requests) == expected(3)


async def test_days_that_nobody_has_the_journals_of_any_more_are_left_alone(requests: Requests) -> None:
    old = day_of(now() - timedelta(days=60))
    place = Place("default", old, "mine", "m", "default")
    both = {Counter(place, "input"): 5, Counter(place._replace(period=month_of(old)), "input"): 5}
    await counters.add(requests, counters.by_subject(both), "b")
    await turn(requests)
    found = await audited(requests)
    assert found.differences == []
    assert found.since > (now() - RETENTION).date()

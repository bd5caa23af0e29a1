"""The counters are held against journals, packed ones included, and set to what these say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from contracts.journal import events
from contracts.journal.parts import Timings
from contracts.records.usage import Counter, Place, day_of, month_of
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.journal.projection import project
from mesh.ledger import counters
from mesh.ledger.audit import Audit, Difference, audit, corrections
from mesh.ledger.counting import Counting
from mesh.task.records import record
from steward.archiving import packing
from steward.archiving.packing import Packing
from tests.integration.test_usage_counting import USAGE, count_all, counted, expected, lately, turn

pytestmark = pytest.mark.integration

RETENTION = timedelta(days=30)


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


async def audited(requests: Requests) -> Audit:
    counting = Counting(requests, "operator")
    assert await counting.take(steal=True)
    found = await audit(requests, counting, RETENTION)
    await counting.leave()
    return found


async def test_what_is_counted_agrees_with_journals_that_are_there_and_those_that_are_packed(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = Counting(requests, "steward")
    assert await steward.take()
    for _ in range(3):
        await ended(requests)
    await count_all(steward)
    await pack_all(requests, settings, monkeypatch)
    await ended(requests)
    await turn(requests)  # not counted yet, nor ended
    found = await audited(requests)
    assert (found.differences, found.turns, found.unreadable) == ([], 5, 0)
    assert await counted(requests) == expected(5)


async def test_a_difference_that_somebody_has_planted_is_found_and_set_right(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = Counting(requests, "steward")
    assert await steward.take()
    await ended(requests)
    await count_all(steward)
    await pack_all(requests, settings, monkeypatch)
    await turn(requests)
    day = next(iter(await counters.read(requests, "default", lately()))).place.period
    here = Place("default", day, "mine", "m", "default")
    mine, stranger = (
        Counter(here._replace(provider="planted"), "input"),
        Counter(here._replace(tenant="stranger"), "output"),
    )
    await counters.add(requests, {mine: 1, stranger: 2}, "planted")
    found = await audited(requests)
    assert found.differences == [Difference(mine, 0, 1), Difference(stranger, 0, 2)]

    # One that should be there, and is too small.
    of_day = await counters.read(requests, "default", [day])
    counter, value = next((each, value) for each, value in of_day.items() if each.place.provider == "mine")
    await counters.add(requests, {counter: -1}, "planted too")
    assert Difference(counter, value, value - 1) in (await audited(requests)).differences

    # One of a month is held against its days.
    month = Counter(here._replace(period=month_of(day)), "cost")
    await counters.add(requests, {month: -5}, "planted at last")
    found = await audited(requests)
    assert [each.is_ - each.should_be for each in found.differences if each.counter == month] == [-5]

    counting = Counting(requests, "operator")
    assert await counting.take(steal=True)
    await counting.correct(corrections((await audit(requests, counting, RETENTION)).differences))
    await counting.leave()
    assert (await audited(requests)).differences == []
    assert await counted(requests) == expected(2)


async def test_counters_that_are_gone_are_made_again_from_journals(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = Counting(requests, "steward")
    assert await steward.take()
    await ended(requests)
    await count_all(steward)
    await pack_all(requests, settings, monkeypatch)
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
    await counters.add(requests, {Counter(place, "input"): 5, Counter(place._replace(period=old[:7]), "input"): 5}, "b")
    await turn(requests)
    found = await audited(requests)
    assert found.differences == []
    assert found.since > (now() - RETENTION).date()

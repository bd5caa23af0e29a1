"""What journals say is counted once, whoever counts, and wherever one of them dies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from contracts.codec import decode, encode
from contracts.identifiers import new_id
from contracts.journal import events, parts
from contracts.journal.parts import Timings, Usage
from contracts.records.usage import Counter, Place, counter_of, day_of, month_of
from contracts.records.walks import CountedBatch, LedgerRecord
from contracts.streams import LEDGER_KEY, WALKS_BUCKET
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import subjects_of
from mesh.broker.provisioning import apply, declared
from mesh.broker.requests import Requests
from mesh.broker.suitability import PAYLOAD_BYTES_LEAST
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable
from mesh.journal.journal import Journal
from mesh.ledger import counters, counting
from mesh.ledger.audit import audit
from mesh.ledger.counting import Counting, counted_up_to
from steward.archiving import packing
from steward.archiving.packing import Packing
from steward.usage_counting import UsageCounting
from tests.integration.test_usage_counters import PARROTS
from tests.support.broker import Broker
from tests.support.slow_link import slow_link
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

DAY, MONTH = "2000-01-02", "2000-01"
USAGE = Usage(10, 4, cached_tokens=3, cost_micros=25)


async def turn(requests: Requests, usage: Usage = USAGE, provider: str = "mine", **fields: object) -> Journal:
    """A journal with one completed turn."""
    journal = await begin_journal(requests, turn_work())
    await complete(journal, usage, provider, **fields)
    return journal


async def complete(journal: Journal, usage: Usage = USAGE, provider: str = "mine", **fields: object) -> None:
    await journal.append(
        lambda stamp: events.TurnCompleted(
            *stamp,
            turn=1,
            text="x",
            finish_reason="stop",
            usage=usage,
            timings=Timings(),
            **{"provider": provider, "model": "m", "pool": "default", **fields},  # type: ignore[arg-type]  # of the event
        ),
        lambda _: True,
    )


def lately() -> list[str]:
    """The days in which a test can have begun, and their months: it may run at midnight."""
    days = [day_of(now() - timedelta(days=ago)) for ago in (1, 0)]
    return [*days, *dict.fromkeys(map(month_of, days))]


async def counted(requests: Requests) -> dict[Counter, int]:
    """All counters of lately, as if they were of one day and its month."""
    found: dict[Counter, int] = {}
    for (place, what), value in (await counters.read(requests, None, lately())).items():
        period = MONTH if place.period == month_of(place.period) else DAY
        counter = Counter(place._replace(period=period), what)
        found[counter] = found.get(counter, 0) + value
    return found


def expected(turns: int, provider: str = "mine", tenant: str = "default") -> dict[Counter, int]:
    found: dict[Counter, int] = {}
    for period in (DAY, MONTH):
        place = Place(tenant, period, provider, "m", "default")
        for what, amount in (("input", 10), ("output", 4), ("cached", 3), ("cost", 25), ("turns", 1)):
            found[Counter(place, what)] = turns * amount  # type: ignore[arg-type]  # a kind
    return found


async def count_all(counting: Counting) -> None:
    while await counting.count():
        pass


@pytest.fixture
async def requests(connection: Connection) -> Requests:
    return connection.requests


async def test_each_event_counts_for_its_day_and_month(requests: Requests) -> None:
    journal = await turn(requests)
    spent = Usage(5, 1, untold_calls=1)
    await journal.append(
        lambda stamp: events.ModelSpent(
            *stamp, turn=1, provider="backup", model="m", pool="default", reason="hedge", usage=spent
        ),
        lambda _: True,
    )
    lost = [parts.ModelCall(turn=2, provider="backup", model="m", pool="default"), parts.ModelCall(turn=2)]
    await journal.append(lambda stamp: events.TaskCancelled(*stamp, lost=lost), lambda _: True)
    counting = Counting(requests, "one")
    assert await counting.take()
    await count_all(counting)
    found = await counted(requests)
    backup = Place("default", DAY, "backup", "m", "default")
    assert {counter.what: value for counter, value in found.items() if counter.place == backup} == {
        "input": 5,
        "output": 1,
        "unpriced": 6,
        "untold": 2,
    }
    assert found[Counter(Place("default", DAY, "_", "_", "_"), "untold")] == 1
    assert found.items() >= expected(1).items()
    assert await counted_up_to(requests) == counting.cursor

    # There is nothing more, and what comes later counts later.
    await count_all(counting)
    assert await counted(requests) == found
    await turn(requests)
    await count_all(counting)
    assert (await counted(requests)).items() >= expected(2).items()


async def test_one_counts_at_a_time_and_another_goes_on_once_it_leaves(requests: Requests) -> None:
    one, other = Counting(requests, "one"), Counting(requests, "other")
    await turn(requests)
    assert await one.take()
    assert not await other.take()
    await count_all(one)
    await one.leave()
    assert await other.take()
    await turn(requests)
    await count_all(other)
    assert await counted(requests) == expected(2)


@pytest.mark.parametrize("died", ["before any", "after some", "after all"])
async def test_a_batch_that_somebody_has_died_with_is_finished_and_counts_once(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    """However late: the broker's memory of message ids may have gone by."""
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    add = counters.add

    async def dies(requests: Requests, increments: dict[str, int], batch: str, may: object = None) -> None:
        some = dict(list(increments.items())[: {"before any": 0, "after some": 4, "after all": None}[died]])
        # With other ids than the next one sends, as after ten minutes.
        await add(requests, {}, batch)
        for subject, increment in some.items():
            await requests.publish(subject, b"", {"Nats-Incr": f"{increment:+d}", "Mesh-Usage-Batch": batch})
        raise BrokerUnavailable("it is gone")

    monkeypatch.setattr(counters, "add", dies)
    with pytest.raises(BrokerUnavailable):
        await one.count()
    monkeypatch.setattr(counters, "add", add)
    other = Counting(requests, "other")
    assert await other.take(steal=True)
    await count_all(other)
    assert await counted(requests) == expected(1)
    # The first one comes to, and may not go on.
    with pytest.raises(BrokerUnavailable):
        await one.count()
    assert not await one.take()


async def test_who_is_overtaken_in_mid_batch_counts_no_more(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "LEASE_SECONDS", 0.0)
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    with pytest.raises(BrokerUnavailable, match="others count now"):
        await one.count()
    assert await counted(requests) == {}


async def test_many_that_steal_from_one_another_count_each_event_once(requests: Requests) -> None:
    random = Random(7)
    ones = [Counting(requests, f"s{number}") for number in range(4)]
    turns = 0

    async def write() -> None:
        nonlocal turns
        for _ in range(30):
            await turn(requests)
            turns += 1

    async def count(one: Counting) -> None:
        while not writing.done():
            try:
                if await one.take(steal=random.random() < 0.3):
                    await one.count()
            except BrokerUnavailable:
                pass
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await asyncio.gather(writing, *(count(one) for one in ones))
    last = Counting(requests, "last")
    assert await last.take(steal=True)
    await count_all(last)
    assert await counted(requests) == expected(turns)


async def test_a_page_with_more_than_a_batch_holds_is_counted_in_several(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "BATCH_BYTES_MAX", 1)
    for _ in range(3):
        await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    assert await one.count()
    assert await counted(requests) == expected(1)
    await count_all(one)
    assert await counted(requests) == expected(3)


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": "no"},
        {"usage": {"input_tokens": 10**70}},
        {"usage": {"input_tokens": 1}, "model": "m" * 5_000, "time": "2000-01-02T00:00:00Z"},
        {"usage": {"input_tokens": 1}, "time": "0001-01-01T00:00:00+14:00"},
        {"usage": {"input_tokens": 1}, "time": "9999-12-31T23:59:59-14:00"},
        {"usage": {"input_tokens": 1}, "tenant": "No such tenant"},
    ],
    ids=["no usage", "amount", "model", "first day", "last day", "tenant"],
)
async def test_an_event_of_an_odd_writer_keeps_no_other(requests: Requests, fields: dict[str, object]) -> None:
    odd = {"type": "turn.completed", "tenant": "odd", "time": f"{now():%Y-%m-%dT%H:%M:%SZ}", **fields}
    await requests.publish(f"events.default.{new_id()}.log", encode(odd))
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    await count_all(one)
    found = await counted(requests)
    assert {counter: value for counter, value in found.items() if counter.place.tenant != "odd"} == expected(1)
    assert (await audit(requests, one, timedelta(days=30))).differences == []


async def test_a_broker_that_takes_small_messages_has_small_batches(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "small", max_payload=str(PAYLOAD_BYTES_LEAST))
    await broker.start()
    try:
        settings = Settings(nats_url=broker.url)
        async with connect(settings, "test") as connection:
            requests = connection.requests
            await apply(requests, declared(settings), update=False)
            journal = await begin_journal(requests, turn_work())
            for number in range(60):
                await complete(journal, model=f"{PARROTS}{number}")
            one = Counting(requests, "one")
            assert await one.take()
            await count_all(one)
            assert sum(value for counter, value in (await counted(requests)).items() if counter.what == "turns") == 120
    finally:
        await broker.stop()


async def test_a_large_batch_of_a_dead_one_is_finished_at_any_distance(
    requests: Requests, settings: Settings, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask each counter one after the other takes longer than the lease; to keep it anew takes a moment."""
    place = Place("default", f"{now():%Y-%m-%d}", "mine", "m", "default")
    many = counters.by_subject({Counter(place._replace(model=f"m{number}"), "input"): 1 for number in range(400)})
    some = dict([*many.items()][:150])
    await counters.add(requests, some, "b")
    left = LedgerRecord(owner="dead", batch=CountedBatch(to=0, batch="b", increments=many))
    await key_value.put(requests, WALKS_BUCKET.name, LEDGER_KEY, encode(left))
    monkeypatch.setattr(counting, "LEASE_SECONDS", 1.0)

    async def is_finished() -> bool:
        try:
            return await one.take(steal=True) and not await one.count()
        except BrokerUnavailable:
            return False  # On a busy machine the lease may be over in mid-part.

    async with (
        slow_link(broker.port, 0.02) as link,
        connect(replace(settings, nats_url=link.url), "far") as far,
    ):
        one = Counting(far.requests, "one")
        await until(is_finished)
    assert await counters.read(requests, None, [place.period]) == {counter_of(name): 1 for name in many}


async def test_where_nothing_happens_nothing_is_written(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    await turn(requests)
    steward = UsageCounting(requests, "steward")
    await steward.round()
    before = await key_value.get_from_leader(requests, WALKS_BUCKET.name, LEDGER_KEY)
    monkeypatch.setattr(counting, "LEASE_SECONDS", 0.0)
    for _ in range(3):
        await steward.round()
    after = await key_value.get_from_leader(requests, WALKS_BUCKET.name, LEDGER_KEY)
    assert before is not None
    assert after is not None
    assert before.revision == after.revision


async def test_a_steward_that_another_was_faster_than_stands_back_without_a_word(requests: Requests) -> None:
    steward, other = UsageCounting(requests, "steward"), Counting(requests, "other")
    await turn(requests)
    await steward.round()
    assert await other.take(steal=True)
    await turn(requests)
    await steward.round()  # It finds that out as it writes, and that is no failure.
    await count_all(other)
    await steward.round()
    assert await counted(requests) == expected(2)


async def test_a_batch_of_a_newer_version_with_a_kind_of_its_own_is_finished(requests: Requests) -> None:
    place = Place("default", f"{now():%Y-%m-%d}", "mine", "m", "default")
    subject = Counter(place, "input").subject.removesuffix("input") + "images"
    left = LedgerRecord(owner="newer", batch=CountedBatch(to=0, batch="b", increments={subject: 3}))
    await key_value.put(requests, WALKS_BUCKET.name, LEDGER_KEY, encode(left))
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    await count_all(one)
    assert await counters.counted_in(requests, [subject], "b") == {subject}
    assert await counted(requests) == expected(1)


async def test_a_steward_counts_by_itself_and_leaves_when_it_stops(requests: Requests) -> None:
    await turn(requests)
    steward = UsageCounting(requests, "steward")
    await steward.round()
    assert await counted(requests) == expected(1)
    running = asyncio.create_task(steward.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    entry = await key_value.get_from_leader(requests, WALKS_BUCKET.name, LEDGER_KEY)
    assert entry is not None
    assert entry.value is not None
    record = decode(entry.value, LedgerRecord)
    assert (record.owner, record.batch) == ("", None)


async def test_counters_of_days_go_after_a_year_and_those_of_months_stay(requests: Requests) -> None:
    old, young = (day_of(now() - timedelta(days=days)) for days in (380, 360))
    kept = {Counter(Place("default", period, "mine", "m", "default"), "input"): 1 for period in (young, month_of(old))}
    gone = {Counter(Place("default", old, "mine", "m", "default"), "input"): 1}
    await counters.add(requests, counters.by_subject(kept | gone), "b")
    await UsageCounting(requests, "steward").round()
    assert await counters.read(requests, None, [old, young, month_of(old)]) == kept


async def test_what_is_not_counted_is_not_packed(
    requests: Requests, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "GATHERS", timedelta())
    journal = await turn(requests)
    await journal.append(
        lambda stamp: events.TaskCompleted(*stamp, output="x", usage=USAGE, timings=Timings()), lambda _: True
    )
    await key_value.put(requests, WALKS_BUCKET.name, LEDGER_KEY, encode(LedgerRecord(cursor=0)))
    packs = Packing(requests, replace(settings, pack_after_hours=0.001), "steward")
    at = now() + timedelta(minutes=5)
    while await packs.round(at):
        pass
    assert await subjects_of(requests, "EVENTS", f"events.default.{journal.state.task}.*")
    one = Counting(requests, "one")
    assert await one.take()
    await count_all(one)
    while await packs.round(at):
        pass
    assert not await subjects_of(requests, "EVENTS", f"events.default.{journal.state.task}.*")


async def test_a_stream_that_was_made_anew_is_counted_from_its_beginning(
    requests: Requests, settings: Settings
) -> None:
    """Also where it has more than the old one had by the time that somebody counts."""
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    await count_all(one)
    await one.leave()
    await requests.api("STREAM.DELETE.EVENTS")
    await apply(requests, declared(settings), update=False)
    for _ in range(3):
        await turn(requests)
    assert await one.take()
    await count_all(one)
    assert await counted(requests) == expected(4)


@pytest.mark.parametrize("begun", [False, True], ids=["between batches", "in a batch"])
async def test_a_stream_that_has_lost_its_end_is_counted_on_from_there(requests: Requests, *, begun: bool) -> None:
    """After a power cut. What was counted of it is not counted once more."""
    await turn(requests)
    one = Counting(requests, "one")
    assert await one.take()
    await count_all(one)
    ahead = one.cursor + 100
    batch = CountedBatch(to=ahead, batch="lost", increments={}) if begun else None
    left = LedgerRecord(cursor=one.cursor if begun else ahead, batch=batch)
    await key_value.put(requests, WALKS_BUCKET.name, LEDGER_KEY, encode(left))
    other = Counting(requests, "other")
    assert await other.take()
    await turn(requests)
    await count_all(other)
    assert await counted(requests) == expected(2)

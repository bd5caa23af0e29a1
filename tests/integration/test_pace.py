"""Pace of several workers in one bucket, and the gates that it opens, against a real broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from contracts.journal.parts import Usage
from contracts.records.pace import pace_key
from contracts.records.providers import ProviderRecord
from contracts.streams import PROVIDERS_BUCKET, lane_consumer
from inference_worker.models.breakers import Breakers, PoolGate
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TextDelta, TurnInput
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.gates import UNLIMITED, Permit, permit_in_hand
from mesh.configuration.pace_table import PaceSettings
from mesh.fleet.records import read_records
from mesh.pacing import pacer
from mesh.pacing.reading import read_paces
from mesh.task.failures import StepFailed
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LANES = (("TASKS", lane_consumer("TASKS", "default", "normal")),)
SLOW = PaceSettings(requests_per_minute=0.1)
"""One turn, and then no other for ten minutes."""


class Model:
    """A source that answers, or refuses with that many seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refuses_for: float | None = None

    def continues(self, text: str) -> bool:
        return False

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        if self.refuses_for is not None:
            raise StepFailed("rate-limited", "later", retryable=True, retry_after_seconds=self.refuses_for)
        yield TextDelta("ok")
        yield Finished(finish_reason="stop", usage=Usage(10, 5))


@asynccontextmanager
async def fleet(connection: Connection, *workers: str, **paces: PaceSettings) -> AsyncIterator[list[Breakers]]:
    """The pace of these workers, kept until the end of the block."""
    fleet = [Breakers(connection.requests, {}, worker, paces) for worker in workers]
    async with background(*(each.pacing.run() for each in fleet)):
        yield fleet


async def run(source: Source, permit: Permit | None) -> StepFailed | None:
    """A turn under a permit; what it failed with."""
    permit_in_hand.set(permit)
    try:
        async with aclosing(source.stream(TurnInput(messages=(), model="any"))) as chunks:
            async for _ in chunks:
                pass
    except StepFailed as error:
        return error
    finally:
        permit_in_hand.set(None)
        if permit is not None:
            permit.release()
    return None


async def test_what_one_worker_has_used_leaves_no_room_for_the_others(connection: Connection) -> None:
    async with fleet(connection, "one", "two", main=SLOW) as (one, two):
        gates: list[PoolGate] = [each.gate(("main",), LANES) for each in (one, two)]
        assert [gate.room() for gate in gates] == [1, 1]
        assert await run(one.guard(Model("main")), gates[0].acquire()) is None
        await until(lambda: [gate.room() for gate in gates] == [0, 0])
        assert [each.pacing.room("main") for each in (one, two)] == [0.0, 0.0]
        assert gates[1].acquire() is None
        assert gates[1].leaves_pulls_open or gates[1].seconds_shut() > 1
        paces = await read_paces(connection.requests, ["main", "other"])
        assert set(paces) == {"main"}
        # Nobody takes a pace for a breaker.
        assert await read_records(connection.requests, PROVIDERS_BUCKET, ProviderRecord) == []


async def test_a_pool_is_open_while_one_of_its_providers_has_room(connection: Connection) -> None:
    async with fleet(connection, "one", main=SLOW, second=SLOW) as (worker,):
        gate = worker.gate(("main", "second"), LANES)
        assert gate.room() == 2
        first, second = gate.acquire(), gate.acquire()
        assert gate.acquire() is None
        for permit, mine, other in ((first, "main", "second"), (second, "second", "main")):
            permit_in_hand.set(permit)
            assert (worker.available(mine), worker.available(other)) == (True, False)
        permit_in_hand.set(None)
        # One that does not begin gives back what it has.
        assert second is not None
        second.release()
        await until(lambda: gate.room() == 1)


async def test_a_refusal_shuts_a_provider_for_all_also_where_nothing_is_limited(connection: Connection) -> None:
    model = Model("main")
    async with fleet(connection, "one", "two", main=PaceSettings()) as (one, two):
        gates = [each.gate(("main",), LANES) for each in (one, two)]
        assert [gate.room() for gate in gates] == [UNLIMITED, UNLIMITED]
        model.refuses_for = 3600.0
        permit = gates[0].acquire()
        error = await run(one.guard(model), permit)
        assert error is not None
        assert error.counts, "nobody has said that there are limits"
        await until(lambda: [gate.room() for gate in gates] == [0, 0])
        assert all(3000 < gate.seconds_shut() <= 3600 for gate in gates)
        assert not any(gate.leaves_pulls_open for gate in gates)


async def test_a_permit_is_worth_nothing_once_its_provider_has_refused_another(connection: Connection) -> None:
    model = Model("main")
    model.refuses_for = 3600.0
    limits = PaceSettings(requests_per_minute=1e6)
    async with fleet(connection, "one", main=limits, second=SLOW) as (worker,):
        gate, alone = worker.gate(("main", "second"), LANES), worker.gate(("main",), LANES)
        waiting = alone.acquire()
        assert waiting is not None
        valid = [waiting.is_valid]
        error = await run(worker.guard(model), None)
        assert error is not None
        assert not error.counts
        valid.append(waiting.is_valid)
        assert valid == [True, False]
        other = gate.acquire()
        assert other is not None
        assert other.is_valid, "the other provider has room"


async def test_other_limits_hold_from_a_reload_on(connection: Connection) -> None:
    async with fleet(connection, "one", main=SLOW) as (worker,):
        gate = worker.gate(("main",), LANES)
        assert await run(worker.guard(Model("main")), gate.acquire()) is None
        await until(lambda: gate.room() == 0)
        worker.configure({}, {}, {"main": PaceSettings()})
        assert gate.room() == UNLIMITED
        worker.configure({}, {}, {"main": PaceSettings(concurrency=2)})
        permits = [gate.acquire()]
        await until(lambda: worker.pacing.pacer("main").slots.held == 2)
        permits.append(gate.acquire())
        assert all(permits)
        assert gate.acquire() is None


async def test_a_record_that_cant_be_read_counts_as_none(connection: Connection) -> None:
    await key_value.put(connection.requests, PROVIDERS_BUCKET.name, pace_key("main"), b"{}")
    async with fleet(connection, "one", main=SLOW) as (worker,):
        gate = worker.gate(("main",), LANES)
        assert await run(worker.guard(Model("main")), gate.acquire()) is None
        await until(lambda: gate.room() == 0)

        async def written() -> bool:
            return set(await read_paces(connection.requests, ["main"])) == {"main"}

        await until(written)


async def test_a_worker_without_the_table_leaves_what_others_have_booked(connection: Connection) -> None:
    limits = PaceSettings(requests_per_minute=0.1, concurrency=1)
    async with fleet(connection, "one", main=limits) as (one,), fleet(connection, "old", main=PaceSettings()) as (old,):
        gate = one.gate(("main",), LANES)
        permit = gate.acquire()
        assert permit is not None

        async def booked() -> bool:
            record = (await read_paces(connection.requests, ["main"])).get("main")
            return record is not None and bool(record.booked_until) and bool(record.holders)

        await until(booked)
        model = Model("main")
        model.refuses_for = 1.0
        assert await run(old.guard(model), old.gate(("main",), LANES).acquire()) is not None

        async def is_shut() -> bool:
            record = (await read_paces(connection.requests, ["main"])).get("main")
            return record is not None and record.shut_until is not None

        await until(is_shut)
        assert await booked()
        permit.release()


async def test_a_provider_that_somebody_opens_by_hand_is_called_again(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacer, "SHUT_LOOK_SECONDS", 0.2)
    model = Model("main")
    async with fleet(connection, "one", "two", main=PaceSettings(requests_per_minute=600)) as (one, two):
        gates = [each.gate(("main",), LANES) for each in (one, two)]
        model.refuses_for = 3600.0
        assert await run(one.guard(model), gates[0].acquire()) is not None
        await until(lambda: all(gate.seconds_shut() > 3000 for gate in gates))
        # Nobody announces it.
        await key_value.delete(connection.requests, PROVIDERS_BUCKET.name, pace_key("main"))
        await until(lambda: all(gate.room() > 0 for gate in gates))


async def test_what_is_lost_is_made_anew(connection: Connection) -> None:
    async with fleet(connection, "one", "two", main=SLOW) as (one, two):
        gates = [each.gate(("main",), LANES) for each in (one, two)]
        assert await run(one.guard(Model("main")), gates[0].acquire()) is None
        await until(lambda: [gate.room() for gate in gates] == [0, 0])
        await key_value.delete(connection.requests, PROVIDERS_BUCKET.name, pace_key("main"))
        # Nobody is told: whoever would begin a turn looks.
        for gate in gates:
            gate.ask()
        await until(lambda: max(gate.room() for gate in gates) == 1)

"""Counters against a real broker: they add up, a batch counts once, and they are read by tenant and period."""

from __future__ import annotations

import pytest

from contracts.records.usage import Counter, Place
from mesh.broker.connection import Connection
from mesh.ledger import counters
from mesh.ledger.counters import Totals

pytestmark = pytest.mark.integration

DAY, MONTH = "2026-11-27", "2026-11"
HERE = Place("acme", DAY, "mine", "qwen3:8b", "default")
INPUT, COST = Counter(HERE, "input"), Counter(HERE, "cost")


async def test_a_batch_counts_once_and_counters_tell_whether_they_have_had_it(connection: Connection) -> None:
    requests = connection.requests
    await counters.add(requests, {INPUT: 5, COST: 12}, "b1")
    await counters.add(requests, {INPUT: 5, COST: 12}, "b1")
    assert await counters.read(requests, "acme", [DAY]) == {INPUT: 5, COST: 12}
    assert await counters.counted_in(requests, [INPUT, COST], "b1") == {INPUT, COST}
    assert await counters.counted_in(requests, [INPUT], "b2") == set()

    await counters.add(requests, {INPUT: 2}, "b2")
    assert await counters.counted_in(requests, [INPUT, COST], "b2") == {INPUT}
    await counters.add(requests, {INPUT: -7}, "b3")
    assert await counters.read(requests, "acme", [DAY]) == {COST: 12}  # what is 0 is left out


async def test_they_are_read_by_tenant_and_period(connection: Connection) -> None:
    requests = connection.requests
    month = Place("acme", MONTH, "mine", "qwen3:8b", "default")
    other = Place("other", DAY, "mine", "m", "default")
    written = {
        INPUT: 5,
        Counter(HERE, "output"): 3,
        Counter(HERE, "turns"): 1,
        Counter(HERE, "unpriced"): 8,
        Counter(HERE._replace(pool="batch"), "output"): 4,
        Counter(HERE, "untold"): 2,
        Counter(month, "input"): 9,
        Counter(other, "input"): 7,
    }
    await counters.add(requests, written, "b1")
    assert await counters.read(requests, None, [DAY, MONTH]) == written
    assert await counters.totals(requests, "acme", [DAY, MONTH, "2026-11-26"]) == {
        DAY: Totals(input_tokens=5, output_tokens=7, turns=1, unpriced_tokens=8, untold_calls=2),
        MONTH: Totals(input_tokens=9),
        "2026-11-26": Totals(),
    }
    assert (await counters.totals(requests, "acme", [DAY]))[DAY].tokens == 12


async def test_more_counters_than_the_server_looks_up_at_once_are_all_read(connection: Connection) -> None:
    many = {Counter(HERE._replace(model=f"m{number}"), "input"): number + 1 for number in range(1_100)}
    await counters.add(connection.requests, many, "b1")
    assert await counters.read(connection.requests, "acme", [DAY]) == many

"""Counters against a real broker: they add up, a batch counts once, and they are read by tenant and period."""

from __future__ import annotations

import pytest

from contracts.declarations import MESSAGE_BYTES_MAX
from contracts.records.usage import Counter, Place, counter_of
from mesh.broker.connection import Connection
from mesh.errors import BrokerUnavailable
from mesh.ledger import counters
from mesh.ledger.counters import Totals, by_subject

pytestmark = pytest.mark.integration

DAY, MONTH = "2026-11-27", "2026-11"
HERE = Place("acme", DAY, "mine", "qwen3:8b", "default")
PARROTS = "\N{PARROT}" * 120
"""A name as long as a request may have one, nearly."""
INPUT, COST = Counter(HERE, "input"), Counter(HERE, "cost")


async def test_a_batch_counts_once_and_counters_tell_whether_they_have_had_it(connection: Connection) -> None:
    requests = connection.requests
    await counters.add(requests, by_subject({INPUT: 5, COST: 12}), "b1")
    await counters.add(requests, by_subject({INPUT: 5, COST: 12}), "b1")
    assert await counters.read(requests, "acme", [DAY]) == {INPUT: 5, COST: 12}
    both = [INPUT.subject, COST.subject]
    assert await counters.counted_in(requests, both, "b1") == {*both}
    assert await counters.counted_in(requests, [INPUT.subject], "b2") == set()

    await counters.add(requests, by_subject({INPUT: 2}), "b2")
    assert await counters.counted_in(requests, both, "b2") == {INPUT.subject}
    await counters.add(requests, by_subject({INPUT: -7}), "b3")
    assert await counters.read(requests, "acme", [DAY]) == {COST: 12}  # what is 0 is left out
    assert await counters.read_from_leader(requests, [INPUT, COST]) == {INPUT: 0, COST: 12}


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
    await counters.add(requests, by_subject(written), "b1")
    assert await counters.read(requests, None, [DAY, MONTH]) == written
    assert await counters.totals(requests, "acme", [DAY, MONTH, "2026-11-26"]) == {
        DAY: Totals(input_tokens=5, output_tokens=7, turns=1, unpriced_tokens=8, untold_calls=2),
        MONTH: Totals(input_tokens=9),
        "2026-11-26": Totals(),
    }
    assert (await counters.totals(requests, "acme", [DAY]))[DAY].tokens == 12


async def test_more_counters_than_the_server_looks_up_at_once_are_all_read(connection: Connection) -> None:
    """However long the names are that callers give their models: as many as fit into a request are asked for."""
    many = {Counter(HERE._replace(model=f"{PARROTS}{number}"), "input"): number + 1 for number in range(1_100)}
    assert sum(len(each.subject) for each in many) > MESSAGE_BYTES_MAX
    await counters.add(connection.requests, by_subject(many), "b1")
    assert await counters.read(connection.requests, "acme", [DAY]) == many


async def test_where_one_increment_is_refused_none_is_under_way_once_that_is_told(connection: Connection) -> None:
    requests = connection.requests
    left = 40

    def may() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    many = by_subject({Counter(HERE._replace(model=f"m{number}"), "input"): 1 for number in range(100)})
    with pytest.raises(BrokerUnavailable, match="others count now"):
        await counters.add(requests, many, "b1", may)
    counted = await counters.counted_in(requests, many, "b1")
    assert len(counted) == 40
    # Whoever goes on counts the rest, and nothing twice.
    await counters.add(requests, {name: 1 for name in many if name not in counted}, "b1")
    assert await counters.read(requests, "acme", [DAY]) == {counter_of(name): 1 for name in many}

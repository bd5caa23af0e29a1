"""Budgets over a real broker: what many processes reserve and use comes to no more than there is, and to nearly all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from contracts.records.usage import Counter, Place
from mesh.background import background
from mesh.broker.connection import Connection, connect
from mesh.broker.requests import Requests
from mesh.budgets.account import hold, rolled, spend, taken_of, used_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.correction import correct
from mesh.budgets.limits import NOTHING, Amount, end_of, limits_of
from mesh.budgets.reservations import RESERVED_FOR, BudgetExhausted, Reservations
from mesh.budgets.spending import BudgetSpending
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.errors import BrokerUnavailable
from mesh.ledger import counters
from mesh.ledger.counters import by_subject
from tests.support.broker import Broker
from tests.support.waiting import until

LIMIT = 100_000
MONTHLY = TenantConfiguration(tokens_per_month=LIMIT)
PROCESSES = 8


@pytest.fixture(autouse=True)
def within_a_month() -> None:
    """No window ends in the middle of a test."""
    if end_of("month", now()) - now() < timedelta(minutes=5):
        pytest.skip("the month is about to end")


@asynccontextmanager
async def reserving(requests: Requests, tenant: TenantConfiguration = MONTHLY) -> AsyncIterator[Reservations]:
    """One ingress's reservations."""
    accounts = Accounts(requests)
    reservations = Reservations(accounts, lambda _: tenant)
    async with background(accounts.run(), reservations.run()):
        yield reservations
    await reservations.close()


@asynccontextmanager
async def spending(
    requests: Requests, worker: str, tenant: TenantConfiguration = MONTHLY
) -> AsyncIterator[BudgetSpending]:
    """One worker's use."""
    accounts = Accounts(requests)
    one = BudgetSpending(accounts, worker, lambda _: tenant)
    async with background(accounts.run(), one.run()):
        yield one
    await one.close()


def free(_: int) -> int:
    return 0


async def stored(requests: Requests) -> tuple[int, int]:
    """Tokens used this month, and taken, by the account as everybody sees it."""
    account = await Accounts(requests).change("acme", lambda _: None)
    return used_in(account)["month"].tokens, taken_of(account)["month"].tokens


async def test_eight_processes_at_once_reserve_no_more_than_there_is_and_nearly_all(connection: Connection) -> None:
    """Each takes as much as it can get, in tasks of different sizes, until all are refused."""
    taken = [0] * PROCESSES

    async def flood(number: int, reservations: Reservations) -> None:
        chance = random.Random(number)
        while True:
            size = chance.randint(1, 300)
            try:
                reserved = await reservations.reserve("acme", Amount(size))
            except BudgetExhausted:
                return
            taken[number] += reserved.tokens

    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(reserving(connection.requests)) for _ in range(PROCESSES)]
        await asyncio.gather(*(flood(number % PROCESSES, processes[number % PROCESSES]) for number in range(64)))
        assert sum(taken) <= LIMIT, "not a token more, whatever they see of each other"
        # Each may hold a block that was too small for what came last.
        assert sum(taken) > LIMIT * 0.95
    used, reserved = await stored(connection.requests)
    assert (used, reserved) == (0, sum(taken)), "what nobody needed went back"


async def test_an_acceptance_makes_no_request_while_its_process_holds_a_block(connection: Connection) -> None:
    async with reserving(connection.requests) as reservations:
        await reservations.reserve("acme", Amount(10))
        sent = next(connection.requests._numbers)
        for _ in range(15):
            assert await reservations.reserve("acme", Amount(10)) == Amount(10)
        assert next(connection.requests._numbers) == sent + 1


async def test_who_has_no_budget_and_who_waits_for_it_reserve_nothing(connection: Connection) -> None:
    sent = next(connection.requests._numbers)
    for tenant in (TenantConfiguration(), replace_wait(MONTHLY)):
        async with reserving(connection.requests, tenant) as reservations:
            assert await reservations.reserve("acme", Amount(10 * LIMIT)) == NOTHING
    assert next(connection.requests._numbers) == sent + 1


def replace_wait(tenant: TenantConfiguration) -> TenantConfiguration:
    return TenantConfiguration(tokens_per_month=tenant.tokens_per_month, on_exhausted="wait")


async def test_a_task_larger_than_its_budget_gets_all_of_one_that_is_untouched(connection: Connection) -> None:
    async with reserving(connection.requests) as reservations:
        assert await reservations.reserve("acme", Amount(5 * LIMIT)) == Amount(LIMIT)
        with pytest.raises(BudgetExhausted) as refused:
            await reservations.reserve("acme", Amount(1))
        assert timedelta(seconds=20) < refused.value.frees_at - now() <= RESERVED_FOR, "it is reserved, and not used"
        reservations.give_back("acme", Amount(LIMIT))
        assert await reservations.reserve("acme", Amount(1)) == Amount(1)


async def test_a_refusal_makes_no_request_once_the_account_was_seen(connection: Connection) -> None:
    accounts = Accounts(connection.requests)
    await accounts.change("acme", lambda account: spend(account, now(), Amount(LIMIT)))
    async with reserving(connection.requests) as reservations:
        with pytest.raises(BudgetExhausted) as refused:
            await reservations.reserve("acme", Amount(1))
        assert refused.value.frees_at == end_of("month", now())
        sent = next(connection.requests._numbers)
        for _ in range(10):
            with pytest.raises(BudgetExhausted):
                await reservations.reserve("acme", Amount(1))
        assert next(connection.requests._numbers) <= sent + 4, "its account is read again now and then, and no more"
        assert list(reservations.left("acme").values()) == [0]


async def test_what_one_worker_uses_another_one_sees_while_it_runs(connection: Connection) -> None:
    requests = connection.requests
    async with spending(requests, "a") as first, spending(requests, "b") as second:
        one, other = (each.begin("acme", Amount(100), free) for each in (first, second))
        assert one is not None
        assert other is not None
        assert not other.put_out("x" * 400)
        one.reads(Amount(LIMIT))

        async def cut() -> bool:
            return other.put_out("x")

        await until(cut)
        assert (await first.blocked("acme")) is not None
        one.ended(Amount(LIMIT))
        other.ended(Amount(150))

    assert await stored(requests) == (LIMIT + 150, LIMIT + 150)


async def test_a_turn_takes_the_place_of_what_was_reserved_for_its_task(connection: Connection) -> None:
    requests = connection.requests
    async with reserving(requests) as reservations:
        accepted_at = now()
        await reservations.reserve("acme", Amount(1_000))
    assert await stored(requests) == (0, 1_000)
    async with spending(requests, "a") as worker:
        meter = worker.begin("acme", Amount(1_000), free, accepted_at)
        assert meter is not None

        async def is_running() -> bool:
            account = await Accounts(requests).change("acme", lambda _: None)
            return [each.expected_tokens for each in account.running] == [1_000] and account.held == []

        await until(is_running)
        meter.ended(Amount(1_200))
    assert await stored(requests) == (1_200, 1_200)


async def test_a_write_that_was_stored_and_not_answered_counts_once(
    connection: Connection, broker: Broker, settings: Settings
) -> None:
    async with connect(replace(settings), "test") as own:
        accounts = Accounts(own.requests)
        worker = BudgetSpending(accounts, "a", lambda _: MONTHLY)
        meter = worker.begin("acme", Amount(10), free)
        assert meter is not None
        meter.ended(Amount(700))
        publish = own.requests.publish

        async def unanswered(*arguments: object, **named: object) -> object:
            await publish(*arguments, **named)  # type: ignore[arg-type]  # as it was called
            raise BrokerUnavailable("no answer in time")

        own.requests.publish = unanswered  # type: ignore[assignment,method-assign]  # the answer is lost, on its way
        await worker.close()
        own.requests.publish = publish  # type: ignore[method-assign]  # back
        await worker.close()
    assert await stored(connection.requests) == (700, 700)


async def test_an_old_reservation_does_not_keep_a_budget_short(connection: Connection) -> None:
    """Of a task that was cancelled in its queue, say: nobody releases that."""
    long_ago = now() - timedelta(hours=2)
    accounts = Accounts(connection.requests)
    await accounts.change("acme", lambda account: hold(account, long_ago, Amount(LIMIT)))
    async with reserving(connection.requests) as reservations:
        assert await reservations.reserve("acme", Amount(LIMIT)) == Amount(LIMIT)


async def test_an_account_that_can_not_be_read_counts_as_empty(connection: Connection) -> None:
    await connection.requests.publish("$KV.budgets.acme", b"{")
    account = await Accounts(connection.requests).change("acme", lambda account: spend(account, now(), Amount(5)))
    assert used_in(rolled(account, now()))["month"] == Amount(5)
    assert account.time > datetime(2026, 1, 1, tzinfo=UTC)


async def test_what_the_counters_tell_raises_an_account_and_never_lowers_it(connection: Connection) -> None:
    """A worker that was killed before it wrote down what it used, and a budget that is set in the middle of a day."""
    requests, accounts, at = connection.requests, Accounts(connection.requests), now()
    limits = limits_of(MONTHLY)
    place = Place("acme", f"{at:%Y-%m}", "scripted", "default", "default")
    used = by_subject({Counter(place, "input"): 300, Counter(place, "output"): 40})
    await counters.add(requests, used, "a")
    await accounts.change("acme", lambda account: spend(account, at, Amount(100)))
    await correct(requests, accounts, "acme", limits)
    assert await stored(requests) == (340, 340)
    await accounts.change("acme", lambda account: spend(account, now(), Amount(1_000)))
    await correct(requests, accounts, "acme", limits)
    assert await stored(requests) == (1_340, 1_340), "they come later"

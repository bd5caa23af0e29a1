"""Budgets over a real broker: what many processes reserve and use comes to no more than there is, and to nearly all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from contracts.records.usage import Counter, Place
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.requests import Requests
from mesh.budgets.account import empty, hold, rolled, spend, taken_of, used_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.correction import correct
from mesh.budgets.limits import NOTHING, Amount, end_of, limits_of
from mesh.budgets.reservations import SPARE_TASKS, BudgetExhausted, Reservations
from mesh.budgets.spending import BudgetSpending, Release, free
from mesh.clock import lease_clock, now
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


async def test_who_submits_now_and_then_need_not_wait_for_the_broker_either(connection: Connection) -> None:
    async with reserving(connection.requests) as reservations:
        await reservations.reserve("acme", Amount(10))

        async def is_spare() -> bool:
            return (await stored(connection.requests))[1] == 10 * (1 + SPARE_TASKS)

        await until(is_spare)
        sent = next(connection.requests._numbers)
        await reservations.reserve("acme", Amount(10))
        assert next(connection.requests._numbers) == sent + 1
        # Of a budget that is scarce nothing lies here unused.
        await Accounts(connection.requests).change("acme", lambda account: spend(account, now(), Amount(LIMIT // 2)))
        await reservations.reserve("acme", Amount(10))

        async def is_back() -> bool:
            reservations.quotas("acme")  # The account is read again as long as somebody asks for it.
            return await stored(connection.requests) == (LIMIT // 2, LIMIT // 2 + 30)

        await until(is_back)


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
        assert (refused.value.is_reserved, refused.value.reserved) == (True, LIMIT), "and not used"
        reservations.give_back("acme", Amount(LIMIT))
        assert await reservations.reserve("acme", Amount(1)) == Amount(1)


async def test_a_refusal_makes_no_request_once_the_account_was_seen(connection: Connection) -> None:
    accounts = Accounts(connection.requests)
    await accounts.change("acme", lambda account: spend(account, now(), Amount(LIMIT)))
    async with reserving(connection.requests) as reservations:
        with pytest.raises(BudgetExhausted) as refused:
            await reservations.reserve("acme", Amount(1))
        assert (refused.value.is_reserved, refused.value.limit.window) == (False, "month")
        sent = next(connection.requests._numbers)
        for _ in range(10):
            with pytest.raises(BudgetExhausted):
                await reservations.reserve("acme", Amount(1))
        assert next(connection.requests._numbers) <= sent + 4, "its account is read again now and then, and no more"
        assert [quota.left for quota in reservations.quotas("acme")] == [0]


@pytest.mark.parametrize(
    ("budget", "used", "is_refused"),
    [
        (MONTHLY, Amount(LIMIT), True),
        (MONTHLY, Amount(LIMIT - 1), False),
        # What has no price costs nothing that is known.
        (TenantConfiguration(cost_per_month=1.0), Amount(1, 1_000_000), False),
        # Who comes back in a minute has to be promised as much as his task is thought to take.
        (TenantConfiguration(tokens_per_minute=LIMIT), Amount(LIMIT), False),
        (TenantConfiguration(tokens_per_month=LIMIT, on_exhausted="wait"), Amount(LIMIT), False),
    ],
)
async def test_where_nothing_is_left_for_any_task_none_need_be_estimated(
    connection: Connection, budget: TenantConfiguration, used: Amount, is_refused: bool
) -> None:
    accounts = Accounts(connection.requests)
    reservations = Reservations(accounts, lambda _: budget)
    reservations.check("acme")  # Nothing is known of it yet.
    await accounts.change("acme", lambda account: spend(account, now(), used))
    if is_refused:
        with pytest.raises(BudgetExhausted):
            reservations.check("acme")
    else:
        reservations.check("acme")


async def test_what_a_process_has_in_hand_is_given_to_tasks_even_then(connection: Connection) -> None:
    accounts = Accounts(connection.requests)
    reservations = Reservations(accounts, lambda _: MONTHLY)
    await reservations.reserve("acme", Amount(100))
    await accounts.change("acme", lambda account: spend(account, now(), Amount(LIMIT)))
    reservations.check("acme")
    assert await reservations.reserve("acme", Amount(100)) == Amount(100)


async def test_what_one_worker_uses_another_one_sees_while_it_runs(connection: Connection) -> None:
    requests = connection.requests
    async with spending(requests, "a") as first, spending(requests, "b") as second:
        one, other = (each.begin("acme", Amount(100)) for each in (first, second))
        assert one is not None
        assert other is not None
        assert not other.put_out("x" * 400)
        one.asks(Amount(LIMIT), free)

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
        meter = worker.begin("acme", Amount(1_000), Release(accepted_at, Amount(1_000)))
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
        meter = worker.begin("acme", Amount(10))
        assert meter is not None
        meter.ended(Amount(700))
        send, is_lost = own.requests._send, False

        async def unanswered(subject: str, *arguments: object) -> object:
            nonlocal is_lost
            if is_lost:
                raise BrokerUnavailable("no answer in time")
            answer = await send(subject, *arguments)  # type: ignore[arg-type]  # as it was called
            is_lost = subject.startswith("$KV.")
            if is_lost:
                raise BrokerUnavailable("no answer in time")
            return answer

        # The first write is stored, and its answer is lost; then the broker is away for a while.
        own.requests._send = unanswered  # type: ignore[assignment,method-assign]  # on its way
        for _ in range(3):
            await worker.close()
        own.requests._send = send  # type: ignore[method-assign]  # back
        await worker.close()
    assert await stored(connection.requests) == (700, 700)


async def test_what_a_turn_puts_out_counts_in_the_minute_of_then(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that goes on for minutes is cut where it uses too much in one of them, and not where all of them do."""
    later = timedelta()
    for module in ("spending", "accounts"):
        monkeypatch.setattr(f"mesh.budgets.{module}.now", lambda: now() + later)
    monkeypatch.setattr("mesh.budgets.accounts.lease_clock", lambda: lease_clock() + later.total_seconds())
    minutely = TenantConfiguration(tokens_per_minute=1_000)
    async with spending(connection.requests, "a", minutely) as worker:
        meter = worker.begin("acme", Amount(100))
        assert meter is not None
        for minute in range(3):
            later = timedelta(minutes=minute)
            assert not meter.put_out("x" * 4 * 600), minute

            async def is_written(tokens: int = 600 * (minute + 1)) -> bool:
                account = await Accounts(connection.requests).change("acme", lambda _: None)
                return used_in(account)["month"].tokens == tokens

            await until(is_written)
        assert meter.put_out("x" * 4 * 1_000)
        meter.ended(Amount(2_500))
    assert (await stored(connection.requests))[0] == 2_500, "its provider has counted less than was seen"


async def test_what_a_process_was_seen_to_use_stays_counted_after_its_death(connection: Connection) -> None:
    requests = connection.requests
    accounts = Accounts(requests)
    dead = BudgetSpending(accounts, "dead", lambda _: MONTHLY)
    meter = dead.begin("acme", Amount(500))
    assert meter is not None
    meter.put_out("x" * 4 * 300)
    await dead.close()
    assert await stored(requests) == (300, 500)
    long_after = rolled(await accounts.change("acme", lambda _: None), now() + timedelta(minutes=5))
    assert used_in(long_after)["month"].tokens == taken_of(long_after)["month"].tokens == 300


async def test_use_beyond_a_limit_is_what_turns_put_out_until_all_have_seen_it(connection: Connection) -> None:
    """Of eight workers, by rounds: a round is what turns put out between two writes and readings of all."""
    turns, tokens, put_out = 4, 900, 0
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(spending(connection.requests, f"w{at}")) for at in range(PROCESSES)]
        running = {worker: [worker.begin("acme", Amount(100)) for _ in range(turns)] for worker in workers}
        while any(running.values()):
            for meters in running.values():
                for meter in list(meters):
                    assert meter is not None
                    put_out += 1
                    if meter.put_out("word"):
                        meters.remove(meter)
                        meter.ended()
                    else:
                        put_out += tokens
                        meter.put_out("word" * tokens)
            await asyncio.gather(*(until(partial(_has_seen, worker, put_out)) for worker in workers))
        # The round in which it is used up, and a word of each turn, by which it is told.
        assert LIMIT <= put_out < LIMIT + PROCESSES * turns * (tokens + 2)
    assert (await stored(connection.requests))[0] == put_out, "and all of it counts"


async def _has_seen(worker: BudgetSpending, tokens: int) -> bool:
    return used_in(worker._accounts.known("acme"))["month"].tokens == tokens


async def test_a_block_that_was_taken_by_other_limits_accepts_nobody(connection: Connection) -> None:
    accounts = Accounts(connection.requests)
    limits = [MONTHLY]
    reservations = Reservations(accounts, lambda _: limits[0])
    await reservations.reserve("acme", Amount(100))
    assert [quota.left for quota in reservations.quotas("acme")] == [LIMIT - 100]
    limits[0] = TenantConfiguration(tokens_per_month=150)
    with pytest.raises(BudgetExhausted):
        await reservations.reserve("acme", Amount(100))
    await reservations.reserve("acme", Amount(50))
    await reservations.close()
    assert await stored(connection.requests) == (0, 150)


async def test_what_is_given_back_late_goes_back(connection: Connection) -> None:
    """The process has no block any more: whoever was not accepted has waited for long."""
    reservations = Reservations(Accounts(connection.requests), lambda _: MONTHLY)
    reserved = await reservations.reserve("acme", Amount(100))
    await reservations.close()
    reservations._blocks.clear()
    reservations.give_back("acme", reserved)
    await reservations.close()
    assert await stored(connection.requests) == (0, 0)


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


async def test_an_account_that_a_replica_does_not_have_yet_is_not_taken_to_be_empty(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = Accounts(connection.requests)
    await accounts.change("acme", lambda account: spend(account, now(), Amount(LIMIT)))

    async def nothing(*_: object) -> None:
        return None

    async def nothing_of_many(*_: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(key_value, "get", nothing)
    monkeypatch.setattr(key_value, "get_many", nothing_of_many)
    accounts.known("acme")
    await accounts._refresh()
    assert used_in(accounts.known("acme"))["month"].tokens == LIMIT
    assert used_in((await accounts._read("acme")).account or empty("acme", now()))["month"].tokens == LIMIT


async def test_an_account_that_is_lost_begins_anew_and_the_counters_raise_it(connection: Connection) -> None:
    """Purged, or put back from a backup that is too old: the day and the month are what was counted."""
    requests, accounts, at = connection.requests, Accounts(connection.requests), now()
    place = Place("acme", f"{at:%Y-%m}", "scripted", "default", "default")
    used = counters.by_subject({Counter(place, "input"): 300, Counter(place, "output"): 40})
    await counters.add(requests, used, "a")
    await accounts.change("acme", lambda account: spend(account, at, Amount(340)))
    async with reserving(requests) as reservations:
        await reservations.reserve("acme", Amount(100))
        assert used_in(accounts.known("acme"))["month"].tokens == 340
        await requests.api("STREAM.PURGE.KV_budgets")
        await accounts._refresh()
        assert used_in(accounts.known("acme"))["month"].tokens == 0
        await correct(requests, accounts, "acme", limits_of(MONTHLY))
        assert (await stored(requests))[0] == 340
        with pytest.raises(BudgetExhausted):
            await reservations.reserve("acme", Amount(LIMIT))


async def test_an_account_of_another_version_is_read_as_far_as_it_is_known(connection: Connection) -> None:
    at = now()
    month = f"{at:%Y-%m}-01T00:00:00Z"
    other = f'{{"tenant":"acme","time":"{month}","month":{{"since":"{month}","tokens":7,"x":1}},"year":{{}}}}'
    await connection.requests.publish("$KV.budgets.acme", other.encode())
    assert (await stored(connection.requests))[0] == 7

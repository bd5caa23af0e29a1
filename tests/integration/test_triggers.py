"""Triggers at a real broker: one task for each signal and rule, paces, rubbish, schedules, and adding rules."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.journal.events import TaskQueued, decode_event
from contracts.messages.work import DeadLetter, TurnWork
from contracts.streams import FIRINGS_MAX, TIMERS
from contracts.triggers import rules
from contracts.triggers.rules import TriggerRule
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page
from mesh.broker.provisioning import apply, declared
from mesh.budgets.account import taken_of
from mesh.budgets.accounts import Accounts
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.rules import trigger_bucket as bucket
from mesh.rules.broker_schedules import read_schedules
from steward.control_loop import ControlLoop
from steward.schedule_check import Schedules
from steward.trigger_firing import Triggers
from tests.support.limits import narrow
from tests.support.waiting import until

pytestmark = pytest.mark.integration


def rule(name: str = "low", **fields: Any) -> TriggerRule:
    """A rule of the tenant acme."""
    given = {"tenant": "acme", "name": name, "on": {"signal": "stock.*"}, "task": {"input": "Buy {{payload.sku}}"}}
    return msgspec.convert(given | fields, TriggerRule)


async def send(connection: Connection, payload: bytes, name: str = "stock.zero", **more: str) -> int:
    """A signal; its sequence."""
    return (await connection.requests.publish(f"signals.acme.{name}", payload, more or None)).seq


@asynccontextmanager
async def stewards(settings: Settings, count: int = 1) -> AsyncIterator[None]:
    """So many of what a steward does of this."""
    async with AsyncExitStack() as stack:
        jobs = []
        for number in range(count):
            own = await stack.enter_async_context(connect(settings, "steward"))
            jobs.append(Triggers(own, settings, f"steward-{number}").run())
            jobs.append(Schedules(own.requests).run())
        await stack.enter_async_context(background(*jobs))
        yield


async def started(connection: Connection) -> list[TurnWork]:
    """The tasks that wait in TASKS: nobody runs them here."""
    page = await read_page(connection.requests, "TASKS", ">", 0, 256)
    return [decode(message.payload, TurnWork) for message in page.messages]


async def letters(connection: Connection) -> list[DeadLetter]:
    """Every dead letter."""
    page = await read_page(connection.requests, "DEAD_LETTERS", ">", 0)
    return [decode(message.payload, DeadLetter) for message in page.messages]


async def until_settled(connection: Connection, stream: str = "SIGNALS", consumer: str = "steward") -> None:
    """Wait until nothing is left for a consumer."""

    async def settled() -> bool:
        info = await connection.requests.api(f"CONSUMER.INFO.{stream}.{consumer}")
        return int(info["num_pending"]) == 0 and int(info["num_ack_pending"]) == 0

    await until(settled)


async def test_what_a_triggers_task_may_take_is_set_aside_once_however_often_its_signal_comes(
    connection: Connection, settings: Settings
) -> None:
    """With room or without: nobody stands behind a signal who could be refused."""
    tenants = b"[tenants.acme]\ntokens_per_month = 100\n[tenants.other]\ntokens_per_month = 1\n"
    budgeted = replace(settings, configuration=parse_configuration(tenants))
    await bucket.add(connection.requests, rule(task={"input": "Buy", "max_output_tokens": 60}), replace=False)
    for _ in range(3):
        await send(connection, b"{}")
    async with stewards(budgeted, 2):
        await until_settled(connection)
    works = await started(connection)
    assert len(works) == 3
    assert {work.reserved.tokens for work in works if work.reserved is not None} == {65}

    async def is_set_aside() -> bool:
        # Two stewards may both have begun with a signal: what the second has set aside goes back.
        account = await Accounts(connection.requests).change("acme", lambda _: None)
        return taken_of(account)["month"].tokens == 3 * 65

    await until(is_set_aside)


async def test_each_signal_starts_one_task_for_each_rule_that_takes_it(
    connection: Connection, settings: Settings
) -> None:
    before = await send(connection, b'{"sku": "too early", "stock": 0}')
    low = await bucket.add(connection.requests, rule(when=[{"field": "/stock", "op": "eq", "value": 0}]), replace=False)
    assert low.after == before
    await bucket.add(connection.requests, rule("all", task={"input": "Note {{payload}}"}), replace=False)
    await bucket.add(connection.requests, rule(tenant="other"), replace=False)
    sequence = await send(connection, b'{"sku": "a", "stock": 0}', traceparent=TRACEPARENT)
    await send(connection, b'{"sku": "b", "stock": 1}')
    async with stewards(settings, 2):
        await until_settled(connection)
        tasks = {(work.tenant, work.request.input): work for work in await started(connection) if work.request}
    assert set(tasks) == {
        ("acme", "Buy a"),
        ("acme", 'Note {"sku":"a","stock":0}'),
        ("acme", 'Note {"sku":"b","stock":1}'),
    }
    work = tasks["acme", "Buy a"]
    assert work.task == rules.task_id(low, sequence)
    assert work.trigger is not None
    assert (work.trigger.rule, work.trigger.signal, work.trigger.chain) == ("low", sequence, ["low"])
    page = await read_page(connection.requests, "EVENTS", subjects.journal_log("acme", work.task), 0)
    queued = decode_event(page.messages[0].payload)
    assert isinstance(queued, TaskQueued)
    assert queued.trigger == work.trigger
    assert TRACEPARENT.split("-")[1] in page.messages[0].headers[headers.TRACEPARENT]
    info = await connection.requests.api("STREAM.INFO.SIGNALS")
    assert info["state"]["messages"] == 3, "signals are kept"


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_signal_that_comes_again_makes_no_twin_even_when_its_message_id_is_forgotten(
    connection: Connection, settings: Settings
) -> None:
    await bucket.add(connection.requests, rule(per_minute_max=1), replace=False)
    await send(connection, b'{"sku": "a"}')
    async with stewards(settings):
        await until_settled(connection)
    assert len(await started(connection)) == 1
    # The broker forgets its message ids with its stream, and its deliveries with their consumer.
    for name in ("STREAM.DELETE.TASKS", "CONSUMER.DELETE.SIGNALS.steward"):
        await connection.requests.api(name)
    await apply(connection.requests, declared(settings), update=False)
    async with stewards(settings, 2):
        await until_settled(connection)
    assert await started(connection) == []


async def test_signals_beyond_the_pace_wait_and_are_not_dropped(connection: Connection, settings: Settings) -> None:
    slow = await bucket.add(connection.requests, rule("slow", per_minute_max=2), replace=False)
    await bucket.add(connection.requests, rule("fast"), replace=False)
    for number in range(5):
        await send(connection, encode({"sku": str(number)}))
    pace_key = subjects.trigger_pace_key("acme", "slow")
    async with stewards(settings, 2):

        async def two_have_begun() -> bool:
            counts = Counter(work.trigger.rule for work in await started(connection) if work.trigger)
            return counts == {"slow": 2, "fast": 5}

        async def the_others_wait() -> bool:
            info = await connection.requests.api("CONSUMER.INFO.SIGNALS.steward")
            return (info["num_ack_pending"], info["num_pending"]) == (3, 0)

        await until(two_have_begun)
        await until(the_others_wait)
    entry = await key_value.get(connection.requests, bucket.BUCKET, pace_key)
    assert entry is not None
    assert entry.value is not None
    pace = decode(entry.value, rules.TriggerPace)
    assert len(pace.started) == 2
    # As if that minute were over: a new steward goes on with what waits.
    past = rules.TriggerPace([(sequence, time - 60) for sequence, time in pace.started])
    await key_value.put(connection.requests, bucket.BUCKET, pace_key, encode(past))
    await _redeliver(connection, settings)
    async with stewards(settings):

        async def four_have_begun() -> bool:
            return sum(work.trigger.rule == slow.name for work in await started(connection) if work.trigger) == 4

        await until(four_have_begun)
    assert Counter(work.trigger.rule for work in await started(connection) if work.trigger)["fast"] == 5


async def _redeliver(connection: Connection, settings: Settings) -> None:
    """Have all signals delivered again, at once."""
    await connection.requests.api("CONSUMER.DELETE.SIGNALS.steward")
    await apply(connection.requests, declared(settings), update=False)


async def test_a_full_lane_holds_a_signal_and_not_the_others(connection: Connection, settings: Settings) -> None:
    await narrow(connection.requests, 1, "acme")
    await narrow(connection.requests, 1, "acme", priority="high")
    await bucket.add(connection.requests, rule(), replace=False)
    await bucket.add(
        connection.requests,
        rule("urgent", on={"signal": "alarm"}, task={"input": "Look", "priority": "high"}),
        replace=False,
    )
    for sku in (b'{"sku": "a"}', b'{"sku": "b"}'):
        await send(connection, sku)
    await send(connection, b"{}", "alarm")
    async with stewards(settings):

        async def both_lanes_are_full() -> bool:
            return len(await started(connection)) == 2

        await until(both_lanes_are_full)
        await connection.requests.api("STREAM.PURGE.TASKS", {"filter": "tasks.default.normal.acme"})
        await until_settled(connection)
    waited = [work.request.input for work in await started(connection) if work.request and work.priority == "normal"]
    assert waited in (["Buy a"], ["Buy b"])


async def test_rubbish_is_kept_told_and_holds_nobody_up(connection: Connection, settings: Settings) -> None:
    await bucket.add(connection.requests, rule(), replace=False)
    await bucket.add(connection.requests, rule("nowhere", task={"input": "x", "pool": "nowhere"}), replace=False)
    rubbish = await send(connection, b"rubbish")
    await connection.requests.publish("signals.NOBODY.stock.zero", b"{}")
    await connection.requests.publish("signals.acme", b"{}")
    missing = await send(connection, b'{"name": "no sku"}')
    loop = await send(connection, b'{"sku": "a"}', **{headers.TRIGGER_CHAIN: "first,low"})
    await send(connection, b'{"sku": "fine"}')
    async with stewards(settings, 2):
        await until_settled(connection)
    assert [work.request.input for work in await started(connection) if work.request] == ["Buy fine"]
    told = {(letter.sequence, letter.errors[0].code): letter for letter in await letters(connection)}
    assert {
        (rubbish, "malformed-message"),
        (missing, "trigger-field-missing"),
        (loop, "trigger-loop"),
        (loop, "trigger-request-invalid"),
    } <= set(told)
    assert told[rubbish, "malformed-message"].message == "rubbish"
    assert told[missing, "trigger-field-missing"].tenant == "acme"
    assert Counter(code for _, code in told) == {
        "malformed-message": 3,
        "trigger-field-missing": 1,
        "trigger-loop": 1,
        "trigger-request-invalid": 3,
    }
    assert (await connection.requests.api("STREAM.INFO.SIGNALS"))["state"]["messages"] == 6


async def test_a_schedule_fires_again_and_again_until_its_rule_is_removed(
    connection: Connection, settings: Settings
) -> None:
    ticking = rule("ticking", on={"schedule": "@every 1s"}, task={"input": "Tick at {{time}}"})
    await bucket.add(connection.requests, ticking, replace=False)
    control = ControlLoop(connection, settings, "steward", "TIMERS")
    async with stewards(settings, 2), background(control.run()):

        async def has_ticked() -> bool:
            return len(await started(connection)) >= 2

        await until(has_ticked)
        await bucket.remove(connection.requests, "acme", "ticking")
        await until_settled(connection, "TIMERS", "cron")
        await until_settled(connection, "TIMERS", "steward")
    tasks = await started(connection)
    assert len({work.task for work in tasks}) == len(tasks)
    assert len({work.request.input for work in tasks if work.request}) == len(tasks), "one for each second"
    state = (await connection.requests.api("STREAM.INFO.TIMERS"))["state"]
    assert state["messages"] == 0, "neither the schedule nor what it fired is left"
    assert await letters(connection) == []


async def test_of_two_firings_with_one_local_time_the_second_starts_a_task(
    connection: Connection, settings: Settings
) -> None:
    nightly = rule(
        "nightly", on={"schedule": "0 30 2 * * *", "time_zone": "Europe/Berlin"}, task={"input": "At {{time}}"}
    )
    await bucket.add(connection.requests, nightly, replace=False)
    subject = subjects.cron_fired("acme", "nightly")
    triggers = Triggers(connection, settings, "steward-1")
    # The clock goes from 03:00 back to 02:00 between them.
    for sequence, fired_at in enumerate(("2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"), 1):
        firing = SimpleNamespace(
            subject=subject, stored_at=datetime.fromisoformat(fired_at), sequence=sequence, headers={}, lease_held=False
        )
        await triggers.handle_firing(firing)  # type: ignore[arg-type]  # what it reads of a delivery
    [task] = await started(connection)
    assert task.trigger is not None
    assert task.trigger.signal == 2


async def test_a_schedule_is_made_that_of_its_rule_whoever_died_between_the_two(connection: Connection) -> None:
    daily = rule("daily", on={"schedule": "0 0 9 * * *", "time_zone": "Europe/Berlin"}, task={"input": "x"})
    await key_value.put(connection.requests, bucket.BUCKET, subjects.trigger_key("acme", "daily"), encode(daily))
    gone = rule("gone", on={"schedule": "@daily"}, task={"input": "x"})
    await bucket.add(connection.requests, gone, replace=False)
    await key_value.delete(connection.requests, bucket.BUCKET, subjects.trigger_key("acme", "gone"))
    unusable = rule("unusable", on={"schedule": "0 0 9 30 2 *"}, task={"input": "x"})
    await key_value.put(connection.requests, bucket.BUCKET, subjects.trigger_key("acme", "unusable"), encode(unusable))
    await asyncio.gather(*(Schedules(connection.requests).round() for _ in range(3)))
    [left] = await read_schedules(connection.requests)
    assert left.subject == "timers.at.cron.acme.daily"
    assert (left.headers[headers.SCHEDULE], left.headers[headers.SCHEDULE_TIME_ZONE]) == (
        "0 0 9 * * *",
        "Europe/Berlin",
    )


async def test_a_rule_is_added_once_replaced_by_name_and_removed(connection: Connection) -> None:
    requests = connection.requests
    first = await bucket.add(requests, rule(), replace=False)
    await send(connection, b"{}")
    with pytest.raises(bucket.RuleExists):
        await bucket.add(requests, rule(), replace=False)
    replaced = await bucket.add(requests, rule(per_minute_max=5), replace=True)
    assert (replaced.after, replaced.per_minute_max) == (first.after, 5), "no signal is passed over"
    book = bucket.RuleBook(requests)
    await book.refresh()
    assert book.of("acme") == [replaced]
    await bucket.remove(requests, "acme", "low")
    await book.refresh()
    assert book.rules == []
    with pytest.raises(bucket.RuleUnknown):
        await bucket.remove(requests, "acme", "low")
    again = await bucket.add(requests, rule(), replace=False)
    assert again.after == first.after + 1, "a new rule, which acts from now on"
    results = await asyncio.gather(
        *(bucket.add(requests, rule(per_minute_max=number), replace=True) for number in (1, 2, 3)),
        return_exceptions=True,
    )
    assert any(isinstance(result, TriggerRule) for result in results)
    assert all(isinstance(result, TriggerRule | bucket.RuleExists) for result in results)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"on": {"schedule": "0 0 9 30 2 *"}, "task": {"input": "x"}}, "invalid-request", "does not take it"),
        (
            {"on": {"schedule": "0 0 9 * * *", "time_zone": "Nowhere/X"}, "task": {"input": "x"}},
            "invalid-request",
            "time zone is invalid",
        ),
        ({"task": {"input": "x", "tools": ["send_signal"]}}, "trigger-cycle", "low may send >, and low takes stock"),
    ],
)
async def test_a_rule_that_the_mesh_can_not_take_is_refused_whole(
    connection: Connection, fields: dict[str, Any], code: str, reason: str
) -> None:
    with pytest.raises(InvalidPayload, match=reason) as refused:
        await bucket.add(connection.requests, rule(**fields), replace=False)
    assert refused.value.code == code
    book = bucket.RuleBook(connection.requests)
    await book.refresh()
    assert book.rules == []
    assert await read_schedules(connection.requests) == []


async def test_what_is_no_rule_in_the_bucket_is_passed_over(connection: Connection) -> None:
    good = await bucket.add(connection.requests, rule(), replace=False)
    for key, value in (("acme.rubbish", b"rubbish"), ("acme.other", encode(rule("misnamed"))), ("acme.low2", b"{}")):
        await key_value.put(connection.requests, bucket.BUCKET, key, value)
    book = bucket.RuleBook(connection.requests)
    await book.refresh()
    assert book.rules == [good]
    assert book.has_unreadable("acme")
    assert not book.has_unreadable("other")
    for key in ("acme.rubbish", "acme.other", "acme.low2"):
        await key_value.delete(connection.requests, bucket.BUCKET, key)
    await book.refresh()
    assert not book.has_unreadable("acme")


@pytest.mark.parametrize(("unreadable", "deliveries"), [(False, 1), (True, 3)])
async def test_a_signal_whose_rule_only_another_version_may_read_is_left_to_it_for_a_while(
    connection: Connection, settings: Settings, unreadable: bool, deliveries: int
) -> None:
    """Meanwhile the rules that this version reads have acted on it, once."""
    settings = replace(settings, max_deliver=3)
    await bucket.add(connection.requests, rule(), replace=False)
    if unreadable:
        later = encode(msgspec.to_builtins(rule("later")) | {"a_later_field": 1})
        await key_value.put(connection.requests, bucket.BUCKET, "acme.later", later)
    await send(connection, b'{"sku": "a"}')
    async with stewards(settings):
        await until_settled(connection)
        info = await connection.requests.api("CONSUMER.INFO.SIGNALS.steward")
    assert info["delivered"]["consumer_seq"] == deliveries
    assert len(await started(connection)) == 1


async def test_of_a_schedule_that_nobody_looks_after_only_so_many_firings_wait(connection: Connection) -> None:
    """They would crowd out the timers beside them, which no limit of their own may touch."""
    assert TIMERS.max_msgs_per_subject == FIRINGS_MAX
    few = msgspec.structs.replace(TIMERS, max_msgs_per_subject=2)
    await connection.requests.api("STREAM.UPDATE.TIMERS", few.as_config())
    await bucket.add(
        connection.requests, rule("often", on={"schedule": "@every 1s"}, task={"input": "x"}), replace=False
    )

    async def fired() -> int:
        info = await connection.requests.api("STREAM.INFO.TIMERS", {"subjects_filter": "timers.fired.>"})
        return int((info["state"].get("subjects") or {}).get("timers.fired.cron.acme.often", 0))

    async def last() -> int:
        return int((await connection.requests.api("STREAM.INFO.TIMERS"))["state"]["last_seq"])

    await until(lambda: _at_least(last, 5))
    assert await fired() == 2
    assert len(await read_schedules(connection.requests)) == 1


async def _at_least(number: Callable[[], Awaitable[int]], least: int) -> bool:
    return await number() >= least

"""The copy of the valves before a real broker: what it hears of, what it goes by, and what is put off meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from litestar import Litestar

from contracts import headers
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.identifiers import turn_message_id
from contracts.messages.work import TurnWork
from contracts.records.valves import TenantLimits, Valve
from contracts.streams import BACKLOG, TASKS, TASKS_BUCKET, VALVES_BUCKET
from contracts.valve_keys import limits_key, valve_key
from ingress import valve_routes
from ingress.valve_routes import ValveRoutes
from mesh.access.callers import identified, open_door
from mesh.admission import backlog
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import PAGE_EVENTS_MAX, count_of, last_from_leader
from mesh.broker.provisioning import apply, declared
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.mesh_toml import default_configuration
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantConfiguration, TenantsConfiguration
from mesh.journal.reading import milestones_of
from mesh.journal.reconciliation import OpenTask, Reconciliation
from mesh.serving.http import EXCEPTION_HANDLERS
from mesh.steps.put_off import NEVER, AnyPutsOff
from mesh.steps.work_loop import WorkLoop
from mesh.valves import changes, watched
from mesh.valves.paused_tenants import PausedTenants
from mesh.valves.watched import Valves
from steward import valve_records
from steward.admission.mover import Mover
from steward.valve_records import ValveRecords
from tests.integration.test_work import LANES, Handler, answer
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.serving import served
from tests.support.tasks import publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)
CONFIGURED = TenantsConfiguration(tenants={"acme": TenantConfiguration(weight=2.0, running=8)})


def valve(kind: str = "pool", name: str = "default", **fields: object) -> Valve:
    """A valve that somebody has shut just now."""
    return Valve(kind=kind, name=name, by="test", since=now(), **fields)  # type: ignore[arg-type]  # a kind


@asynccontextmanager
async def watching(requests: Requests) -> AsyncIterator[Valves]:
    """A copy that is kept up to date."""
    valves = Valves(requests, lambda: CONFIGURED)
    await valves.open()
    async with background(valves.run()):
        yield valves


async def test_what_is_shut_and_opened_is_heard_of_by_all_and_by_who_comes_later(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    async with connect(settings, "other") as elsewhere, watching(elsewhere.requests) as valves:
        assert not valves.is_paused(pool="default", priority="low", tenant="acme", provider="scripted")
        for kind, name, named in (
            ("pool", "default", {"pool": "default"}),
            ("lane", "default.low", {"pool": "default", "priority": "low"}),
            ("tenant", "acme", {"tenant": "acme"}),
            ("provider", "scripted", {"provider": "scripted"}),
        ):
            await changes.shut(requests, valve(kind, name))
            await until(lambda named=named: valves.is_paused(**named))  # type: ignore[misc]  # mypy can't infer it
            later = Valves(requests)
            await later.open()
            assert later.is_paused(**named)
            assert not later.is_paused(pool="other", priority="low", tenant="globex", provider="other")
            assert not later.is_paused(pool="default", priority="high") or kind == "pool"
            await changes.open_again(requests, valve_key(kind, name), Valve)  # type: ignore[arg-type]  # a kind
            await until(lambda named=named: not valves.is_paused(**named))  # type: ignore[misc]  # the same


async def test_what_a_person_writes_by_hand_is_heard_of_too(connection: Connection) -> None:
    async with watching(connection.requests) as valves:
        await key_value.put_json(connection.requests, VALVES_BUCKET.name, "pool.default", valve())
        await until(lambda: valves.is_paused(pool="default"))
        await key_value.delete(connection.requests, VALVES_BUCKET.name, "pool.default")
        await until(lambda: not valves.is_paused(pool="default"))


async def test_an_announcement_that_is_lost_is_made_up_for(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "UNHEARD_SECONDS", 0.2)
    valves = Valves(connection.requests)  # It was never opened: it hears nothing.
    async with background(valves.run()):
        await changes.shut(connection.requests, valve())
        await until(lambda: valves.is_paused(pool="default"))


async def test_a_replica_that_is_behind_takes_nothing_back(connection: Connection) -> None:
    requests = connection.requests
    valves = Valves(requests)
    await valves.open()
    await changes.shut(requests, valve())
    await valves.refresh()
    behind = dict(valves._kept)
    await changes.open_again(requests, "pool.default", Valve)
    await valves.refresh()
    assert not valves.is_paused(pool="default")
    newer = dict(valves._kept)
    # What the next replica says is from before: as if it had been read first.
    valves._merge(dict(behind), began_at=asyncio.get_running_loop().time(), resumed=False)
    assert valves._kept == newer
    # After a reconnect it may be another broker's, whose sequences begin anew.
    valves._merge(dict(behind), began_at=asyncio.get_running_loop().time(), resumed=True)
    assert valves._kept == behind


async def test_what_this_version_can_not_read_pauses_nothing_and_stops_nothing(connection: Connection) -> None:
    requests = connection.requests
    for key, value in (
        ("pool.default", b"{"),
        ("pool.other", encode(valve("pool", "default"))),
        ("galaxy.far", b"{}"),
        ("tenant.acme", encode(valve("tenant", "acme")).replace(b'"by"', b'"of":1,"by"')),
    ):
        await key_value.put(requests, VALVES_BUCKET.name, key, value)
    async with watching(requests) as valves:
        assert [(each.kind, each.name) for each in valves.shut()] == [("tenant", "acme")]


async def test_a_pause_ends_at_its_time_also_while_the_broker_is_away(connection: Connection, broker: Broker) -> None:
    told: list[bool] = []
    async with watching(connection.requests) as valves:
        valves.on_changed(lambda: told.append(valves.is_paused(pool="default")))
        await changes.shut(connection.requests, valve(until=now() + HOUR))
        await until(lambda: told == [True])
        await changes.shut(connection.requests, valve(until=now() + timedelta(seconds=1)))
        await until(lambda: (each := valves.pause_of(pool="default")) is None or each.until < now() + HOUR / 2)  # type: ignore[operator]  # it has one
        await broker.stop()
        await until(lambda: not valves.is_paused(pool="default"))
        await until(lambda: told[-1] is False)


async def test_a_pause_keeps_its_beginning_and_of_two_that_are_set_at_once_both_count(connection: Connection) -> None:
    requests = connection.requests
    first = await changes.shut(requests, valve(reason="one"))
    again = await changes.shut(requests, valve(reason="two", until=now() + HOUR))
    assert (again.since, again.reason) == (first.since, "two")
    many = [changes.shut(requests, valve("tenant", "acme", reason=str(number))) for number in range(4)]
    assert {each.reason for each in await asyncio.gather(*many)} == {"0", "1", "2", "3"}
    await changes.open_again(requests, "tenant.acme", Valve)
    with pytest.raises(TaskmeshError) as refused:
        await changes.open_again(requests, "tenant.acme", Valve)
    assert refused.value.code == "not-found"


async def test_limits_lie_over_those_of_the_file_until_they_end(connection: Connection) -> None:
    requests = connection.requests
    async with watching(requests) as valves:
        assert valves.limits_of("acme") is CONFIGURED.of("acme")
        limits = TenantLimits(
            tenant="acme", limits={"running": 2, "odd": 1, "tier": 7}, by="test", since=now(), until=now() + HOUR
        )
        await changes.limit(requests, limits)
        await until(lambda: valves.limits_of("acme").running == 2)
        # What it does not know, or take, changes nothing; what is not named is as the file has it.
        assert valves.limits_of("acme") == TenantConfiguration(weight=2.0, running=2)
        assert valves.limits_of("globex") is CONFIGURED.of("globex")
        # A reload keeps them, and brings what they leave alone.
        reloaded = TenantsConfiguration(tenants={"acme": TenantConfiguration(weight=5.0, running=9)})
        valves._tenants = lambda: reloaded
        assert valves.limits_of("acme") == TenantConfiguration(weight=5.0, running=2)
        await changes.open_again(requests, limits_key("acme"), TenantLimits)
        await until(lambda: valves.limits_of("acme").running == 9)


async def test_limits_that_ended_while_nobody_was_there_hold_for_nobody(connection: Connection) -> None:
    requests, at = connection.requests, now()
    ended = TenantLimits(tenant="acme", limits={"running": 2}, by="test", since=at - 2 * HOUR, until=at - HOUR)
    await changes.limit(requests, ended)
    await changes.shut(requests, valve(until=at - HOUR))
    async with watching(requests) as valves:
        assert valves.limits_of("acme") is CONFIGURED.of("acme")
        assert (valves.limits(), valves.shut(), valves.any_shut) == ([], [], False)


async def test_a_pause_behind_more_that_has_ended_than_may_hold_is_read(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "VALVES_MAX", 2)
    requests, at = connection.requests, now()
    ended = [valve("tenant", f"t{number}", until=at - HOUR) for number in range(PAGE_EVENTS_MAX)]
    await asyncio.gather(*(changes.shut(requests, each) for each in ended))
    await changes.shut(requests, valve())
    async with watching(requests) as valves:
        assert [each.kind for each in valves.shut()] == ["pool"]


async def test_what_is_known_holds_while_the_bucket_is_gone_and_an_empty_one_pauses_nothing(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "UNAVAILABLE_SECONDS", 0.1)
    monkeypatch.setattr(watched, "UNHEARD_SECONDS", 0.1)
    requests = connection.requests
    async with watching(requests) as valves:
        await changes.shut(requests, valve())
        await until(lambda: valves.is_paused(pool="default"))
        await requests.api(f"STREAM.DELETE.{VALVES_BUCKET.stream_name}")
        await valves.refresh()
        assert valves.is_paused(pool="default")
        with pytest.raises(TaskmeshError):
            await changes.shut(requests, valve("pool", "other"))
        assert valves.is_paused(pool="default")
        await apply(requests, declared(settings), update=False)
        await until(lambda: not valves.is_paused(pool="default"))
        # Its revisions begin anew, and what is shut now holds all the same.
        await changes.shut(requests, valve(reason="again"))
        await until(lambda: valves.is_paused(pool="default"))


async def test_many_who_change_one_valve_at_once_all_get_through(connection: Connection) -> None:
    many = [changes.shut(connection.requests, valve("tenant", "acme", reason=str(number))) for number in range(24)]
    shut = await asyncio.gather(*many)
    assert {each.reason for each in shut} == {str(number) for number in range(24)}
    assert len({each.since for each in shut}) == 1, "it is paused since the first of them"


async def test_whoever_submits_is_told_what_is_paused_and_not_by_whom_also_of_a_pool_that_is_gone(
    connection: Connection,
) -> None:
    requests = connection.requests
    async with watching(requests) as valves:
        routes = ValveRoutes(requests, valves, default_configuration())
        assert routes.pause_of("gone", "low", "acme") is None
        await changes.shut(requests, valve("lane", "gone.low", reason="it goes"))
        await changes.shut(requests, valve("provider", "scripted"))
        await until(lambda: len(valves.shut()) == 2)
        told = routes.pause_of("gone", "low", "acme")
        assert told is not None
        assert (told.kind, told.name, told.reason) == ("lane", "gone.low", "it goes")
        assert b'"by"' not in encode(told)
        assert routes.pause_of("gone", "high", "acme") is None
        provider = routes.pause_of("default", "high", "acme")
        assert provider is not None
        assert provider.kind == "provider"


@pytest.mark.filterwarnings("ignore:.*deprecated inferred style")  # In the services' own processes nobody hears it.
async def test_at_the_bound_nothing_new_is_shut_or_limited_and_what_is_there_may_still_be_changed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valve_routes, "VALVES_MAX", 2)
    valves = Valves(connection.requests)
    routes: list[Any] = [*valve_routes.valve_routes(ValveRoutes(connection.requests, valves, default_configuration()))]
    app = Litestar(routes, exception_handlers=EXCEPTION_HANDLERS, logging_config=None, openapi_config=None)
    async with served(identified(app, open_door)) as (url, _), PatientClient(base_url=url) as client:

        async def put(path: str, **body: object) -> int:
            answer = await client.put(f"/v1/valves/{path}", json={"seconds": 600, **body})
            assert answer.status_code in (200, 409), answer.text
            return answer.status_code

        few: dict[str, object] = {"limits": {"running": 1}}
        assert [await put("tenant/acme"), await put("limits/acme", **few)] == [200, 200]
        assert [await put("tenant/other"), await put("limits/other", **few)] == [409, 409]
        assert [await put("tenant/acme"), await put("limits/acme", limits={"running": 2})] == [200, 200]
        assert (await client.delete("/v1/valves/tenant/acme")).status_code == 200
        assert await put("limits/other", **few) == 200


async def test_records_that_have_ended_are_taken_away_and_others_stay(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = connection.requests
    monkeypatch.setattr(valve_records, "KEPT", timedelta(0))
    await changes.shut(requests, valve("pool", "default"))
    await changes.shut(requests, valve("pool", "other", until=now() + HOUR))
    await changes.shut(requests, valve("tenant", "ended", until=now() - HOUR))
    await changes.shut(requests, valve("tenant", "opened"))
    await changes.open_again(requests, "tenant.opened", Valve)
    await key_value.put(requests, VALVES_BUCKET.name, "galaxy.far", b"{}")
    await ValveRecords(requests)._tidy()
    left = [
        key
        for key in ("pool.default", "pool.other", "tenant.ended", "tenant.opened", "galaxy.far")
        if await key_value.get_from_leader(requests, VALVES_BUCKET.name, key) is not None
    ]
    assert left == ["pool.default", "pool.other", "galaxy.far"]


# What is put off


@asynccontextmanager
async def working(connection: Connection, settings: Settings, valves: Valves) -> AsyncIterator[Handler]:
    """A worker that goes by these valves."""
    handler = Handler(answer)
    loop = WorkLoop(connection, settings, LANES, handler, "one", puts_off=AnyPutsOff(NEVER, PausedTenants(valves)))
    stopping = asyncio.Event()
    async with background(valves.run()):
        running = asyncio.create_task(loop.run(stopping))
        try:
            yield handler
        finally:
            stopping.set()
            await running


@asynccontextmanager
async def moving(connection: Connection, valves: Valves, steward: str = "one") -> AsyncIterator[None]:
    """A steward that brings back what may go on by these valves."""
    mover = Mover(connection, valves.limits_of, steward)
    mover.add_condition(lambda tenant, _pool, _priority: not valves.is_paused(tenant=tenant))
    valves.on_changed(mover.wake)
    async with background(mover.run()):
        yield


async def waits_in_backlog(requests: Requests) -> int:
    return await count_of(requests, BACKLOG.name, "backlog.>")


async def until_in_backlog(requests: Requests, count: int) -> None:
    async def are() -> bool:
        return await waits_in_backlog(requests) == count and await count_of(requests, TASKS.name, "tasks.>") == 0

    await until(are)


async def test_what_is_put_off_keeps_all_that_it_had_and_is_run_once_whoever_brings_it_back(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    valves = Valves(requests)
    await valves.open()
    await changes.shut(requests, valve("tenant", "acme"))
    await until_paused(valves)
    tasks = [turn_work(tenant="acme") for _ in range(40)]
    async with working(connection, settings, valves) as handler:
        for work in tasks:
            await publish_work(requests, work)
        await until_in_backlog(requests, len(tasks))
        stored = await last_from_leader(requests, BACKLOG.name, "backlog.default.normal.acme")
        assert stored is not None
        assert stored.headers[headers.MESSAGE_ID].rpartition("-")[0].endswith(".tasks")
        # Each of them has a record that lists show, though no ingress has written it.

        async def all_have_one() -> bool:
            return await count_of(requests, TASKS_BUCKET.stream_name, "$KV.tasks.acme.*") == len(tasks)

        await until(all_have_one)

        async def all_ended() -> bool:
            return await waits_in_backlog(requests) == 0 and await count_of(requests, TASKS.name, "tasks.>") == 0

        async with moving(connection, valves), moving(connection, valves, "two"):
            # Rounds while it is paused bring back what is another's, and nothing else.
            await put_into_backlog(requests, turn_work(tenant="globex"))
            await until_in_backlog(requests, len(tasks))
            await changes.open_again(requests, "tenant.acme", Valve)
            await until(all_ended)
        assert handler.running == 0
    journals = [await claims_of(requests, work.task) for work in tasks]
    assert journals == [1] * len(tasks)


async def until_paused(valves: Valves) -> None:
    await valves.refresh()
    assert valves.is_paused(tenant="acme")


async def claims_of(requests: Requests, task: str) -> int:
    """How often a task's step was claimed."""
    messages = await milestones_of(requests, "acme", task)
    return sum(b'"step.claimed"' in message.payload for message in messages)


async def put_into_backlog(requests: Requests, work: TurnWork, mark: str = "") -> None:
    place = {headers.MESSAGE_ID: f"{turn_message_id(work.task, 1, 0)}{mark}"}
    await backlog.put(requests, backlog.queue_of(work), encode(work), place)


async def test_a_worker_that_dies_between_storing_and_acking_leaves_two_messages_of_which_one_counts(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    valves = Valves(requests)
    await valves.open()
    work = turn_work(tenant="acme")
    ack = await publish_work(requests, work)
    await put_into_backlog(requests, work, f".tasks-{ack.seq}")
    async with working(connection, settings, valves) as handler, moving(connection, valves):
        await until_in_backlog(requests, 0)
        assert handler.running_max == 1
    assert await claims_of(requests, work.task) == 1


async def test_a_turn_that_finds_no_room_runs(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = connection.requests
    config = (await requests.api("STREAM.INFO.BACKLOG"))["config"]
    await requests.api("STREAM.UPDATE.BACKLOG", {**config, "max_msgs_per_subject": 1})
    valves = Valves(requests)
    await valves.open()
    await changes.shut(requests, valve("tenant", "acme"))
    await until_paused(valves)
    async with working(connection, settings, valves):
        for _ in range(3):
            await publish_work(requests, turn_work(tenant="acme"))
        await until_in_backlog(requests, 1)


async def test_a_task_whose_turn_is_put_off_is_not_taken_for_lost(connection: Connection, settings: Settings) -> None:
    requests = connection.requests
    valves = Valves(requests)
    await valves.open()
    await changes.shut(requests, valve("tenant", "acme"))
    await until_paused(valves)
    work = turn_work(tenant="acme")
    async with working(connection, settings, valves):
        await publish_work(requests, work)
        await until_in_backlog(requests, 1)
    reconciliation = Reconciliation(requests, quiet_seconds=0.0)
    task = OpenTask("acme", work.task, "queued")
    at = now() + HOUR
    assert await reconciliation.examine(task, at) is None
    await requests.purge(BACKLOG.name, "backlog.>")
    assert await reconciliation.examine(task, at) is not None

"""How pools stand, of one look at a mesh; and what `meshctl pools`, `top` and `why` make of it."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from contracts.access import Scope
from contracts.api.pools import PoolState
from contracts.records.providers import ProviderRecord
from contracts.records.status import QueueState, TaskRecord, TenantRate
from contracts.records.valves import Valve
from contracts.valve_keys import ValveKind
from ingress.pool_routes import sees_all
from mesh.access.callers import ANYBODY, Caller, Identity
from mesh.fleet.eta import pool_view
from mesh.fleet.findings import Fleet
from mesh.fleet.pool_states import pool_state, pools_of, provider_states, standing
from mesh.fleet.queues import Queue
from meshctl.commands.why import place_lines
from meshctl.display.pool_tables import frame, lane_states_table, pools_table, seconds_text
from tests.unit.small_fleet import AT, MEMBERS, WELL, lane, member

NORMAL = lane(
    "normal", depth=38, running=4, waiting_tasks=34, drain_per_second=7.1, tasks_per_second=6.9, task_seconds=0.6,
    wait_seconds_p50=4.0, wait_seconds_p95=5.0, wait_seconds_p99=12.0,
    tenants=[TenantRate(tenant="acme", tasks_per_second=3.0), TenantRate(tenant="globex", tasks_per_second=1.0)],
)  # fmt: skip
OPEN = ProviderRecord(provider="real", state="open", since=AT - timedelta(minutes=1), time=AT, retry_at=AT)


def fleet(**fields: Any) -> Fleet:
    """A busy one, of a worker of four places."""
    members = [*(each for each in MEMBERS if each.service != "inference_worker")]
    members += [member("inference_worker", concurrency=4)]
    return WELL._replace(**{"members": members, "statistics": [lane("high"), NORMAL, lane("low")], **fields})


def default_pool(seen: Fleet, *providers: str) -> PoolState:
    (pool,) = pools_of(seen, lambda _: providers)
    return pool


def text_of(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pool_is_told_with_its_lanes_places_and_tenants() -> None:
    pool = default_pool(fleet(), "real")
    assert (pool.depth, pool.running, pool.workers, pool.places, pool.free) == (38, 4, 1, 4, 0)
    high, normal, low = pool.lanes
    assert (normal.waiting_tasks, normal.tasks_per_second, normal.basis) == (34, 6.9, "drain")
    assert normal.eta_seconds == pytest.approx(35 / 6.9, rel=0.01)
    assert (high.basis, low.basis) == ("pool", "pool")
    assert [(each.tenant, each.share) for each in pool.tenants] == [("acme", 0.75), ("globex", 0.25)]
    assert pool.providers == provider_states(["real"], {})


def test_shares_are_of_the_tokens_of_all_tenants_also_of_those_that_are_not_named() -> None:
    """A thousand tenants with a task a second each: the two that are named have a thousandth of it each, or ten."""
    tenants = [
        TenantRate(tenant="acme", tasks_per_second=1.0, tokens_per_second=1_000.0),
        TenantRate(tenant="globex", tasks_per_second=1.0, tokens_per_second=100.0),
    ]
    many = msgspec.structs.replace(NORMAL, tenants=tenants, tokens_per_second=99_900.0)
    low = lane("low", tenants=[TenantRate(tenant="globex", tasks_per_second=2.0, tokens_per_second=100.0)],
               tokens_per_second=100.0)  # fmt: skip
    pool = default_pool(fleet(statistics=[many, low]))
    shares = [(each.tenant, each.share, each.tasks_per_second, each.tokens_per_second) for each in pool.tenants]
    assert shares == [("acme", 0.01, 1.0, 1_000.0), ("globex", 0.002, 3.0, 200.0)]


@pytest.mark.parametrize(
    ("fields", "basis"),
    [
        ({"members": [each for each in MEMBERS if each.service != "inference_worker"]}, "no-worker"),
        ({"queues": [Queue("default", "normal", 38, paused_seconds=60.0)]}, "paused"),
        ({"providers": [OPEN]}, "no-provider"),
    ],
)
def test_a_lane_that_stands_promises_no_time(fields: dict[str, Any], basis: str) -> None:
    pool = default_pool(fleet(**fields), "real")
    assert (pool.lanes[1].eta_seconds, pool.lanes[1].basis) == (None, basis)


def test_one_provider_that_is_called_is_enough() -> None:
    assert default_pool(fleet(providers=[OPEN]), "real", "other").lanes[1].basis == "drain"


def test_old_statistics_and_those_that_nobody_keeps_say_nothing() -> None:
    old = [msgspec.structs.replace(NORMAL, time=AT - timedelta(hours=1))]
    without = [each for each in fleet().members if each.service != "steward"]
    for seen in (fleet(statistics=old), fleet(members=without)):
        pool = default_pool(seen)
        assert (pool.depth, pool.lanes[1].depth, pool.lanes[1].eta_seconds) == (None, None, None)


def test_a_paused_lane_stands_alone() -> None:
    assert standing(fleet(queues=[Queue("default", "low", paused_seconds=1.0)]), "default") == {"low": "paused"}


@pytest.mark.parametrize(
    ("kind", "name", "lanes"),
    [
        ("pool", "default", ["high", "normal", "low"]),
        ("lane", "default.low", ["low"]),
        ("provider", "real", ["high", "normal", "low"]),
        ("pool", "other", []),
        ("tenant", "acme", []),
    ],
)
def test_what_people_have_paused_stands(kind: ValveKind, name: str, lanes: list[str]) -> None:
    shut = Valve(kind=kind, name=name, by="ops", since=AT)
    pool = default_pool(fleet(valves=[shut]), "real")
    assert [lane.priority for lane in pool.lanes if lane.basis == "paused"] == lanes
    assert all(lane.eta_seconds is None for lane in pool.lanes if lane.basis == "paused")


def test_who_may_see_one_tenant_alone_gets_that_one() -> None:
    view = pool_view("default", [NORMAL], None)
    place = lambda *_: QueueState(depth=None, eta_seconds=None)  # noqa: E731 - a place that nobody asks for
    assert [each.tenant for each in pool_state("default", view, place, None, [], "globex").tenants] == ["globex"]
    assert pool_state("default", view, place, None, [], "nobody").tenants == []


@pytest.mark.parametrize(
    ("scopes", "tenant", "any_tenant", "all_of_them"),
    [
        (("read", "operate"), None, False, True),
        (("read", "operate"), "acme", True, True),
        (("read", "operate"), "acme", False, False),
        (("read",), None, False, False),
        (("read",), "acme", True, False),
    ],
)
def test_other_tenants_are_for_operators_of_any_tenant(
    scopes: tuple[Scope, ...], tenant: str | None, any_tenant: bool, all_of_them: bool
) -> None:
    identity = Identity("key:k", tenant, frozenset(scopes), any_tenant=any_tenant)
    assert sees_all(Caller(identity, tenant or "default")) is all_of_them
    assert sees_all(Caller(ANYBODY, "default"))


# For people


def test_tables_say_what_waits_and_when_one_that_comes_now_begins() -> None:
    pools = pools_of(fleet(providers=[OPEN]), lambda _: ("real", "other"))
    assert "real open, other" in text_of(pools_table(pools))
    assert "acme 75%, globex 25%" in text_of(pools_table(pools))
    assert "5.07 s, by its drain" in text_of(lane_states_table(pools))


def test_a_frame_has_what_there_is_and_no_more() -> None:
    seen = fleet(providers=[OPEN])
    workers = [each.record for each in seen.alive if each.record is not None]
    shown = text_of(frame(pools_of(seen, lambda _: ("real",)), seen.providers, workers, AT))
    for head in ("38 waiting, 4 running, 4 places", "POOL", "LANE", "PROVIDER", "TENANT", "WORKER"):
        assert head in shown
    assert "default, low" not in shown, "a lane where nothing ever was"
    assert "LANE" not in text_of(frame([], [], [], AT))


def test_a_frame_on_a_screen_names_a_few_of_a_thousand_tenants_and_what_is_paused() -> None:
    tenants = [
        TenantRate(tenant=f"t{number}", tasks_per_second=1.0, tokens_per_second=float(number)) for number in range(32)
    ]
    pools = [default_pool(fleet(statistics=[msgspec.structs.replace(NORMAL, tenants=tenants)]))]
    valves = [Valve(kind="tenant", name=f"p{number}", by="ops", since=AT) for number in range(1_000)]
    shown = text_of(frame(pools, [], [], AT, valves=valves, tenants_max=10))
    assert "paused: tenant p0, tenant p1, tenant p2, tenant p3 and 996 more" in shown
    assert "22 more" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("t")] == [f"t{31 - n}" for n in range(10)]


def test_texts_of_others_may_not_move_the_cursor() -> None:
    pool = msgspec.structs.replace(default_pool(fleet()), pool="a\x1b[2Jb")
    assert "\x1b" not in text_of(pools_table([pool]))


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0.0, "0.00 s"), (9.994, "9.99 s"), (1234.5, "1,234 s")])
def test_seconds_have_the_digits_that_say_something(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def waits(queue: QueueState | None) -> TaskRecord:
    return TaskRecord(
        id="01m8exdmyhg2a5wq2rcz171zrq", tenant="acme", status="queued", pool="default", priority="normal",
        created_at=AT, updated_at=AT, sequence=1, queue=queue,
    )  # fmt: skip


def test_why_says_place_time_share_and_pace() -> None:
    queue = QueueState(depth=38, position=4, eta_seconds=0.58, basis="drain")
    pool = default_pool(fleet(), "real")
    paced = msgspec.structs.replace(pool, providers=provider_states(["real"], {}, {"real": 0.25}))
    assert place_lines(waits(queue), paced) == [
        "Its place in line: 4. By what is known now it begins in about 0.58 s (by its drain).",
        "Of the tokens used of late in pool default, 75% were tenant acme's.",
        "Lane default, normal begins 6.90 tasks a second.",
        "Provider real has 25% of its pace left.",
    ]


@pytest.mark.parametrize(
    ("queue", "line"),
    [
        (
            QueueState(depth=0, position=1, eta_seconds=0.0, basis="free"),
            "Its place in line: 1. By what is known now it begins at once (a place is free).",
        ),
        (
            QueueState(depth=None, position=None, eta_seconds=None, basis="no-worker"),
            "Its place is not known. By what is known now no time can be told (no worker).",
        ),
    ],
)
def test_why_says_what_it_does_not_know(queue: QueueState, line: str) -> None:
    assert place_lines(waits(queue), None) == [line]
    begun = QueueState(depth=3, position=None, eta_seconds=None, basis="begun")
    assert place_lines(waits(begun), None) == place_lines(waits(None), None) == []

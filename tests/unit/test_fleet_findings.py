"""What is found of a fleet: each thing that is not well, with its gravity and what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from contracts.records.providers import ProviderRecord
from contracts.records.status import HealthCheck
from contracts.records.valves import Valve
from mesh.configuration.settings import SERVICES
from mesh.fleet.findings import CHECKS, findings
from mesh.fleet.members import Member
from mesh.fleet.queues import FullLane, Queue
from tests.unit.small_fleet import AT, MEMBERS, WELL, lane, member

BREAKER = ProviderRecord(provider="main", state="open", since=AT - timedelta(minutes=2), time=AT)


def but(*others: Member, without: str = "") -> list[Member]:
    """The members that are well, but for a service, and these besides."""
    return [*(each for each in MEMBERS if each.service != without), *others]


def test_nothing_is_found_of_a_fleet_that_is_well() -> None:
    assert findings(WELL) == []


@pytest.mark.parametrize(
    ("change", "check", "grave", "detail", "remedy"),
    [
        ({"members": []}, "services", True, "none answers", "meshctl up"),
        ({"members": but(without="steward")}, "services", True, "none of steward answers", "python -m steward"),
        ({"members": but(without="inference_worker")}, "services", True, "inference_worker", "-m inference_worker"),
        ({"members": but(without="tool_runner")}, "services", False, "none of tool_runner", "python -m tool_runner"),
        ({"members": but(member("steward", answers=False), without="steward")}, "services", True,
         "steward-1@host does not answer: frozen, or gone", "kill -9"),
        ({"members": [each._replace(answers=False) for each in MEMBERS]}, "services", True, "do not answer", "start"),
        ({"members": but(member("inference_worker", draining=True), without="inference_worker")}, "services", True,
         "no worker of pool default answers", "inference_worker"),
        ({"pools": ("default", "large")}, "services", True, "no worker of pool large answers", "inference_worker"),
        ({"members": but(member("inference_worker", 2, answers=False))}, "answers", False, "worker-2@host", "90 s"),
        ({"members": but(member("steward", 2, version="0.1.0"))}, "versions", True, "0.1.0: steward-2@host", "older"),
        ({"members": but(member("steward", 2, build="b2"))}, "builds", True, "b2: steward-2@host", "deploy"),
        ({"members": but(member("steward", 2, configuration="c2"))}, "configurations", True, "c2: steward-2@host",
         "mesh.toml"),
        ({"members": but(member("steward", 2, clock_ahead_seconds=-3.0))}, "clocks", True, "3.0 s behind", "NTP"),
        ({"members": but(member("steward", 2, clock_ahead_seconds=9.5))}, "clocks", True, "9.5 s ahead of", "NTP"),
        ({"members": but(member("steward", 2, checks=[HealthCheck(name="loop", ok=False, detail="lanes fails")]))},
         "processes", True, "steward-2@host: lanes fails", "logs"),
        ({"members": but(member("steward", 2, checks=[HealthCheck(name="streams", ok=False, detail="TASKS differs")]))},
         "streams", True, "steward-2@host: TASKS differs", "streams apply"),
        ({"members": but(member("steward", 2, checks=[HealthCheck(name="variables", ok=False, detail="MESH_X")]))},
         "variables", True, "steward-2@host: MESH_X", "unset"),
        ({"statistics": []}, "statistics", True, "none of any lane", "steward"),
        ({"statistics": [lane("normal", age_seconds=36.0)]}, "statistics", True, "36 s old", "steward"),
        ({"queues": [Queue("default", "normal", waiting=3)], "members": but(without="inference_worker")}, "queues",
         True, "nobody who answers pulls from lane default, normal (3 messages)", "inference_worker"),
        ({"queues": [Queue("large", "low", running=1)]}, "queues", True, "lane large, low (1 message)", "worker"),
        ({"queues": [Queue("add", "", waiting=2)], "members": but(without="tool_runner")}, "queues", True, "tool add",
         "python -m tool_runner"),
        ({"queues": [Queue("search", "", waiting=2, has_consumer=False)]}, "queues", True, "tool search (2",
         "the runner that serves search"),
        ({"queues": [Queue("default", "normal", waiting=1, paused_seconds=60.0)]}, "lanes", True,
         "lane default, normal is paused for 60 s more", "nats consumer resume"),
        ({"valves": [Valve(kind="lane", name="default.low", by="key:1", since=AT, reason="a move")]}, "valves", False,
         "lane default.low is paused by key:1 since", "meshctl resume"),
        ({"valves": [Valve(kind="tenant", name="acme", by="key:1", since=AT)],
          "members": but(member("inference_worker", 2, version="0.1.0"))}, "valves", True,
         "inference_worker-2@host of an older version do not go by it", "end the upgrade"),
        ({"full": [FullLane("lane default, low of tenant acme", 5_000, 5_000)]}, "lanes", True,
         "of tenant acme is full: 5,000 of 5,000", "more workers"),
        ({"providers": [BREAKER]}, "providers", True, "breaker of main is open since 03:02:05 UTC", "providers`"),
        ({"providers": [msgspec.structs.replace(BREAKER, state="half_open")]}, "providers", True, "half-open", "key"),
        ({"members": but(member("tool_runner", 2, mcp_servers={"files": "HTTP 401", "web": None}))}, "mcp_servers",
         True, "files is away (HTTP 401)", "[mcp.<server>]"),
        ({"members": but(member("tool_runner", 2, mcp_servers={"files": "HTTP 401"}),
                         member("tool_runner", 3, mcp_servers={"files": None}))}, "mcp_servers", True,
         "files is away for 1 of 2 runners (HTTP 401)", "start what is away"),
    ],
)  # fmt: skip
def test_each_thing_is_found_with_what_to_do(
    change: dict[str, Any], check: str, grave: bool, detail: str, remedy: str
) -> None:
    [found] = [each for each in findings(WELL._replace(**change)) if each.check == check]
    assert found.check in CHECKS
    assert found.grave is grave
    assert detail in found.detail
    assert remedy in found.remedy


def test_anybody_may_read_how_much_is_paused_and_not_what_by_whom_and_why() -> None:
    shut = [Valve(kind="tenant", name=name, by="key:1", since=AT, reason="a loop") for name in ("acme", "globex")]
    shut.append(Valve(kind="pool", name="default", by="key:1", since=AT))
    [found] = findings(WELL._replace(valves=shut))
    assert "acme" in found.detail
    assert found.for_all == "paused: 1 pool, 2 tenants"


@pytest.mark.parametrize(
    "change",
    [
        {"members": but(member("steward", 2, build="b2", configuration="c2", draining=True))},
        {"members": but(*(member(service, 2, clock_ahead_seconds=None) for service in SERVICES))},
        {"members": but(member("my_runner", 2, tools=("search",))), "queues": [Queue("search", "", waiting=2)]},
        {"members": [each._replace(record=None) for each in MEMBERS]},
        {"queues": [Queue("search", "", waiting=2, pulls=1)]},
        {"queues": [Queue("search", "", running=1)]},
        {"queues": [Queue("add", "", waiting=2, running=5)]},
        {"queues": [Queue("idle", "low")]},
        {"providers": [msgspec.structs.replace(BREAKER, state="closed")]},
        {"statistics": [lane("normal", age_seconds=34.0)]},
        {"statistics": [], "members": but(member("steward", started_at=AT), without="steward")},
    ],
    ids=["a deploy that goes on", "no clock told", "a foreign runner", "no records", "a foreign pull", "in other hands",
         "busy", "an idle lane of nobody", "closed again", "a quiet lane", "a new steward"],
)  # fmt: skip
def test_what_may_be_well_is_not_found(change: dict[str, Any]) -> None:
    assert findings(WELL._replace(**change)) == []


def test_what_a_frozen_process_has_asked_for_is_no_sign_of_life() -> None:
    frozen = but(member("inference_worker", answers=False), without="inference_worker")
    fleet = WELL._replace(members=frozen, queues=[Queue("default", "normal", waiting=1, pulls=1)])
    assert {each.check for each in findings(fleet)} == {"services", "queues"}

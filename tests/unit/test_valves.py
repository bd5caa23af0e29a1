"""Names of valves, limits over those of the file, the gate of a lane, and the command lines: pure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contracts.errors import InvalidName, InvalidPayload
from contracts.records.status import ENDED, STATUSES
from contracts.valve_keys import LIMITS, VALVE_KINDS, ValveKey, limits_key, parse_valve_key, valve_key
from ingress.mass_cancel import OPEN, _parsed
from mesh.broker.gates import ALWAYS, UNLIMITED, AlwaysOpen, WaitingRoom
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.valves.gates import ValveGate, behind
from mesh.valves.limits import check_limits, with_limits
from meshctl.__main__ import build_parser
from meshctl.commands import mass_cancel
from meshctl.errors import MeshctlError

NAMES = {"pool": "default", "lane": "default.low", "tenant": "acme", "provider": "my_model"}


def test_each_kind_has_its_key_which_gives_its_name_back() -> None:
    assert NAMES.keys() == {*VALVE_KINDS}
    keys = {valve_key(kind, NAMES[kind]) for kind in VALVE_KINDS} | {limits_key("acme")}
    assert len(keys) == len(VALVE_KINDS) + 1
    assert {parse_valve_key(key) for key in keys} == {*map(ValveKey, NAMES, NAMES.values()), ValveKey(LIMITS, "acme")}


@pytest.mark.parametrize(
    "key",
    ["", "pool", "pool.", "pool.a.b", "pool.>", "lane.default", "lane.default.urgent", "lane.a.b.low", "tenant.No",
     "limits.*", "limits.", "stream.TASKS", "pool.de fault"],
)  # fmt: skip
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(InvalidName):
        parse_valve_key(key)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"runing": 1}, "runing"),
        ({"running": 0}, "limits.running"),
        ({"weight": None}, "limits.weight"),
        ({"tier": "urgent"}, "limits.tier"),
        ({"tokens_per_day": 1.5}, "limits.tokens_per_day"),
    ],
)
def test_limits_that_can_not_be_are_refused_by_their_key(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidPayload, match=said):
        check_limits(limits)


def test_limits_lie_over_what_is_configured_and_null_takes_one_away() -> None:
    configured = TenantConfiguration(weight=3.0, running=4, tokens_per_day=100)
    limits = {"running": 1, "tokens_per_day": None}
    check_limits(limits)
    assert with_limits(configured, limits) == TenantConfiguration(weight=3.0, running=1)
    # What a later version has written there: it changes nothing here.
    assert with_limits(configured, {"mood": "good", "tier": 7, "weight": "much"}) == configured
    assert with_limits(configured, {}) == configured


class Shut:
    """What a test pauses."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self) -> bool:
        return self.now


async def test_a_gate_is_shut_while_its_lane_is_paused_and_then_what_is_behind_it_counts() -> None:
    shut, inner = Shut(), AlwaysOpen()
    gate = ValveGate(inner, shut)
    told: list[int] = []
    gate.on_changed(lambda: told.append(gate.room()))
    permit = gate.acquire()
    assert permit is not None

    def seen() -> tuple[bool, int, bool, bool]:
        gate.update()
        # Of the permit that was given before: a step that has not begun does not begin.
        return permit.is_valid, gate.room(), gate.acquire() is not None, gate.opened.is_set()

    open_wide = (True, UNLIMITED, True, True)
    assert seen() == open_wide
    shut.now = True
    assert seen() == (False, 0, False, False)
    assert seen() == (False, 0, False, False)
    shut.now = False
    assert seen() == open_wide
    assert told == [0, UNLIMITED]


async def test_lanes_of_one_pool_share_the_room_behind_their_gates_and_its_leave_is_seen_through_them() -> None:
    inner, shut = AlwaysOpen(), Shut()
    one, other = (ValveGate(inner, shut) for _ in range(2))
    # Who gives out room counts what each gate has: these are not to have it twice.
    assert {one: 1} == {other: 1}
    assert one != ValveGate(AlwaysOpen(), shut)
    permit = one.acquire()
    assert permit is not None
    assert behind(permit) is ALWAYS
    assert behind(ALWAYS) is ALWAYS
    assert (one.leaves_pulls_open, one.seconds_shut()) == (True, 0.0)
    shut.now = True
    assert (one.leaves_pulls_open, one.seconds_shut()) == (False, 0.0)


async def test_what_waits_in_front_of_a_paused_lane_goes_on_once_it_does() -> None:
    shut, inner = Shut(), AlwaysOpen()
    shut.now = True
    gate = ValveGate(inner, shut)
    room = WaitingRoom(lambda: None)

    async def wait() -> bool:
        return await room.wait(gate, tried=False) is not None

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert (gate.waiting, inner.waiting, waiting.done()) == (1, 1, False)
    shut.now = False
    gate.update()
    assert await waiting
    assert (gate.waiting, inner.waiting) == (0, 0)


def test_a_mass_cancel_meets_all_statuses_that_have_not_ended() -> None:
    assert {*OPEN} == {*STATUSES} - ENDED


@pytest.mark.parametrize("cursor", ["", "e30", "W10", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsOSxudWxsXQ", "_-_-", "A"])
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidPayload, match="cursor"):
        _parsed(cursor)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one task, or say --all"),
        (["0" * 26, "--all"], "name one task, or say --all"),
        (["0" * 26, "--yes"], "--yes goes with --all"),
        (["0" * 26, "--older-than", "1h"], "--older-than goes with --all"),
        (["0" * 26, "--metadata", "a=b"], "--metadata goes with --all"),
    ],
)
def test_cancel_is_of_one_task_or_of_all_that_fit(arguments: list[str], said: str) -> None:
    with pytest.raises(MeshctlError, match=said):
        mass_cancel.check_arguments(build_parser().parse_args(["cancel", *arguments]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["pause", "stream", "TASKS"],
        ["pause", "pool"],
        ["pause", "pool", "default", "--for", "1h", "--until", "2999-01-01T00:00:00Z"],
        ["pause", "pool", "default", "--for", "soon"],
        ["pause", "pool", "default", "--until", "2999-01-01T00:00:00"],
        ["pause", "pool", "default", "--reason", ""],
        ["limit", "No", "running=1", "--for", "1h"],
        ["limit", "acme", "running", "--for", "1h"],
        ["cancel", "--all", "--status", "completed"],
        ["cancel", "--all", "--metadata", "a"],
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err

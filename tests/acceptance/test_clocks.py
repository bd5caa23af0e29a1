"""One service's clock is wrong, and jumps: nothing comes early, nothing comes late, nothing is lost.

The times of all that is judged are those with which the broker has stamped it. Each test prints how late what was
waited for came, at most: `pytest -s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest

from contracts import subjects
from contracts.journal.events import TERMINAL_TYPES
from mesh import faults
from mesh.background import background
from mesh.broker.direct_get import Stored, read_page
from mesh.clock import now
from steward.retention import REST_SECONDS_MAX
from tests.chaos.scenario import Scenario
from tests.chaos.slot import EDGE, Slot, opened_slot
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.patience import POLL_SECONDS, stretched
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

HOUR, DAYS = 3600.0, 40 * 86400.0
WORKER, RUNNER = "inference_worker", "tool_runner"
WAIT_SECONDS = 2.0
"""How long a person is waited for."""
PAUSE_SECONDS = 1.2
"""What the other side asks for, and goes through a timer here."""
DEADLINE_SECONDS = 1.5
AMPLE_SECONDS = 300.0
"""A deadline that nothing here comes to: less than each clock is off."""
AGE_SECONDS = 6.0
"""How long what has ended is kept: longer than a phase takes."""
LATE_SECONDS_MAX = 4.0
"""On a quiet machine. A timer fires in whole seconds, a deadline's a second late."""
PURGE_LATE_SECONDS_MAX = REST_SECONDS_MAX + LATE_SECONDS_MAX
"""Retention rests for nine times as long as it was at work."""
EARLY_SECONDS_MAX = 0.5
"""On a quiet machine: what lies between the times that a writer reads, and its append."""
PHASE_SECONDS = 12.0
CONTROL_SECONDS = 5.0
"""What is lost never comes."""
POOLS = "[pools.default]\n[pools.idle]\n"

TIMED_TRIES = f"""!call patient {{"seconds": {PAUSE_SECONDS}, "key": "k"}}
!call spawn_task {{"input": "!fail rate_limit 1 {PAUSE_SECONDS}\\n!say 1"}}
!then
Done.
"""
NOBODY_ANSWERS = """!call charge {"cents": 5, "key": "k"}
!ask Which quarter?
!then
Done.
"""


class Case(NamedTuple):
    """A task, and the end that it must come to: the type, and what is incomplete of it."""

    text: str
    end: tuple[str, str | None] = ("task.completed", None)
    deadline_seconds: float | None = AMPLE_SECONDS
    request: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "later tries": Case(TIMED_TRIES, request={"tools": ["patient", "spawn_task"]}),
    "nobody answers": Case(NOBODY_ANSWERS, request={"tools": ["charge"]}),
    "a deadline in a run": Case("!say 2\n!hang 60", ("task.completed", "deadline"), DEADLINE_SECONDS),
    "a deadline in a wait": Case("!say 1\n!ask Who is there?", ("task.completed", "deadline"), DEADLINE_SECONDS),
    "a deadline in a queue": Case("hello", ("task.expired", None), DEADLINE_SECONDS, {"pool": "idle"}),
}


class Seen(NamedTuple):
    """An event, and when the broker has stored it."""

    stored_at: datetime
    event: dict[str, Any]

    @property
    def time(self) -> datetime:
        """When its writer says that it was."""
        return datetime.fromisoformat(self.event["time"])


@dataclass
class Watch:
    """All that is stored in EVENTS, before anybody can purge it; and when each task was gone."""

    slot: Slot
    journals: dict[str, list[Seen]] = field(default_factory=dict)
    gone_at: dict[str, datetime] = field(default_factory=dict)
    _cursor: int = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        requests = self.slot.connection.requests
        page = await read_page(requests, "EVENTS", "events.>", self._cursor)
        for stored in page.messages:
            self._add(stored)
        records = await requests.api("STREAM.INFO.KV_tasks", {"subjects_filter": "$KV.tasks.>"})
        there = {name.rpartition(".")[2] for name in records["state"].get("subjects") or {}}
        for task in self.ended() - there - self.gone_at.keys():
            self.gone_at[task] = datetime.fromisoformat(records["ts"])

    def _add(self, stored: Stored) -> None:
        self._cursor = stored.sequence
        task = subjects.parse_journal(stored.subject).task
        self.journals.setdefault(task, []).append(Seen(stored.stored_at, msgspec.json.decode(stored.payload)))

    def ended(self) -> set[str]:
        """Tasks that have come to an end."""
        return {task for task, seen in self.journals.items() if seen[-1].event["type"] in TERMINAL_TYPES}


class Judge:
    """What was too early, too late or wrong; and how late what was right has come, at most."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.bounds: dict[str, float] = {}

    def due(self, what: str, due_at: datetime, came_at: datetime, late_seconds_max: float = LATE_SECONDS_MAX) -> None:
        """Something was to come at a time, and came."""
        late_seconds = (came_at - due_at).total_seconds()
        self.bounds[what] = max(self.bounds.get(what, late_seconds), late_seconds)
        if late_seconds < -stretched(EARLY_SECONDS_MAX):
            self.found.append(f"{what} came {-late_seconds:.1f} s early")
        if late_seconds > stretched(late_seconds_max):
            self.found.append(f"{what} came {late_seconds:.1f} s late")

    def of_case(self, name: str, case: Case, journal: list[Seen]) -> None:
        """How a task has ended."""
        end = journal[-1]
        if (end.event["type"], end.event.get("incomplete")) != case.end:
            self.found.append(f"{name} ended as {end.event['type']}, {end.event.get('incomplete')}")
        elif case.deadline_seconds == DEADLINE_SECONDS:
            self.due(name, journal[0].stored_at + timedelta(seconds=DEADLINE_SECONDS), end.stored_at)

    def of_journal(self, journal: list[Seen]) -> None:
        """A task's stamps, its later tries, and its waits for a person."""
        for place, seen in enumerate(journal):
            # It is written first, and stored then.
            self.due("the broker's stamp after an event's time", seen.time, seen.stored_at)
            after = journal[place + 1 :]
            match seen.event:
                case {"type": "task.retrying", "step": step, "timer": True, "delay_seconds": seconds}:
                    for again in [each for each in after if each.event.get("step") == step][:1]:
                        self.due("a later try", seen.stored_at + timedelta(seconds=seconds), again.stored_at)
                case {"type": "approval.requested" | "input.requested", "call": call}:
                    for answer in [each for each in after if each.event.get("call") == call][:1]:
                        self.due("nobody's answer", seen.stored_at + timedelta(seconds=WAIT_SECONDS), answer.stored_at)
                case _:
                    pass


def scenario(folder: Path) -> Scenario:
    """Short waits; and a pool that no worker serves."""
    configuration = folder / "mesh.toml"
    configuration.write_text(POOLS)
    return Scenario(
        name="clocks",
        tasks=(),
        tools=("patient", "charge", "spawn_task"),
        variables={
            "MESH_WAITING_HOURS": f"{WAIT_SECONDS / 3600:.6f}",
            "MESH_RETENTION_DAYS": f"{AGE_SECONDS / 86400:.9f}",
            "MESH_DELTA_RETENTION_HOURS": f"{AGE_SECONDS / 3600:.6f}",
            "MESH_CONFIG": str(configuration),
        },
        variables_of={WORKER: {"MESH_CONFIG": "/dev/null"}},
    )


async def phase(
    slot: Slot, watch: Watch, judge: Judge, jump: Callable[[], object] = lambda: None, seconds: float = PHASE_SECONDS
) -> None:
    """Each case once, side by side; `jump` is called while they wait."""
    recorded = Recorded()
    tasks: dict[str, str] = {}
    for name, case in CASES.items():
        asked = {"deadline_seconds": case.deadline_seconds, **case.request}
        tasks[name] = await submit(slot.client, slot.mesh.ingress_url, recorded, case.text, **asked)
    viewers = [Viewer(str(slot.mesh.settings.edge_address), task) for task in tasks.values()]
    following = [asyncio.create_task(viewer.follow()) for viewer in viewers]
    try:
        await until(lambda: all(task in watch.journals for task in tasks.values()))
        jump()
        with suppress(TimeoutError):
            await until(lambda: watch.ended() >= set(tasks.values()), seconds)
        for name, task in tasks.items():
            if task in watch.ended():
                judge.of_case(name, CASES[name], watch.journals[task])
            else:
                judge.found.append(f"{name} has not ended")
        if not judge.found:
            await asyncio.gather(*following)
    finally:
        for each in following:
            each.cancel()
    await slot.connection.requests.api("STREAM.PURGE.TASKS", {"filter": "tasks.idle.>"})


async def purged(watch: Watch, judge: Judge, seconds: float = AGE_SECONDS + PURGE_LATE_SECONDS_MAX) -> None:
    """What has ended is there for as long as it is to be kept, and not much longer."""
    idle_at = now()  # While a queue holds a message nothing is purged.
    with suppress(TimeoutError):
        await until(lambda: watch.gone_at.keys() >= watch.ended(), seconds)
    for task in watch.ended():
        due_at = watch.journals[task][-1].stored_at + timedelta(seconds=AGE_SECONDS)
        if task not in watch.gone_at:
            judge.found.append("what has ended is never purged")
        else:
            if watch.gone_at[task] >= due_at:
                due_at = max(due_at, min(idle_at, watch.gone_at[task]))
            judge.due("the purge of what has ended", due_at, watch.gone_at[task], PURGE_LATE_SECONDS_MAX)


@asynccontextmanager
async def one_is_off(folder: Path, service: str, variables: Mapping[str, str]) -> AsyncIterator[tuple[Slot, Watch]]:
    """A mesh, with more variables for one service, and what is stored in it."""
    base = scenario(folder)
    more = {**base.variables_of, service: {**base.variables_of.get(service, {}), **variables}}
    async with opened_slot(folder / "mesh", replace(base, variables_of=more)) as slot:
        watch = Watch(slot)
        async with background(watch.run()):
            yield slot, watch


@pytest.mark.parametrize(
    ("service", "offsets"),
    [
        ("ingress", [HOUR]),
        (WORKER, [HOUR, -DAYS]),
        (RUNNER, [-HOUR]),
        ("steward", [DAYS]),
        (EDGE, [-DAYS]),
    ],
)
async def test_a_clock_that_is_off_and_jumps_changes_nothing(
    tmp_path: Path, service: str, offsets: list[float]
) -> None:
    """From the last of the offsets it jumps to the opposite one."""
    clock = tmp_path / "clock"
    clock.write_text(str(offsets[0]))
    judge = Judge()
    async with one_is_off(tmp_path, service, {faults.CLOCK_VARIABLE: str(clock)}) as (slot, watch):
        for offset in offsets:
            clock.write_text(str(offset))
            await phase(slot, watch, judge)
        await phase(slot, watch, judge, jump=lambda: clock.write_text(str(-offsets[-1])))
        await purged(watch, judge)
        for journal in watch.journals.values():
            judge.of_journal(journal)
        said = {line["seconds"] for line in slot.mesh.logs_of("service.clock_off")}
    told = [f"{service} off by {', '.join(f'{offset:+.0f}' for offset in offsets)} s, and in a jump; late at most:"]
    told += [f"  {what}: {seconds:.2f} s" for what, seconds in sorted(judge.bounds.items())]
    print("\n".join(["", *told]))  # noqa: T201 - the bounds, for people
    assert judge.found == []
    # It is looked at now and then: what it is off by later may have been seen, too.
    assert {offsets[0]} <= said <= {*offsets, -offsets[-1]}


@pytest.mark.parametrize(
    ("service", "offset", "found"),
    [
        ("ingress", -HOUR, "later tries ended as task.expired"),
        (WORKER, HOUR, "nobody answers ended as task.expired"),
        (RUNNER, HOUR, "later tries has not ended"),
        ("steward", DAYS, "the purge of what has ended came"),
    ],
)
async def test_without_the_brokers_clock_it_does(tmp_path: Path, service: str, offset: float, found: str) -> None:
    off = {faults.CLOCK_VARIABLE: str(offset), "MESH_TEST_SWITCH_OFF": "broker_clock"}
    judge = Judge()
    async with one_is_off(tmp_path, service, off) as (slot, watch):
        await phase(slot, watch, judge, seconds=CONTROL_SECONDS)
        if service == "steward":
            await purged(watch, judge, seconds=CONTROL_SECONDS)
    assert any(found in each for each in judge.found)

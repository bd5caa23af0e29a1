"""One run: the scenario, a death in it, and the judgement on what came of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from contracts import subjects
from mesh.reading import read_page
from mesh.requests import Requests
from tests.chaos.points import SERVICES, Point, give_order, order_is_open, order_sleep, take_back
from tests.chaos.scenario import CHILD_OUTPUTS, IDEMPOTENT, OUTPUT, RESULTS, Person, Voice
from tests.chaos.slot import ACK_WAIT_SECONDS, WITHIN_SECONDS, Slot
from tests.support.checker import (
    ClientHistory,
    StoredEvent,
    check_calls,
    check_history,
    check_journal,
    children_of,
    is_result,
)
from tests.support.waiting import until

TENANT = "default"
RUN_SECONDS_MAX = 60.0
LATE_SECONDS = 1.0
"""How long after a run a point may still be come to: some records are written in the background."""
TAKEOVER_SECONDS_MAX = ACK_WAIT_SECONDS + 2.0
AWAKE_SECONDS = 0.5
"""How long a sleeper is watched once it is awake again, where the run is over by then."""
HELD_AT = "after-publish:tasks.default"
"""Here the ingress has accepted the task, and not begun its journal."""
HELD_SECONDS_MAX = 3.0
STORED = {"TASKS": 3, "TURNS": 3, "TOOLS": 5}
"""How many messages a run stores in each queue: the task and its children, its later turns, its calls."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run may take to its end, and from there to empty queues."""

    run_seconds: float = RUN_SECONDS_MAX
    idle_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class _Before:
    """A slot before a run: how much each service had come to, by which process, and how much was stored."""

    name: str
    reached: dict[str, int]
    pids: dict[str, int]
    deaths: int
    stored: dict[str, int]


@dataclass
class Outcome:
    """What came of a run. `point` is None in one that nobody disturbed."""

    point: Point | None
    reached: bool = False
    violations: list[str] = field(default_factory=list)
    takeover_seconds: float | None = None
    """From the death to the first thing that the successor did, in runs where it had something to do."""
    unknown_calls: int = 0
    """Calls that must not run twice, and of which nobody knows whether they had their effect."""
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each service came to each point."""


async def run_once(slot: Slot, point: Point | None, patience: Patience | None = None) -> Outcome:
    """Run the scenario once, disturb it at `point`, and judge it."""
    slot.runs += 1
    before = _Before(
        name=f"{slot.mesh.folder.name}.{slot.runs}",
        reached={service: len(slot.reached(service)) for service in SERVICES},
        pids={service: process.pid for service, process in slot.processes.items()},
        deaths=len(slot.deaths),
        stored=await slot.stored(),
    )
    outcome = Outcome(point)
    history = await _follow(slot, before, outcome, patience or Patience())
    outcome.violations += _wrong_deaths(slot.deaths[before.deaths :], outcome)
    outcome.violations += check_history(history, await read_journal(slot.connection.requests, history.task))
    outcome.violations += await _judge(slot, history.task, outcome)
    if point is None or point.fault != "broker":
        # A broker that starts again knows no message ids of messages that are gone: there the bindings hold.
        outcome.violations += _surplus(before.stored, await slot.stored())
    outcome.counts = {
        service: Counter(line.what for line in slot.reached(service, before.reached[service])) for service in SERVICES
    }
    if point is not None and outcome.reached:
        outcome.takeover_seconds = _takeover_seconds(slot, point, before)
    slot.disturbed = slot.disturbed or bool(outcome.violations)
    return outcome


async def _follow(slot: Slot, before: _Before, outcome: Outcome, patience: Patience) -> ClientHistory:
    """Submit, and follow to the end, and from there to empty queues; what a client received."""
    point = outcome.point
    async with _disturbance(slot, point, before.name) as waking:
        voice = Voice(slot.client, slot.mesh.ingress_url, before.name)
        person = Person(str(slot.mesh.settings.edge_address), await voice.submit(), voice.say)
        idle_seconds = patience.idle_seconds
        try:
            await person.follow(seconds=patience.run_seconds)
        except TimeoutError:
            person.history.saw_end = False
            outcome.violations.append(f"I3: no end within {patience.run_seconds:.0f} s")
            idle_seconds = 0.0
        await asyncio.gather(*voice.saying)
        idle = await slot.until_idle(idle_seconds)
        if point is not None:
            outcome.reached = await _was_carried_out(slot, point, waking)
            # Whoever died after its last ack left nothing behind; whoever died before it did.
            idle = await slot.until_idle(idle_seconds)
    left = {} if idle else await slot.left()
    if left:
        outcome.violations.append(f"I10: left in the queues: {left}")
    return person.history


def _wrong_deaths(deaths: list[str], outcome: Outcome) -> list[str]:
    point = outcome.point
    ordered = [_victim(point)] if point is not None and outcome.reached and point.fault != "pause" else []
    return [] if deaths == ordered else [f"I3: deaths {deaths}, ordered {ordered}"]


def _victim(point: Point) -> str:
    return "nats-server" if point.fault == "broker" else point.service


@asynccontextmanager
async def _disturbance(slot: Slot, point: Point | None, name: str) -> AsyncIterator[asyncio.Task[None] | None]:
    """Give the order, and see to who sleeps by it. At the end nobody sleeps, and nobody is twice there."""
    if point is None:
        yield None
        return
    folder = slot.folder(point.service)
    broker = slot.mesh.broker.process
    give_order(folder, name, point, broker.pid if broker is not None else 0)
    waking = asyncio.create_task(_wake(slot, point)) if point.fault == "pause" else None
    holding = asyncio.create_task(_hold(slot, point, name)) if point.held else None
    try:
        yield waking
    finally:
        take_back(folder)
        for task in filter(None, (waking, holding)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _hold(slot: Slot, point: Point, name: str) -> None:
    """Let a service sleep until the point is come to, or for as long as a client waits."""
    process = slot.processes[point.held]
    if point.held == "ingress":
        order_sleep(slot.folder(point.held), name, HELD_AT)
    else:
        process.signal(signal.SIGSTOP)
    try:
        with suppress(TimeoutError):
            await until(lambda: not order_is_open(slot.folder(point.service)), HELD_SECONDS_MAX)
    finally:
        take_back(slot.folder(point.held))
        process.signal(signal.SIGCONT)


async def _wake(slot: Slot, point: Point) -> None:
    """Wake the sleeper once somebody else does its work, and end it with the run."""
    folder, before = slot.folder(point.service), len(slot.reached(point.service))
    await until(lambda: not order_is_open(folder), RUN_SECONDS_MAX)
    asleep = await slot.replace(point.service)
    try:
        with suppress(TimeoutError):
            # Where nothing was left to do there is nothing to take over.
            others = lambda: any(line.pid != asleep.pid for line in slot.reached(point.service, before))  # noqa: E731
            await until(others, TAKEOVER_SECONDS_MAX)
        asleep.signal(signal.SIGCONT)
        await asyncio.Event().wait()
    finally:
        await asleep.kill()


async def _was_carried_out(slot: Slot, point: Point, waking: asyncio.Task[None] | None) -> bool:
    folder = slot.folder(point.service)
    try:
        await until(lambda: not order_is_open(folder), LATE_SECONDS)
    except TimeoutError:
        take_back(folder)
        return False
    if waking is not None:
        await asyncio.wait({waking}, timeout=AWAKE_SECONDS)
    else:
        await until(lambda: _victim(point) in slot.deaths[-1:], WITHIN_SECONDS)
    await until(lambda: slot.is_whole, WITHIN_SECONDS)
    return True


def _surplus(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [
        f"I10: {after[stream] - before[stream]} messages were stored in {stream}, a run takes {count}"
        for stream, count in STORED.items()
        if after[stream] - before[stream] != count
    ]


def _takeover_seconds(slot: Slot, point: Point, before: _Before) -> float | None:
    lines = slot.reached(point.service, before.reached[point.service])
    stopped_at = [line.time for line in lines if line.what == point.what][point.which - 1]
    if point.fault == "broker":
        later = [line.time for service in SERVICES for line in slot.reached(service, before.reached[service])]
        return min((moment - stopped_at for moment in later if moment > slot.broker_started_at), default=None)
    return min((line.time - stopped_at for line in lines if line.pid != before.pids[point.service]), default=None)


async def read_journal(requests: Requests, task: str) -> list[StoredEvent]:
    """A task's journal as it is stored."""
    events: list[StoredEvent] = []
    more = True
    while more:
        after = events[-1].sequence if events else 0
        page, more = await read_page(requests, "EVENTS", subjects.journal(TENANT, task), after)
        events += [StoredEvent(each.sequence, task, each.payload, json.loads(each.payload)) for each in page]
    return events


async def _judge(slot: Slot, task: str, outcome: Outcome) -> list[str]:
    requests = slot.connection.requests
    journal = await read_journal(requests, task)
    children = children_of(journal)
    family = {"the task": (task, journal)}
    for call, child in sorted(children.items()):
        family[f"the child of {call}"] = (child, await read_journal(requests, child))
    problems: list[str] = []
    for role, (member, events) in family.items():
        found = check_journal(events) + check_calls(events, slot.executed(), IDEMPOTENT)
        found += await _record_problems(requests, member, events)
        problems += [f"{problem} ({role}, {member})" for problem in found]
    ends = [events[-1].event.get("output") if events else None for _, events in family.values()]
    if ends != [OUTPUT, *CHILD_OUTPUTS]:
        problems.append(f"I9: the outputs are {ends}")
    problems += _wrong_results(journal, outcome)
    dead, _ = await read_page(requests, "DEAD_LETTERS", "dead.>", 0)
    problems += [f"I10: a dead letter: {letter.payload[:300]!r}" for letter in dead[:3]]
    return problems


async def _record_problems(requests: Requests, task: str, journal: list[StoredEvent]) -> list[str]:
    page, _ = await read_page(requests, "KV_tasks", f"$KV.tasks.{subjects.task_key(TENANT, task)}", 0)
    status = json.loads(page[-1].payload).get("status") if page else None
    end = journal[-1].event["type"] if journal else "nothing"
    return [] if end == f"task.{status}" else [f"I10: it ended with {end}, its record says {status}"]


def _wrong_results(journal: list[StoredEvent], outcome: Outcome) -> list[str]:
    problems: list[str] = []
    results = {stored.event["call"]: stored.event for stored in journal if is_result(stored.event)}
    for call, (kind, value) in RESULTS.items():
        event = results.get(call, {"type": "nothing"})
        if event["type"] == kind and value in _values(event):
            continue
        if _may_be_unknown(event, outcome.point) and event["type"] == "tool.failed" and event["outcome"] == "unknown":
            outcome.unknown_calls += 1
            continue
        problems.append(f"I8: call {call} came to {event}")
    return problems


def _may_be_unknown(event: dict[str, Any], point: Point | None) -> bool:
    """Whether somebody died who may have been running a call that must not run twice."""
    disturbed = point is not None and (point.service == "tool_runner" or point.fault == "broker")
    return disturbed and event.get("tool") not in IDEMPOTENT


def _values(event: dict[str, Any]) -> list[Any]:
    return [event.get(name) for name in ("result", "text", "output")]

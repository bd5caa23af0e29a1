"""One run: the scenario, a death in it, and the judgement on what came of it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from contracts.identifiers import new_id
from tests.chaos.aftermath import Aftermath, stay
from tests.chaos.clients import Person, Voice, tasks_of
from tests.chaos.judging import Judgement, read_journal
from tests.chaos.points import SERVICES, Point, give_order, order_is_open, order_sleep, take_back
from tests.chaos.scenario import Scenario
from tests.chaos.slot import WITHIN_SECONDS, Slot
from tests.support.checker import ClientHistory, check_followed, check_history, is_result
from tests.support.patience import within
from tests.support.waiting import until

RUN_SECONDS_MAX = 60.0
LATE_SECONDS = 1.0
"""How long after a run a point may still be come to: some records are written in the background."""
AFTER_LEASE_SECONDS_MAX = 2.0
"""From the end of a lease to whoever takes over."""
PACKED_SECONDS_MAX = 20.0
"""How long a sleeper is left alone until all tasks are packed, it being one that might disturb that later."""
AWAKE_SECONDS = 0.5
"""How long a sleeper is watched once it is awake again, where the run is over by then."""
HELD_AT = "after-publish:tasks.default"
"""Here the ingress has accepted the task, and not begun its journal."""
HELD_SECONDS_MAX = 3.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run may take to its end, and from there to empty queues."""

    run_seconds: float = RUN_SECONDS_MAX
    idle_seconds: float = 30.0


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
    if slot.scenario.archives:
        await stay(slot)
    before = _Before(
        name=f"{slot.mesh.folder.name}.{slot.runs}",
        reached={service: len(slot.reached(service)) for service in SERVICES},
        pids={service: process.pid for service, process in slot.processes.items()},
        deaths=len(slot.deaths),
        stored=await slot.stored(),
    )
    outcome = Outcome(point)
    histories = await _follow(slot, before, outcome, patience or Patience())
    outcome.violations += _wrong_deaths(slot, before, outcome)
    judgement = Judgement(slot, before.name, point)
    turns_more = 0
    for asked, history in zip(slot.scenario.tasks, histories, strict=True):
        journal = await read_journal(slot, history.task)
        outcome.violations += (check_followed if slot.scenario.archives else check_history)(history, journal)
        outcome.violations += await judgement.of_task(asked, history.task)
        turns_more += any(is_result(stored.event) and stored.event["call"] == asked.racing_call for stored in journal)
    tasks = {history.task: asked for asked, history in zip(slot.scenario.tasks, histories, strict=True)}
    outcome.violations += await judgement.of_dead_letters(tasks, before.stored["DEAD_LETTERS"])
    outcome.unknown_calls = judgement.unknown_calls
    if point is None or point.fault not in ("broker", "drain"):
        # A broker that starts again knows no message ids of messages that are gone: there the bindings hold. And what
        # is handed over has a message more.
        outcome.violations += surplus(slot.scenario, before.stored, await slot.stored(), turns_more)
    outcome.counts = {
        service: Counter(line.what for line in slot.reached(service, before.reached[service])) for service in SERVICES
    }
    if point is not None and outcome.reached:
        outcome.takeover_seconds = _takeover_seconds(slot, point, before)
    slot.disturbed = slot.disturbed or bool(outcome.violations)
    return outcome


async def _follow(slot: Slot, before: _Before, outcome: Outcome, patience: Patience) -> list[ClientHistory]:
    """Submit, and follow to the end, and from there to empty queues; what a client received of each task."""
    point = outcome.point
    async with _disturbance(slot, point, before.name) as waking:
        requests = slot.connection.requests
        voices = [
            Voice(
                slot.client,
                slot.mesh.ingress_url,
                requests,
                asked,
                before.name,
                before.stored["EVENTS"],
                slot.long_seconds,
            )
            for asked in slot.scenario.tasks
        ]
        told = await asyncio.gather(*(_follow_task(slot, voice, patience) for voice in voices))
        idle_seconds = patience.idle_seconds
        if not all(history.saw_end for history in told):
            outcome.violations.append(f"I3: no end within {patience.run_seconds:.0f} s")
            idle_seconds = 0.0
        ended = {history.task: asked for asked, history in zip(slot.scenario.tasks, told, strict=True)}
        aftermath = Aftermath(slot, before.name, ended) if slot.scenario.archives and idle_seconds else None
        async with aftermath.visited() if aftermath is not None else nullcontext():
            idle = await _until_quiet(slot, aftermath, idle_seconds)
            if point is not None:
                outcome.reached = await _was_carried_out(slot, point, before, waking)
                # Whoever died after its last ack left nothing behind; whoever died before it did.
                idle = await _until_quiet(slot, aftermath, idle_seconds)
        if aftermath is not None:
            outcome.violations += await aftermath.judge()
        for voice, history in zip(voices, told, strict=True):
            started = await tasks_of(requests, voice.rule, before.stored["EVENTS"]) if voice.rule else [history.task]
            if started != [history.task]:
                outcome.violations.append(f"I8: rule {voice.rule} has started the tasks {started}")
            await voice.tidy_up()
    left = {} if idle else await slot.left()
    if left:
        outcome.violations.append(f"I10: left in the queues: {left}")
    return told


async def _until_quiet(slot: Slot, aftermath: Aftermath | None, seconds: float) -> bool:
    """Wait until nobody has anything to do: the queues are empty, and what has ended is where it should be."""
    idle = await slot.until_idle(seconds)
    if aftermath is not None:
        await aftermath.until_settled(seconds)
    return idle


async def _follow_task(slot: Slot, voice: Voice, patience: Patience) -> ClientHistory:
    history = ClientHistory(new_id(), saw_end=False)
    try:
        async with within(patience.run_seconds):
            person = Person(str(slot.mesh.settings.edge_address), await voice.submit(), voice)
            person.history.saw_end = False
            history = person.history
            await person.follow(seconds=patience.run_seconds)
        history.saw_end = True
    except TimeoutError:
        await voice.fall_silent()
    else:
        await asyncio.gather(*voice.saying)
    return history


def _wrong_deaths(slot: Slot, before: _Before, outcome: Outcome) -> list[str]:
    point = outcome.point
    # How often a run itself kills a service is seen in the dead letter: who kept its deliveries counts them.
    deaths = [each for each in slot.deaths[before.deaths :] if each != slot.scenario.dying]
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
            await until(others, slot.mesh.settings.ack_wait_seconds + AFTER_LEASE_SECONDS_MAX)
            if slot.scenario.archives:
                await until(slot.are_packed, PACKED_SECONDS_MAX)
        asleep.signal(signal.SIGCONT)
        await asyncio.Event().wait()
    finally:
        await asleep.kill()


async def _was_carried_out(slot: Slot, point: Point, before: _Before, waking: asyncio.Task[None] | None) -> bool:
    folder = slot.folder(point.service)
    try:
        await until(lambda: not order_is_open(folder), LATE_SECONDS)
    except TimeoutError:
        take_back(folder)
        return False
    if waking is not None:
        with suppress(TimeoutError):
            async with within(AWAKE_SECONDS):
                await asyncio.wait({waking})
    else:
        # Who is told to stop takes a moment.
        await until(lambda: _victim(point) in slot.deaths[max(before.deaths, len(slot.deaths) - 1) :], WITHIN_SECONDS)
    await until(lambda: slot.is_whole, WITHIN_SECONDS)
    return True


def surplus(scenario: Scenario, before: dict[str, int], after: dict[str, int], turns_more: int = 0) -> list[str]:
    """I10: queues that have stored more or less than a run takes. `turns_more`: what this one took beside that."""
    problems: list[str] = []
    for stream, (least, most) in scenario.stored.items():
        count = after[stream] - before[stream] - (turns_more if stream == "TURNS" else 0)
        if not least <= count <= most:
            problems.append(f"I10: {count} messages were stored in {stream}, a run takes {least} to {most}")
    return problems


def _takeover_seconds(slot: Slot, point: Point, before: _Before) -> float | None:
    lines = slot.reached(point.service, before.reached[point.service])
    stopped_at = [line.time for line in lines if line.what == point.what][point.which - 1]
    if point.fault == "broker":
        later = [line.time for service in SERVICES for line in slot.reached(service, before.reached[service])]
        return min((moment - stopped_at for moment in later if moment > slot.broker_started_at), default=None)
    return min((line.time - stopped_at for line in lines if line.pid != before.pids[point.service]), default=None)

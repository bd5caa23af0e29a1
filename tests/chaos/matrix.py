"""The matrix: every point of a scenario's undisturbed run once, in meshes beside each other."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.chaos.agent import AGENT
from tests.chaos.archive import ARCHIVE, DROPPED
from tests.chaos.distant import DISTANT
from tests.chaos.ledger import wrong_counters
from tests.chaos.moves import MOVES
from tests.chaos.points import Point, points_of
from tests.chaos.poison import POISON
from tests.chaos.repairs import REPAIRS
from tests.chaos.runner import REPEATS_VARIABLE
from tests.chaos.runs import Outcome, Patience, run_once
from tests.chaos.scenario import Scenario
from tests.chaos.skewed import SKEWED
from tests.chaos.slot import Slot, opened_slot
from tests.chaos.starts import STARTS

RECORDINGS = 5
"""Undisturbed runs before all others."""
TRIES_MAX = 12
"""How often a point is tried that a run did not come to, since another process was faster."""
CONTROL_PATIENCE = Patience(run_seconds=7.0, idle_seconds=2.0)
"""A run without a safeguard need not come to an end."""

CONTROL_RUNS_MAX = 5
"""On a busy machine a run may end before it comes to its point, or another process may be faster there."""

OFF = "MESH_TEST_SWITCH_OFF"
SCENARIOS = (AGENT, REPAIRS, POISON, STARTS, MOVES, DISTANT, SKEWED, ARCHIVE, DROPPED)


class Control(NamedTuple):
    """A run without a safeguard: which service goes without it, by which variable, and a point at which that shows."""

    scenario: Scenario
    service: str
    variables: dict[str, str]
    point: Point | None = None
    shows: str = ""
    """What is in the violation that must be found."""
    patience: Patience = CONTROL_PATIENCE


CONTROLS = {
    "ack": Control(AGENT, "inference_worker", {OFF: "ack"}),
    "fence": Control(
        AGENT,
        "inference_worker",
        {OFF: "fence,watch"},
        Point("pause", "inference_worker", "append:turn.completed", 1),
    ),
    "message id": Control(
        AGENT, "tool_runner", {OFF: "message_id"}, Point("kill", "tool_runner", "after-publish:tasks.default", 1)
    ),
    "at most once": Control(
        AGENT, "tool_runner", {REPEATS_VARIABLE: "1"}, Point("kill", "tool_runner", "ran:charge", 1)
    ),
    "message id of what is replayed": Control(
        REPAIRS,
        "steward",
        {OFF: "message_id"},
        Point("kill", "steward", "after-publish:tools.mend", 1),
        "messages were stored in TOOLS",
        Patience(),
    ),
    "message id of what is moved": Control(
        MOVES,
        "steward",
        {OFF: "message_id"},
        Point("kill", "steward", "after-move:tasks.default", 1),
        "messages were stored in TASKS",
        Patience(),
    ),
    "broker's clock": Control(SKEWED, "inference_worker", {OFF: "broker_clock"}),
    "fence of a pack": Control(
        ARCHIVE,
        "steward",
        {OFF: "fence"},
        Point("pause", "steward", "before-pack:archive", 1),
        "is packed 2 times",
        Patience(idle_seconds=10.0),
    ),
    "order of packing": Control(
        ARCHIVE,
        "steward",
        {OFF: "archive_order"},
        Point("kill", "steward", "after-purge:journal", 1),
        "I1: ",
        Patience(idle_seconds=10.0),
    ),
}
"""Safeguard → a run without it, in which the checker must find something."""


def _ignore(_: Outcome) -> None:
    pass


@dataclass
class Report:
    """What all runs came to."""

    points: list[Point] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    """Exceptions that nobody handled, from the processes' logs."""
    ledger: list[str] = field(default_factory=list)
    """Counters that are not what the journals say, once all has been counted."""
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Safeguard that was off → what the checker found."""

    @property
    def covered(self) -> set[Point]:
        """Points that were come to."""
        return {outcome.point for outcome in self.outcomes if outcome.point is not None and outcome.reached}

    @property
    def missed(self) -> list[Point]:
        """Points that no run came to again."""
        return [point for point in self.points if point not in self.covered]

    @property
    def violations(self) -> list[tuple[Point | None, str]]:
        """What the checker found, and where."""
        return [(outcome.point, problem) for outcome in self.outcomes for problem in outcome.violations]

    @property
    def passed(self) -> bool:
        """There were points, every one is covered, nothing was found but what the controls must find."""
        found = self.missed or self.violations or self.tracebacks or self.ledger
        return bool(self.points) and not found and all(self.controls.values())


class Matrix:
    """Runs points in several meshes; a mesh in which something went wrong is left, and another one opened."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        scenario: Scenario = AGENT,
        *,
        slots: int = 1,
        recordings: int = RECORDINGS,
        on_outcome: Callable[[Outcome], None] = _ignore,
    ) -> None:
        self.report = Report()
        self._folder = folder
        self._scenario = scenario
        self._random = random.Random(seed)
        self._slots = slots
        self._recordings = recordings
        self._on_outcome = on_outcome
        self._opened = 0
        self._left: deque[tuple[Point, int]] = deque()
        self._planned = asyncio.Event()

    async def run(self, choose: Callable[[list[Point], random.Random], list[Point]]) -> Report:
        """Record, plan what `choose` leaves of all points, and run it all."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._slots):
                group.create_task(self._work(choose if number == 0 else None))
        return self.report

    async def control(self, safeguard: str) -> None:
        """Run without a safeguard until the checker finds what breaks: it must, within a few runs."""
        control = CONTROLS[safeguard]
        for _ in range(CONTROL_RUNS_MAX):
            variables_of = {control.service: control.variables}
            async with opened_slot(self._next_folder(), control.scenario, **variables_of) as slot:
                outcome = await run_once(slot, control.point, control.patience)
            found = [problem for problem in outcome.violations if control.shows in problem]
            self.report.controls[safeguard] = found
            if found:
                return

    def _next_folder(self) -> Path:
        self._opened += 1
        return self._folder / f"mesh-{self._opened}"

    async def _work(self, choose: Callable[[list[Point], random.Random], list[Point]] | None) -> None:
        while choose is not None or self._left or not self._planned.is_set():
            folder = self._next_folder()
            async with AsyncExitStack() as stack:
                slot = await stack.enter_async_context(opened_slot(folder, self._scenario))
                if choose is not None:
                    await self._plan(slot, choose)
                    choose = None
                await self._planned.wait()
                while self._left and not slot.disturbed:
                    await self._one(slot)
                self.report.ledger += await wrong_counters(slot)
                self.report.tracebacks += slot.tracebacks()
            if not slot.disturbed:
                shutil.rmtree(folder)  # What went wrong can be looked at, if the folder is a lasting one.

    async def _plan(self, slot: Slot, choose: Callable[[list[Point], random.Random], list[Point]]) -> None:
        recorded = [await run_once(slot, None) for _ in range(self._recordings)]
        for outcome in recorded:
            self._add(outcome)
        every = [
            point
            for point in points_of([outcome.counts for outcome in recorded])
            if self._scenario.archives or not point.is_of_archive
        ]
        points = choose([point for point in every if self._scenario.chosen(point)], self._random)
        self._random.shuffle(points)
        self.report.points = sorted(points)
        self._left.extend((point, 1) for point in points)
        self._planned.set()

    async def _one(self, slot: Slot) -> None:
        point, tries = self._left.popleft()
        outcome = await run_once(slot, point)
        self._add(outcome)
        if not outcome.reached and not outcome.violations and tries < TRIES_MAX:
            self._left.append((point, tries + 1))

    def _add(self, outcome: Outcome) -> None:
        self.report.outcomes.append(outcome)
        self._on_outcome(outcome)

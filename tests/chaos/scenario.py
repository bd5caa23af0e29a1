"""What a run is made of: the tasks that its clients submit, what they say to them, and what each must come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from tests.chaos.points import Point

IDEMPOTENT = frozenset({"add", "large", "mend", "patient"})
KEY = "KEY"
"""Stands for the run's name in all that clients send."""
LONG = "LONG"
"""Stands there for more seconds than a lease, or the start of a process."""
LONG_SECONDS = 1.3

Value = TypeVar("Value")


def in_run(value: Value, run: str, long_seconds: float = LONG_SECONDS) -> Value:
    """The same with the run's name in it. `value` is as JSON has it."""
    named: Value = json.loads(json.dumps(value).replace(KEY, run).replace(LONG, f"{long_seconds:g}"))
    return named


class End(NamedTuple):
    """How a task may end: its last event's type, and that event's output and `incomplete`."""

    type: str
    output: str | None
    incomplete: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a client says once it has seen so many events of each type."""

    after: Mapping[str, int]
    body: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A task that a client asks for, and what it must come to whoever dies."""

    name: str
    body: dict[str, Any]
    ends: tuple[End, ...]
    """The first one where nobody is disturbed."""
    child_outputs: tuple[str, ...] = ()
    """Of its sub-tasks, in the order of their calls."""
    begun_by: Literal["request", "signal", "schedule"] = "request"
    """What begins it. But for a request there is a rule of the run's own, and `body` is its template."""
    results: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Each call's result, by its type and what it holds. Only a call that must not run twice may end otherwise:
    unknown."""
    answers: tuple[Answer, ...] = ()
    repairs: Mapping[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """The dead letters that it comes to, (step, gen), and the edits with which a client replays each."""
    repaired_from_record: bool = True
    """Whether that client waits for the record in DEAD_LETTERS, or takes the event's word. It may be so fast then that
    the replay comes before the record: whoever was to write that one again finds the step gone on."""
    late_steps: frozenset[str] = frozenset()
    """Steps whose second try a timer brings."""
    racing_call: str = ""
    """A call that waits as the task ends. Where nobody was there to carry out either in time, its own end may come
    first, and another turn with it."""


def no_drains(point: Point) -> bool:
    """Whether nobody is merely told to stop: one run has that at every point."""
    return point.fault != "drain"


@dataclass(frozen=True)
class Scenario:
    """A run: its tasks, side by side, in a mesh with these settings."""

    name: str
    tasks: tuple[Asked, ...]
    tools: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """More `MESH_*` variables of all its services."""
    variables_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Service → more variables of its processes alone."""
    stored: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """How many messages a run stores in a queue, at least and at most."""
    dying: str = ""
    """A service that dies in every run, by what the run asks of it."""
    timers_fire: bool = False
    """Whether each timer that a run sets also fires in it."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Service → the module that is run in place of its own."""
    beside: tuple[str, ...] = ()
    """Services of which there are two, which come to the same points."""
    archives: bool = False
    """Whether a run goes on until its tasks are packed. Only then what stewards do for that is of interest."""
    kept_seconds: float | None = None
    """How long after its end a task is dropped; None is longer than any run."""
    chosen: Callable[[Point], bool] = no_drains
    """The points of the run that are of interest."""
    meshes: int = 1
    """So many times more meshes beside each other, since its runs wait for the clock."""
    rtt_seconds: float | None = None
    """How far all its services are from the broker; None is next to it."""

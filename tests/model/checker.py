"""Breadth-first search through all states of a configuration: the first violation found has a shortest trace."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.model.invariants import judge_rest
from tests.model.rules import ALL_RULES, Rules
from tests.model.state import State
from tests.model.steps import Configuration, Step, Steps, initial

STATES_MAX = 400_000
"""A configuration with more states than this is too large, and fails."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found. `trace` leads to the violation; `states` and `depth` are how far it went."""

    states: int
    depth: int
    violation: str | None = None
    trace: tuple[str, ...] = ()


class TooLarge(Exception):
    """The configuration has more states than may be searched."""


def search(
    configuration: Configuration, off: Rules = ALL_RULES, *, start: State | None = None, states_max: int = STATES_MAX
) -> Result:
    """Visit every state from `start` on, up to the first violation. Raises `TooLarge`."""
    steps = Steps(configuration, off)
    start = start or initial(configuration)
    came_from: dict[State, tuple[State, Step] | None] = {start: None}
    waiting = deque([(start, 0)])
    depth = 0
    while waiting:
        state, depth = waiting.popleft()
        at_rest = True
        for step in steps.after(state):
            at_rest = at_rest and not step.progress
            if step.violation is not None:
                return Result(len(came_from), depth + 1, step.violation, (*_trace(came_from, state), _told(step)))
            if step.state not in came_from:
                came_from[step.state] = (state, step)
                waiting.append((step.state, depth + 1))
        if at_rest and (violation := judge_rest(state)) is not None:
            return Result(len(came_from), depth, violation, _trace(came_from, state))
        if len(came_from) > states_max:
            raise TooLarge(f"{configuration.name} has more than {states_max:,} states")
    return Result(len(came_from), depth)


def _trace(came_from: dict[State, tuple[State, Step] | None], state: State) -> tuple[str, ...]:
    told: list[str] = []
    while (origin := came_from[state]) is not None:
        state, step = origin
        told.append(_told(step))
    return tuple(reversed(told))


def _told(step: Step) -> str:
    return f"{step.who} {step.what}"

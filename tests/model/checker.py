"""Breadth-first search through all states of a configuration: the first violation found has a shortest trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tests.model.rules import ALL_RULES, Rules

STATES_MAX = 400_000
"""A configuration with more states than this is too large, and fails."""

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One step. `progress`: it needs no misfortune and no person, so it will come."""

    who: object
    what: str
    state: S
    violation: str | None = None
    progress: bool = True


class Model(Protocol[S]):
    """What can be searched: states, and the steps between them."""

    def initial(self) -> S:
        """Where it begins."""
        ...

    def after(self, state: S) -> Iterator[Step[S]]:
        """Every step from a state."""
        ...

    def judge_rest(self, state: S) -> str | None:
        """What is wrong in a state from which no step makes progress, or None."""
        ...


class Searchable(Protocol):
    """A bounded configuration of a model."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def model(self, off: Rules) -> Model[Any]:
        """The model with some rules switched off."""
        ...


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
    configuration: Searchable, off: Rules = ALL_RULES, *, start: Any = None, states_max: int = STATES_MAX
) -> Result:
    """Visit every state from `start` on, up to the first violation. Raises `TooLarge`."""
    model = configuration.model(off)
    start = start or model.initial()
    came_from: dict[Any, tuple[Any, Step[Any]] | None] = {start: None}
    waiting = deque([(start, 0)])
    depth = 0
    while waiting:
        state, depth = waiting.popleft()
        at_rest = True
        for step in model.after(state):
            at_rest = at_rest and not step.progress
            if step.violation is not None:
                return Result(len(came_from), depth + 1, step.violation, (*_trace(came_from, state), _told(step)))
            if step.state not in came_from:
                came_from[step.state] = (state, step)
                waiting.append((step.state, depth + 1))
        if at_rest and (violation := model.judge_rest(state)) is not None:
            return Result(len(came_from), depth, violation, _trace(came_from, state))
        if len(came_from) > states_max:
            raise TooLarge(f"{configuration.name} has more than {states_max:,} states")
    return Result(len(came_from), depth)


def _trace(came_from: dict[Any, tuple[Any, Step[Any]] | None], state: Any) -> tuple[str, ...]:
    told: list[str] = []
    while (origin := came_from[state]) is not None:
        state, step = origin
        told.append(_told(step))
    return tuple(reversed(told))


def _told(step: Step[Any]) -> str:
    return f"{step.who} {step.what}"

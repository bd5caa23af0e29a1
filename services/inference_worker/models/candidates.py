"""The models that a turn may go to, in the order of its pool, and which of them it is with. What each must do.

A turn is with the model of its last switch; without one with that of the task's last switch for a context that was too
long; without one with the pool's first. Pure, but for the streams themselves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from contracts.journal import events
from contracts.retries import AWAY_CODES
from inference_worker.models.chunks import Chunk, TurnInput
from inference_worker.models.prompt_size import NO_SIZE, PromptSize
from mesh.task.state import ModelName, TaskState

Available = Callable[[str], bool]
"""Whether a provider, by its name, may be asked now."""


class Source(Protocol):
    """A source of model turns. One serves many turns at once."""

    @property
    def name(self) -> str:
        """Its name in claims and dead letters: the one that the configuration gives it."""
        ...

    def continues(self, text: str) -> bool:
        """Whether it can go on behind this text, which was generated before."""
        ...

    def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn: any number of deltas, then `Finished`. Raises `StepFailed`.

        `Begun` comes where the first token is no delta.

        Closing the generator stops the generation.
        """
        ...


class Provider(Source, Protocol):
    """A source, and the model that a pool takes from it."""

    @property
    def default_model(self) -> str:
        """The model of a request that names none."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a turn may go to. `index` is its place in the pool."""

    source: Source
    model: str
    index: int
    weight: float = 1.0
    """Its share where a choice among several comes to the same."""

    @property
    def provider(self) -> str:
        """Its provider's name."""
        return self.source.name

    @property
    def place(self) -> ModelName:
        """Provider and model."""
        return self.provider, self.model

    def is_at(self, place: ModelName | None) -> bool:
        """Whether this is the model of that name, at the provider of that name."""
        return place == (self.provider, self.model)


@dataclass(frozen=True, slots=True)
class Candidates:
    """A pool's models, in their order: at least one."""

    all: tuple[Candidate, ...]
    left_on: ClassVar[frozenset[str]] = AWAY_CODES
    """Failures of a model after which another one goes on with the turn in the same claim."""

    @classmethod
    def of_providers(cls, providers: Iterable[Provider]) -> Candidates:
        """One of each provider, with the model that the pool takes from it."""
        return cls(tuple(Candidate(each, each.default_model, at) for at, each in enumerate(providers)))

    def for_model(self, model: str | None) -> Candidates:
        """The same for a request that names a model: that is the first, in place of the pool's own."""
        if model is None:
            return self
        first = replace(self.all[0], model=model)
        others = (each for each in self.all[1:] if not each.is_at((first.provider, first.model)))
        return Candidates((first, *(replace(each, index=at) for at, each in enumerate(others, 1))))

    def available_from(self, available: Available, start: int) -> Candidate | None:
        """The first one at or after an index whose provider may be asked; None if there is none."""
        return next((each for each in self.all[start:] if available(each.provider)), None)

    def first_available(self, available: Available, start: int = 0) -> Candidate:
        """The same; without any, the one at that index, which may be asked all the same."""
        return self.available_from(available, start) or self.all[start]

    def next_after(self, candidate: Candidate, available: Available) -> Candidate | None:
        """Which one takes a turn over from another; None if that was the last."""
        start = candidate.index + 1
        return self.first_available(available, start) if start < len(self.all) else None

    def after(self, state: TaskState, turn: int, candidate: Candidate, available: Available) -> Candidate | None:
        """Which one comes in where the turn's own is slow, or away: the next that may be asked; None without one."""
        return self.available_from(available, candidate.index + 1)

    def of_turn(self, state: TaskState, turn: int) -> Candidate:
        """The one that a turn is with."""
        return self._of(state.turn(turn).switched) or self.all[self._lowest(state)]

    def to_claim(self, state: TaskState, turn: int, available: Available) -> Candidate:
        """The one that a turn goes to when it is claimed: the one that it is with, or another that is available."""
        return self._to_claim(state, turn, available)[0]

    def claim(self, state: TaskState, turn: int, available: Available) -> dict[str, str]:
        """What a claim says: provider, model, and, of several, why it is this one."""
        candidate, reason = self._to_claim(state, turn, available)
        said = {"provider": candidate.provider, "model": candidate.model}
        return said if len(self.all) == 1 else {**said, "reason": reason}

    def _to_claim(self, state: TaskState, turn: int, available: Available) -> tuple[Candidate, str]:
        with_it = self.of_turn(state, turn)
        if available(with_it.provider):
            return with_it, "first" if with_it.index == 0 else "resumed"
        other = self.available_from(available, self._lowest(state))
        return (with_it, "none-available") if other is None else (other, "next")

    def size(self, _state: TaskState, _turn: int, _candidate: Candidate) -> PromptSize:
        """How large the turn's prompt is to one of them, where that counts."""
        return NO_SIZE

    def claimed(self, state: TaskState, claim: events.StepClaimed) -> Candidate:
        """The one that a claim names."""
        named = next((each for each in self.all if each.is_at((claim.provider, claim.model))), None)
        # A claim may have been built just before somebody else's switch was read: the context is too long for it.
        if named is None or named.index < self._lowest(state):
            return self.of_turn(state, claim.turn)
        return named

    def _lowest(self, state: TaskState) -> int:
        """The index of the first one that the conversation fits."""
        switched = self._of(state.switched)
        return switched.index if switched is not None else 0

    def _of(self, switched: events.ModelSwitched | None) -> Candidate | None:
        if switched is None:
            return None
        return next((each for each in self.all if each.is_at((switched.provider, switched.to_model))), None)

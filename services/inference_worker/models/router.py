"""A pool's models where each turn picks the one that is best now (`routing`), not the first that can be asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar

from contracts.retries import AWAY_CODES
from inference_worker.models.candidates import Available, Candidate, Candidates
from inference_worker.models.prompt_size import PromptSize, cached_tokens, prompt_tokens
from inference_worker.models.routing import Option, Prefer, choose, ranked
from inference_worker.models.speeds import Speeds
from inference_worker.models.timed_source import REFUSED
from mesh.clock import lease_clock, now
from mesh.configuration.prices_table import ModelPrices
from mesh.task.limits import output_tokens_max
from mesh.task.state import ModelName, TaskState
from mesh.telemetry import metrics

OUTPUT_TOKENS = 256
"""What an answer is thought to have where nobody has seen one."""


Room = Callable[[str], float]
"""How much of what a provider bears is free, 0 to 1, by its name."""


def free(_: str) -> float:
    """All of it."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Router:
    """What the choice of a pool goes by."""

    prefer: Prefer
    speeds: Speeds
    prices_of: Callable[[str, str], ModelPrices | None] = lambda _provider, _model: None
    """Of a provider and a model; None where nobody has set any."""
    is_closed: Callable[[str], bool] = lambda _: True
    """Whether a provider's breaker is closed: one that may be asked all the same is to be probed."""
    room: Room = free
    max_output_tokens: int | None = None
    dice: random.Random = random.Random()  # noqa: RUF009 - one for all is right
    clock: Callable[[], float] = lease_clock
    now: Callable[[], datetime] = now

    def pick(self, state: TaskState, turn: int, among: Sequence[Candidate]) -> tuple[Candidate, str]:
        """Which of these gets a turn that is claimed, and why."""
        deadline = state.queued.deadline if state.queued is not None else None
        left_seconds = None if deadline is None else (deadline - self.now()).total_seconds()
        choice = choose(self._options(state, turn, among), self.prefer, left_seconds, self.dice)
        return among[choice.option.index], choice.reason

    def best(self, state: TaskState, turn: int, among: Sequence[Candidate]) -> Candidate | None:
        """Which of these takes a turn over; None if there are none."""
        options = self._options(state, turn, among)
        return among[ranked(options, self.prefer)[0].index] if options else None

    def _options(self, state: TaskState, turn: int, among: Sequence[Candidate]) -> list[Option]:
        output_tokens, failed = self._output_tokens(state, turn, among), _failed_at(state, turn)
        # Who has said a first word and never a last one is thought to go on as fast as the fastest, and no faster.
        speeds = [self.speeds.of(each.provider, each.model) for each in among]
        behind = [speed.output_seconds(output_tokens) for speed in speeds]
        fastest = min((seconds for seconds in behind if seconds is not None), default=0.0)
        at = self.clock()
        return [
            Option(
                index=index,
                seconds=_total(speed.expected(size.uncached_tokens, at), fastest if later is None else later),
                is_guess=later is None,
                cost=self._cost(each, size, output_tokens),
                weight=each.weight,
                success=speed.success,
                room=self.room(each.provider),
                idle_seconds=at - speed.tried_at,
                has_prefix=size.cached_tokens > 0,
                just_failed=each.is_at(failed),
                is_probe=not self.is_closed(each.provider),
            )
            for index, ((each, size), speed, later) in enumerate(
                zip(self.sizes(state, turn, among), speeds, behind, strict=True)
            )
        ]

    def sizes(self, state: TaskState, turn: int, among: Sequence[Candidate]) -> Iterator[tuple[Candidate, PromptSize]]:
        """How large the turn's prompt is to each of these."""
        tokens, at = prompt_tokens(state, turn), self.now()
        for each in among:
            yield each, PromptSize(tokens, min(tokens, cached_tokens(state, turn, each.place, at)))

    def _cost(self, candidate: Candidate, size: PromptSize, output_tokens: float) -> float | None:
        prices = self.prices_of(candidate.provider, candidate.model)
        if prices is None:
            return None
        of_cached = prices.input if prices.cached_input is None else prices.cached_input
        return size.uncached_tokens * prices.input + size.cached_tokens * of_cached + output_tokens * prices.output

    def _output_tokens(self, state: TaskState, turn: int, among: Sequence[Candidate]) -> float:
        """What the turn will put out: what answers of these models have lately, within the limits of pool and task."""
        estimate = state.queued.estimate if state.queued is not None and turn == 1 else None
        if estimate is not None and estimate.basis == "median":
            expected: float = estimate.output_tokens
        else:
            seen = [told for each in among if (told := self.speeds.of(each.provider, each.model).output_tokens)]
            expected = sum(seen) / len(seen) if seen else OUTPUT_TOKENS
        limits = [limit for limit in (self.max_output_tokens, output_tokens_max(state)) if limit is not None]
        return min([expected, *limits])


def _total(first_token_seconds: float | None, behind: float) -> float | None:
    return None if first_token_seconds is None else first_token_seconds + behind


@dataclass(frozen=True)
class Routed(Candidates):
    """The models of a pool that has a preference. Their order counts for contexts alone: the next one has more room."""

    left_on: ClassVar[frozenset[str]] = AWAY_CODES | REFUSED
    router: Router
    equal: int = 0
    """The first so many may be chosen among: all, or those that have the model which the request names."""

    @classmethod
    def of(cls, candidates: Candidates, router: Router) -> Routed:
        """The same models, chosen by this router."""
        return cls(candidates.all, router, len(candidates.all))

    def for_model(self, model: str | None) -> Routed:
        """The same for a request that names a model: it is chosen from those that have it, before all others."""
        if model is None:
            return self
        named = [each for each in self.all if each.model == model]
        if not named:
            first = Candidates.for_model(self, model).all
            return replace(self, all=first, equal=1)
        ordered = [*named, *(each for each in self.all if each.model != model)]
        return replace(self, all=tuple(replace(each, index=at) for at, each in enumerate(ordered)), equal=len(named))

    def of_turn(self, state: TaskState, turn: int) -> Candidate:
        """The one that a turn is with: of its last switch, else of its last claim."""
        known = state.turn(turn)
        with_it = self._of(known.switched) or self._at(known.model)
        lowest = self._lowest(state)
        return with_it if with_it is not None and with_it.index >= lowest else self.all[lowest]

    def claim(self, state: TaskState, turn: int, available: Available) -> dict[str, str]:
        """What a claim says: provider, model, and why it is this one."""
        candidate, reason = self._to_claim(state, turn, available)
        metrics.routed(candidate.provider, reason.partition(" ")[0])
        return {"provider": candidate.provider, "model": candidate.model, "reason": reason}

    def after(self, state: TaskState, turn: int, candidate: Candidate, available: Available) -> Candidate | None:
        """The best of the others that may be asked, without those that this claim has left."""
        left = {*state.turn(turn).left, candidate.place}
        others = [
            each for each in self.all[self._lowest(state) :] if each.place not in left and available(each.provider)
        ]
        return self.router.best(state, turn, others)

    def size(self, state: TaskState, turn: int, candidate: Candidate) -> PromptSize:
        """How large the turn's prompt is to one of them."""
        return next(size for _, size in self.router.sizes(state, turn, [candidate]))

    def _to_claim(self, state: TaskState, turn: int, available: Available) -> tuple[Candidate, str]:
        known = state.turn(turn)
        lowest = self._lowest(state)
        spoken = (known.parts or known.reasoning) and not known.outdated
        with_it = self._of(known.switched) or (self._at(known.model_of_text) if spoken else None)
        if with_it is not None and with_it.index >= lowest and available(with_it.provider):
            return with_it, "resumed"
        fitting = self.all[lowest:]
        asked_first = [each for each in fitting if each.index < self.equal and available(each.provider)]
        among = asked_first or [each for each in fitting if available(each.provider)]
        if not among:
            return self.of_turn(state, turn), "none-available"
        return self.router.pick(state, turn, among)

    def _at(self, place: ModelName | None) -> Candidate | None:
        return next((each for each in self.all if each.is_at(place)), None)


def _failed_at(state: TaskState, turn: int) -> ModelName | None:
    """The model at which the last try of a turn has failed; None if it was not tried, or did not fail."""
    tried = state.turn(turn)
    step = str(turn)
    return tried.model if tried.model is not None and state.tries.get((step, state.gen(step))) else None

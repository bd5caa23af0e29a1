"""What a turn's calls of models use: that of its answer, and that of the calls whose answer is not the turn's.

What a provider has told counts. What it has not told, since the call was cut off, is said to be untold, and is never
nothing. A call that was refused uses nothing. An answer that can't be stored is told as a call without one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import structlog

from contracts.journal import events
from contracts.journal.parts import SpentReason, Usage
from inference_worker.models.candidates import Candidate
from inference_worker.models.chunks import Meter, TurnInput
from inference_worker.turn.attempts import Ending
from mesh.configuration.prices_table import ModelPrices
from mesh.errors import BrokerUnavailable, StepLost
from mesh.ledger.prices import priced
from mesh.steps.claimed_step import ClaimedStep

log = structlog.get_logger("inference_worker.turn.spending")

PricesOf = Callable[[str, str], ModelPrices | None]
"""The prices of a model, by its provider's name and its own; None where nobody has set any."""


class _Asked(NamedTuple):
    candidate: Candidate
    meter: Meter


class Spending:
    """The calls of one turn that are under way, or just over. `pool` is the one whose turn it is.

    Use as a context: what makes the turn break off there comes after what its calls have used.
    """

    def __init__(self, step: ClaimedStep, pool: str, prices: PricesOf) -> None:
        self._step = step
        self._pool = pool
        self._prices = prices
        self._asked: list[_Asked] = []
        self._answered: _Asked | None = None

    async def __aenter__(self) -> Spending:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Without the step, or the broker, nothing can be told: whoever takes over says what is lost.
        if isinstance(error, Exception) and not isinstance(error, StepLost | BrokerUnavailable):
            await self.tell("failed")

    def ask(self, candidate: Candidate, turn_input: TurnInput) -> None:
        """A model is asked."""
        self._asked.append(_Asked(candidate, turn_input.meter))

    async def tell(self, reason: SpentReason, but: Candidate | None = None) -> None:
        """Record what the calls that are over have used, maybe without the one that goes on. Raises `StepLost`."""
        over = [each for each in self._asked if each.candidate is not but]
        for candidate, meter in over:
            if meter.spent is not None:
                await self._append(candidate, reason, self._priced(candidate, meter.spent))
        self._asked = [each for each in self._asked if each not in over]

    async def answered(self, ending: Ending) -> Ending:
        """The end of a turn with what its answer has used: as it was told at its end, else up to now.

        Of two models that were asked only the first one may have the turn when its deadline passes before either has
        spoken; the other's is recorded by itself.
        """
        if not self._asked:
            return ending
        self._answered = self._asked[0]
        await self.tell("hedge", but=self._answered.candidate)
        # Until its turn is completed it is a call like any other.
        self._asked = [self._answered]
        candidate, meter = self._answered
        usage = ending.usage if ending.usage.input_tokens else meter.spent or ending.usage
        return ending._replace(usage=self._priced(candidate, usage))

    def place(self) -> tuple[str | None, str | None]:
        """The provider and the model of the answer; those of the claim, where no model was asked."""
        if self._answered is not None:
            return self._answered.candidate.provider, self._answered.candidate.model
        return self._step.claim.provider, self._step.claim.model

    def _priced(self, candidate: Candidate, usage: Usage) -> Usage:
        return priced(self._prices(candidate.provider, candidate.model), usage)

    async def _append(self, candidate: Candidate, reason: SpentReason, usage: Usage) -> None:
        await self._step.append(
            lambda stamp: events.ModelSpent(
                *stamp,
                turn=self._step.work.turn,
                provider=candidate.provider,
                model=candidate.model,
                pool=self._pool,
                reason=reason,
                usage=usage,
            )
        )
        log.info("model.spent", provider=candidate.provider, model=candidate.model, reason=reason)


def no_prices(_provider: str, _model: str) -> None:
    """Nothing has a price."""

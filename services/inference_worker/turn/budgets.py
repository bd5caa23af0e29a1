"""Budgets of tenants, as turns go by them: whether one may begin, what it uses, and whether it is to end early."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from contracts.journal.parts import Usage
from contracts.messages.work import Work
from inference_worker.models.candidates import Candidate
from inference_worker.turn.history import text_bytes
from mesh.admission.estimate import estimate
from mesh.budgets.costs import prices_at, taken_by, thought_to_take
from mesh.budgets.limits import Amount
from mesh.budgets.spending import BYTES_PER_TOKEN, BudgetSpending, CostOf, Release, TurnMeter, free
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration
from mesh.ledger.prices import cost_of_output
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.budget import cost_left_micros, usage_so_far
from mesh.task.conversation import ConversationItem
from mesh.task.failures import StepFailed
from mesh.task.state import TaskState

log = structlog.get_logger("inference_worker.turn.budgets")

EXHAUSTED = "budget-exhausted"
PIECE_CHARACTERS: Final = 256
"""What a model puts out is measured in pieces of about so many, some 60 tokens. To measure each token would cost more
than to store it."""
PIECE_SECONDS: Final = 0.25
"""A slow model's pieces are shorter: so long after one was measured the next one is whole as soon as it is stored."""


class Measured:
    """A turn that is measured: nothing of it, where its tenant has no budget."""

    def __init__(
        self,
        meter: TurnMeter | None = None,
        configuration: Configuration | None = None,
        cost_left_micros: int | None = None,
    ) -> None:
        """`cost_left_micros`: what the turn may cost by its task's own budget; None if it has none."""
        self._meter = meter
        self._configuration = configuration
        self._cost_left = cost_left_micros
        self._cost: CostOf = free
        self._bytes = 0
        self._piece = ""
        self._piece_until = 0.0
        self.is_bounded = meter is not None or cost_left_micros is not None
        """Whether anything bounds it: else nothing is measured."""
        self.is_used_up = False
        """Whether the turn was cut since its tenant's budget is used up, or what its task may cost."""

    def asks(self, candidate: Candidate, shown: Sequence[ConversationItem]) -> None:
        """A model is about to be asked, and shown this."""
        self.measure()
        if self._configuration is None or not self.is_bounded:
            return
        prices = prices_at(self._configuration, candidate.provider, candidate.model)
        reads = taken_by(Usage(input_tokens=text_bytes(shown) // BYTES_PER_TOKEN), prices)
        cost = cost_of_output(prices)
        if self._meter is not None:
            self._meter.asks(reads, cost)
        if self._cost_left is not None:
            self._cost_left -= reads.cost_micros + self._cost(self._bytes // BYTES_PER_TOKEN)
            self._cost, self._bytes = cost, 0

    def put_out(self, text: str) -> bool:
        """It has put out more. True if it is to end here."""
        if self.is_bounded:
            self._piece += text
            if len(self._piece) >= PIECE_CHARACTERS:
                self._cut_if(self.measure())
        return self.is_used_up

    def stores(self) -> None:
        """What was put out is about to be stored: a slow model's piece is measured then, once it has lain for long."""
        if self.is_bounded and time.monotonic() >= self._piece_until:
            self._cut_if(self.measure())

    def measure(self) -> bool:
        """Measure what was put out since the last piece. True if all is used up by then."""
        piece, self._piece = self._piece, ""
        self._piece_until = time.monotonic() + PIECE_SECONDS
        if not piece:
            return False
        is_over = self._meter is not None and self._meter.put_out(piece)
        if self._cost_left is not None:
            self._bytes += len(piece.encode())
            is_over |= self._cost(self._bytes // BYTES_PER_TOKEN) >= self._cost_left
        return is_over

    def _cut_if(self, is_over: bool) -> None:
        if is_over and not self.is_used_up:
            self.is_used_up = True
            log.warning("turn.cut_by_budget")


class BudgetGate:
    """Puts turns off whose tenant has used up a budget: `PutsOff`."""

    def __init__(self, spending: BudgetSpending) -> None:
        self._spending = spending

    def expect(self, work: Work) -> None:
        """What its tenant has left is looked up, if it has a budget."""
        self._spending.expect(work.tenant)

    async def is_put_off(self, work: Work) -> bool:
        """Whether its tenant has nothing left."""
        return await self._spending.blocked(work.tenant) is not None


class TurnBudgets:
    """The budgets that the turns of one configuration go by. Without `spending` there are none."""

    def __init__(self, spending: BudgetSpending | None = None, configuration: Configuration | None = None) -> None:
        self._spending = spending
        self._configuration = configuration

    async def check(self, state: TaskState) -> None:
        """Raise `StepFailed` if the tenant has used up a budget: the turn waits until that frees."""
        blocked = await self._spending.blocked(state.tenant) if self._spending is not None else None
        if blocked is not None:
            seconds = max(0.0, (blocked.until - now()).total_seconds())
            detail = f"the tenant has used up its budget: {blocked.limit.told()}"
            raise StepFailed(EXHAUSTED, detail, retryable=True, retry_after_seconds=seconds)

    @contextmanager
    def measured(self, step: ClaimedStep, turn: int) -> Iterator[Measured]:
        """A block in which a turn is generated. What it has used is what the journal tells of it at the block's end."""
        meter, cost_left = self._begin(step.state, turn), cost_left_micros(step.state)
        if meter is None:
            yield Measured(None, self._configuration, cost_left)
            return
        before, is_told = usage_so_far(step.state), False
        measured = Measured(meter, self._configuration, cost_left)
        try:
            yield measured
            is_told = True
        except StepFailed:
            is_told = True  # What its calls have used was recorded before this was raised.
            raise
        finally:
            measured.measure()
            used = _told(before, usage_so_far(step.state), meter.used) if is_told else meter.used
            meter.ended(used)

    def _begin(self, state: TaskState, turn: int) -> TurnMeter | None:
        queued, request = state.queued, state.request
        if self._spending is None or self._configuration is None or queued is None or request is None:
            return None
        if not self._spending.has_budget(state.tenant):
            return None
        pool = self._configuration.pools[state.pool]
        prices = prices_at(self._configuration, pool.provider, request.model or pool.model)
        before = state.turn(turn - 1).completed
        if before is not None:
            # A conversation grows: as much as the turn before, at least.
            expected = taken_by(before.usage, prices)
        else:
            expected = thought_to_take(queued.estimate or estimate(request, pool), prices)
        return self._spending.begin(state.tenant, expected, _reserved_for(state, turn))


def _reserved_for(state: TaskState, turn: int) -> Release | None:
    """What was reserved for a turn that begins, and nobody has released: of a task's first one, at its first claim."""
    queued = state.queued
    if queued is None or queued.reserved is None or turn != 1 or state.turn(1).claims != 1:
        return None
    return Release(queued.accepted_at, Amount(queued.reserved.tokens, queued.reserved.cost_micros))


def _told(before: Usage, after: Usage, seen: Amount) -> Amount:
    """What a turn has used, by what its task's journal tells before and after it.

    Of a call that was cut off its provider may have told nothing, or not all: then it is no less than what was seen.
    What was thrown away counts where it was put out, and not here once more.
    """
    told = Amount(
        max(0, _tokens(after) - _tokens(before)), max(0, (after.cost_micros or 0) - (before.cost_micros or 0))
    )
    if (after.untold_calls or 0) <= (before.untold_calls or 0):
        return told
    return Amount(max(told.tokens, seen.tokens), max(told.cost_micros, seen.cost_micros))


def _tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens

"""What follows a failed try: another one, a dead letter, or the task's end. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.errors import TaskmeshError
from contracts.messages.work import Work
from contracts.retries import (
    AWAY_CODES,
    AWAY_NAKS_MAX,
    AWAY_POLICY,
    AWAY_SECONDS,
    NAK_SECONDS_MAX,
    PAUSE_CODES,
    PAUSE_SECONDS_MAX,
    PAUSE_SPREAD_SECONDS,
    RetryPolicy,
)
from mesh.task.state import TaskState


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further try: a dead letter."""


CLAIMS_UNCOUNTED_MAX = 100
"""Claims of a turn from which on each of its failures counts, also while its provider is known to be down."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the step again after a delay."""

    delay_seconds: float
    tries: int

    @property
    def by_timer(self) -> bool:
        """Whether it is so long that the step's message must not stay in its queue meanwhile."""
        return self.delay_seconds > NAK_SECONDS_MAX


@dataclass(frozen=True, slots=True)
class Fail:
    """The request itself is wrong: the task ends."""


class StepFailed(TaskmeshError):
    """A step's own failure. `terminal`: the request is at fault, and no other try can succeed.

    `counts` is whether the try is one of those that a step has; it is not while its provider is known to be down.
    `away_seconds`: how long a step waits for a provider that is away (`AWAY_CODES`).
    """

    counts = True
    away_seconds = AWAY_SECONDS

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        terminal: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.terminal = terminal
        self.retry_after_seconds = retry_after_seconds


def decide_failure(
    state: TaskState, work: Work, error: StepFailed, policy: RetryPolicy, random_fraction: float
) -> Retry | GiveUp | Fail:
    """What follows a failed try. Tries are counted in the journal, so that crashes and deploys don't eat them."""
    if error.terminal:
        return Fail()
    if error.code in PAUSE_CODES:
        return _while_paused(state, work, error, random_fraction)
    counts = error.counts or state.turn(work.turn).claims >= CLAIMS_UNCOUNTED_MAX
    if counts and error.retryable and error.code in AWAY_CODES:
        return _while_away(state, work, error, random_fraction)
    failed = state.tries.get((work.step, work.gen), 0)
    tries = failed + 1 if counts else max(1, failed)
    of_step = max(1, tries - state.tries_away(work.step, work.gen))
    if not error.retryable or (counts and of_step >= policy.tries_max):
        return GiveUp()
    # What is not counted has no number for a timer of its own; the breaker says when, whatever the provider asks for.
    retry_after_seconds = error.retry_after_seconds if counts else None
    return Retry(policy.delay_seconds(of_step, random_fraction, retry_after_seconds), tries)


def _while_paused(state: TaskState, work: Work, error: StepFailed, random_fraction: float) -> Retry:
    """The next try of a turn that waits for its tenant's budget. It has a number, for its timer, and counts nowhere."""
    waits = state.tries_away(work.step, work.gen) + 1
    delay_seconds = min(error.retry_after_seconds or 0.0, PAUSE_SECONDS_MAX) + PAUSE_SPREAD_SECONDS * random_fraction
    if waits > AWAY_NAKS_MAX:
        # Each wait by nak uses up a delivery.
        delay_seconds = max(delay_seconds, NAK_SECONDS_MAX + 1.0)
    return Retry(delay_seconds, state.tries.get((work.step, work.gen), 0) + 1)


def _while_away(state: TaskState, work: Work, error: StepFailed, random_fraction: float) -> Retry | GiveUp:
    """The next try of a turn whose provider is away. It has a number, for its timer, and counts for nothing."""
    since, at = state.away_since(work.step, work.gen), state.changed_at
    if since is not None and at is not None and (at - since).total_seconds() >= error.away_seconds:
        return GiveUp()
    waits = state.tries_away(work.step, work.gen) + 1
    delay_seconds = max(AWAY_POLICY.delay_seconds(waits, random_fraction), error.retry_after_seconds or 0.0)
    if waits > AWAY_NAKS_MAX:
        delay_seconds += NAK_SECONDS_MAX + 1.0
    return Retry(delay_seconds, state.tries.get((work.step, work.gen), 0) + 1)

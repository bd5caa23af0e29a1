"""A source behind its breaker: calls are refused while it is open, and their outcomes counted while it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from contracts.records.providers import OpenReason
from inference_worker.models.breaker import Breaker, Probe
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.models.watched_source import WatchedCall
from mesh.clock import lease_clock
from mesh.providers.breaker_rules import (
    Window,
)
from mesh.task.failures import StepFailed

FAULTS = frozenset(
    {
        "provider-overloaded",
        "provider-error",
        "provider-disconnected",
        "provider-timeout",
        "provider-unreachable",
        "provider-loading",
    }
)
"""Failures that are the provider's own. One that says no to a request, a key or a rate is well."""
UNAVAILABLE = "provider-unavailable"


class Guarded:
    """Watches a source for its breaker: calls are refused while it is open, and their outcomes counted while it is not.

    A try that fails while the breaker is not closed is the provider's, and not counted as the step's.
    """

    def __init__(self, breaker: Breaker, changed: Callable[[], None]) -> None:
        self._breaker = breaker
        self._changed = changed

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        """A call. Raises `StepFailed` with `provider-unavailable` while the breaker is open."""
        return turn, _Call(self._breaker, self._changed)


class _Call(WatchedCall):
    """One stream, as its breaker counts it: one outcome, and one first token."""

    def __init__(self, breaker: Breaker, changed: Callable[[], None]) -> None:
        self._breaker = breaker
        self._changed = changed
        self._epoch = breaker.epoch
        self._probe: Probe | None = None
        self._loop = asyncio.get_running_loop()
        self._spoke_at: float | None = None
        if not breaker.is_closed:
            if not breaker.is_available or breaker.probe is None:
                unavailable = StepFailed(UNAVAILABLE, f"the breaker of {breaker.provider} is open", retryable=True)
                unavailable.counts = False
                raise unavailable
            self._probe = breaker.probe
            self._probe.begun = True
            changed()
        self.hears_all = self._probe is not None
        slow_seconds = breaker.settings.slow_first_token_seconds
        self._slow = None if slow_seconds is None else self._loop.call_later(slow_seconds, self._is_slow)

    def heard(self, chunk: Chunk) -> None:
        """A chunk came."""
        self._spoke()
        if isinstance(chunk, Finished):
            self._tell(bad=False)

    def _spoke(self) -> None:
        if self._spoke_at is None:
            self._spoke_at = self._loop.time()
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None
                self._add(self._breaker.latencies, bad=False)
        elif self._probe is not None and self._loop.time() - self._spoke_at >= self._breaker.settings.open_seconds:
            self._answer(None)  # A long answer that goes on is one: the others need not wait for its end.

    def failed(self, error: StepFailed) -> None:
        """It failed. Whoever refuses a request has answered it, and says nothing about its health."""
        if error.code in FAULTS:
            self._tell(bad=True)
            if not self._breaker.is_closed:
                error.counts = False
        elif self._probe is not None:
            self._answer(None)

    def over(self, characters: int) -> None:
        """The stream is closed, perhaps by its reader: a probe that said nothing yet is free again."""
        if self._slow is not None:
            self._slow.cancel()
        if self._probe is not None and not self._probe.answered:
            if self._spoke_at is not None:
                self._answer(None)
            else:
                self._probe.begun = False
                self._changed()

    def _tell(self, *, bad: bool) -> None:
        if self._probe is not None:
            self._answer("failures" if bad else None)
        else:
            self._add(self._breaker.failures, bad=bad)

    def _is_slow(self) -> None:
        self._slow = None
        if self._probe is not None:
            self._answer("latency")
        else:
            self._add(self._breaker.latencies, bad=True)

    def _add(self, window: Window, *, bad: bool) -> None:
        if self._probe is not None or self._epoch != self._breaker.epoch or not self._breaker.is_closed:
            return
        at = lease_clock()
        window.add(at, bad=bad)
        if bad:
            self._breaker.judge(at)
            if self._breaker.opening is not None:
                self._changed()

    def _answer(self, failed: OpenReason | None) -> None:
        if self._probe is not None and not self._probe.answered:
            self._probe.answer(failed)
            self._changed()

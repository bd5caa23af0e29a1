"""A source whose calls are timed, so that others may be chosen before it, or after."""

from __future__ import annotations

from collections.abc import Callable

from contracts.records.speeds import ModelSums
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.models.guarded_source import FAULTS
from inference_worker.models.prompt_size import BYTES_PER_TOKEN
from inference_worker.models.speeds import Speeds
from inference_worker.models.watched_source import WatchedCall
from mesh.task.failures import StepFailed

REFUSED = frozenset(
    {"rate-limited", "provider-overloaded", "quota-exhausted", "provider-unauthorized", "model-not-found"}
)
"""What one provider refuses, and another may do."""
NOT_SERVED = FAULTS | REFUSED
"""Failures after which another provider would have been the better choice."""


class Timed:
    """Watches a source by `clock`, in seconds."""

    def __init__(self, provider: str, speeds: Speeds, clock: Callable[[], float]) -> None:
        self._provider = provider
        self._speeds = speeds
        self._clock = clock

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        """A call, which is timed."""
        return turn, _Call(self._provider, turn, self._speeds, self._clock)


class _Call(WatchedCall):
    def __init__(self, provider: str, turn: TurnInput, speeds: Speeds, clock: Callable[[], float]) -> None:
        self._provider = provider
        self._turn = turn
        self._speeds = speeds
        self._clock = clock
        self._speed = speeds.of(provider, turn.model)
        self._began_at = clock()
        self._spoke_at: float | None = None
        self._has_ended = False
        self._number = self._speed.begin(self._began_at)
        speeds.began(provider, turn.model)

    def heard(self, chunk: Chunk) -> None:
        """The first chunk came, or its end. What was there of the turn before the call is no work of this one."""
        if self._spoke_at is None:
            self._spoke_at = self._clock()
            self._tell_first_token(self._spoke_at - self._began_at)
        if isinstance(chunk, Finished):
            self._has_ended = True
            self._tell_output(chunk.usage.output_tokens)

    def failed(self, error: StepFailed) -> None:
        """It has failed; what it has said before is no measure of its speed, and what it let wait for is."""
        if error.code in NOT_SERVED:
            if self._speed.is_known(self._began_at):
                self._tell_wait()
            self.tell(failures=1, broken=int(self._spoke_at is not None))
        self._has_ended = True

    def over(self, characters: int) -> None:
        """The stream is closed. If its reader did that before the first token, it had waited for at least so long; if
        later, such as at a deadline, it has had so much in so long: who crawls may never come to an end."""
        if not self._has_ended:
            self._tell_output(-(-characters // BYTES_PER_TOKEN))
            self._tell_wait()
        self._speed.end(self._number)

    def tell(self, **seen: float) -> None:
        """Count what was seen, here and for the others."""
        self._speeds.saw(ModelSums(provider=self._provider, model=self._turn.model, **seen), self._clock())  # type: ignore[arg-type]  # its fields, by name

    def _tell_output(self, tokens: int) -> None:
        if self._spoke_at is not None and tokens and not self._turn.prefix:
            self.tell(answers=1, output_tokens=tokens, output_seconds=self._clock() - self._spoke_at)

    def _tell_wait(self) -> None:
        """Without a first token the time until now counts, if that is longer than what was expected."""
        at = self._clock()
        expected = self._speed.first_token_seconds(self._turn.size.uncached_tokens, self._began_at)
        if self._spoke_at is None and expected is not None and at - self._began_at > expected:
            self._spoke_at = at
            self._tell_first_token(at - self._began_at)

    def _tell_first_token(self, seconds: float) -> None:
        in_flight, tokens = self._speed.spoke(self._number), self._turn.size.uncached_tokens
        self.tell(
            calls=1,
            first_token_seconds=seconds,
            input_tokens=tokens,
            input_squares=tokens**2,
            input_by_seconds=tokens * seconds,
            in_flight=in_flight,
        )

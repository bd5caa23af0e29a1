"""How fast each model answers, as this worker knows it: from its own calls, and from what the others tell of theirs.

Pure: the time is passed in, in seconds of any one clock that only goes forward. What is told is sums, so that it does
not matter who has seen a call: all that hear the same come to the same.

An estimate is of the newest calls. What is older than `HALF_LIFE_SECONDS` counts half, and never for more than
`CALLS_MAX` calls; a call that took less than half of what was expected, or more than twice, halves what there was.
So a server that has become five times slower is known by its fifth answer, however many were quick, one that has
recovered by the first that is tried, and a single odd call among many moves little.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from contracts.records.speeds import MODELS_TOLD_MAX, ModelSums

HALF_LIFE_SECONDS = 10.0
CALLS_MIN = 2.0
"""Age alone takes no more than down to these: where calls are rare, one of them does not decide."""
CALLS_MAX = 20.0
SURPRISE = 2.0
"""By what factor a call has to be off to be news."""
SPREAD_PART_MIN = 0.1
"""Prompts whose sizes are within this part of their mean tell nothing of what size costs."""
LEAST_SECONDS = 10.0
LOAD_FACTOR_MAX = 3.0
HANGS_SECONDS = 10.0
"""Who has given no token in so long is known to be slow, though nobody knows how slow."""
STALE_SECONDS = 2.0
CALLS_RECOVERED = 0.5
"""What all of before counts, once a call after a while shows that it has become better. A call that is slower by chance
is frequent, and one that is quicker by chance is not."""
MODELS_MAX = 1_024
"""Models that are remembered; of more, those that were called last. Requests may name any."""
NEVER = float("inf")

Place = tuple[str, str]
"""A provider's name, and a model's there."""


@dataclass(slots=True)
class _Sums:
    """As `ModelSums`, of calls that count less and less."""

    begun: float = 0
    calls: float = 0
    failures: float = 0
    first_token_seconds: float = 0
    input_tokens: float = 0
    input_squares: float = 0
    input_by_seconds: float = 0
    in_flight: float = 0
    answers: float = 0
    output_tokens: float = 0
    output_seconds: float = 0
    broken: float = 0

    @property
    def whole(self) -> float:
        """Calls that gave a first token and did not break off after it, as far as is known."""
        return max(0.0, self.calls - self.broken)

    @property
    def tried(self) -> float:
        """All calls that were answered or failed."""
        return self.whole + self.failures

    def shrink(self, factor: float) -> None:
        """Let all of it count less."""
        self.begun *= factor
        self.calls *= factor
        self.failures *= factor
        self.first_token_seconds *= factor
        self.input_tokens *= factor
        self.input_squares *= factor
        self.input_by_seconds *= factor
        self.in_flight *= factor
        self.answers *= factor
        self.output_tokens *= factor
        self.output_seconds *= factor
        self.broken *= factor

    def add(self, told: ModelSums) -> None:
        """Count what was told in full."""
        self.begun += told.begun
        self.calls += told.calls
        self.failures += told.failures
        self.first_token_seconds += told.first_token_seconds
        self.input_tokens += told.input_tokens
        self.input_squares += told.input_squares
        self.input_by_seconds += told.input_by_seconds
        self.in_flight += told.in_flight
        self.answers += told.answers
        self.output_tokens += told.output_tokens
        self.output_seconds += told.output_seconds
        self.broken += told.broken


class Speed:
    """What is known of one model. Times are of the clock that is passed in."""

    def __init__(self) -> None:
        self._sums = _Sums()
        self._least = _Least()
        self._merged_at = 0.0
        self.tried_at = -NEVER
        """When anybody has last begun a call, or told of one."""
        self._waiting: dict[int, float] = {}
        self._running: dict[int, int] = {}
        """The calls of this worker that are under way, and how many others were as each began."""
        self._next = 0

    def is_known(self, at: float) -> bool:
        """Whether a call has come to its end, or several have begun to answer and were left; or one seems to hang."""
        hangs = any(at - since >= HANGS_SECONDS for since in self._waiting.values())
        return self._sums.answers > 0 or self._sums.calls > 1 or hangs

    @property
    def output_tokens(self) -> float | None:
        """How much an answer has lately; None if there was none."""
        return self._sums.output_tokens / self._sums.answers if self._sums.answers else None

    @property
    def success(self) -> float:
        """The part of calls that the provider did not fail, 0 to 1, as it is thought to be: 1 without any."""
        return (self._sums.whole + 1) / (self._sums.tried + 1)

    def begin(self, at: float) -> int:
        """A call of this worker begins: its number."""
        self._next += 1
        self._running[self._next] = len(self._running)
        self._waiting[self._next] = at
        self.tried_at = at
        return self._next

    def spoke(self, call: int) -> int:
        """The first token of a call has come, or it is over: how many others were under way as it began."""
        self._waiting.pop(call, None)
        return self._running.get(call, 0)

    def end(self, call: int) -> None:
        """A call is over."""
        self._waiting.pop(call, None)
        self._running.pop(call, None)

    def merge(self, at: float, told: ModelSums) -> None:
        """Count what was seen, here or by another worker."""
        self.tried_at = max(self.tried_at, at)
        if not (told.calls or told.failures or told.answers):
            return
        sums = self._sums
        counted = sums.tried
        if counted:
            age_seconds = max(0.0, at - self._merged_at)
            kept = max(counted * 0.5 ** (age_seconds / HALF_LIFE_SECONDS), min(counted, CALLS_MIN))
            news = self._news(told)
            if news == "faster" and age_seconds >= STALE_SECONDS:
                kept = min(kept, CALLS_RECOVERED)
            elif news is not None:
                kept /= SURPRISE
            sums.shrink(min(kept, CALLS_MAX) / counted)
        sums.add(told)
        if told.calls:
            self._least.add(at, told.first_token_seconds / told.calls)
        self._merged_at = at

    def first_token_seconds(self, input_tokens: float, at: float) -> float | None:
        """How long the first token of a prompt may take, of which so much is in no cache; None if nobody knows.

        What it took longer than at best is put down to load, and taken for more or less as this worker has more or
        fewer calls there now. It is at least as long as its calls have waited by now: those tell first that a server
        hangs.
        """
        waited = sum(at - since for since in self._waiting.values()) / max(1, len(self._waiting))
        if not self._sums.calls:
            return waited if self._waiting else None
        expected = self._on_the_line(input_tokens)
        by_load = max(0.0, self._sums.first_token_seconds / self._sums.calls - self._least.value)
        load = (len(self._running) + 1) / (self._sums.in_flight / self._sums.calls + 1)
        return max(expected + by_load * (min(load, LOAD_FACTOR_MAX) - 1), waited, 0.0)

    def expected(self, input_tokens: float, at: float) -> float | None:
        """The same, once it `is_known`."""
        return self.first_token_seconds(input_tokens, at) if self.is_known(at) else None

    @property
    def seconds_per_input_token(self) -> float:
        """How much longer the first token takes for each token of a prompt: the slope of a line through the calls.

        0 where prompts are too much alike to tell. A prompt of nothing takes no time less than nothing.
        """
        calls, tokens = self._sums.calls, self._sums.input_tokens
        if calls < CALLS_MIN or not tokens:
            return 0.0
        mean = tokens / calls
        spread = self._sums.input_squares / calls - mean * mean
        if spread <= (SPREAD_PART_MIN * mean) ** 2:
            return 0.0
        mean_seconds = self._sums.first_token_seconds / calls
        slope = (self._sums.input_by_seconds / calls - mean * mean_seconds) / spread
        return min(max(slope, 0.0), mean_seconds / mean)

    def output_seconds(self, output_tokens: float) -> float | None:
        """How long so many tokens take behind the first; None if nobody knows."""
        told = self._sums.output_tokens
        return output_tokens * self._sums.output_seconds / told if told else None

    def _on_the_line(self, input_tokens: float) -> float:
        sums = self._sums
        mean_seconds, mean = sums.first_token_seconds / sums.calls, sums.input_tokens / sums.calls
        return max(0.0, mean_seconds + self.seconds_per_input_token * (input_tokens - mean))

    def _news(self, told: ModelSums) -> Literal["faster", "slower"] | None:
        sums = self._sums
        pairs: list[tuple[float, float]] = []
        if told.calls and sums.calls:
            pairs.append((told.first_token_seconds / told.calls, self._on_the_line(told.input_tokens / told.calls)))
        if told.output_tokens and sums.output_tokens:
            pairs.append((told.output_seconds / told.output_tokens, sums.output_seconds / sums.output_tokens))
        if any(now > before * SURPRISE for now, before in pairs):
            return "slower"
        failed_most = (told.calls > 0 and sums.failures - sums.broken > sums.calls) or (
            told.answers > 0 and sums.broken > sums.whole
        )
        return "faster" if failed_most or any(now * SURPRISE < before for now, before in pairs) else None


class _Least:
    """The least of the last `LEAST_SECONDS` or twice that, whenever anything came."""

    def __init__(self) -> None:
        self._since = -NEVER
        self._before = self._now = NEVER

    def add(self, at: float, value: float) -> None:
        if at - self._since > LEAST_SECONDS:
            self._since, self._before, self._now = at, self._now, NEVER
        self._now = min(self._now, value)

    @property
    def value(self) -> float:
        """It; infinite before anything came."""
        return min(self._before, self._now)


class Speeds:
    """Those of all models, and what this worker has seen since it last told the others."""

    def __init__(self) -> None:
        self._speeds: OrderedDict[Place, Speed] = OrderedDict()
        self._untold: dict[Place, _Sums] = {}

    def of(self, provider: str, model: str) -> Speed:
        """What is known of a model."""
        place = (provider, model)
        speed = self._speeds.get(place)
        if speed is None:
            speed = self._speeds[place] = Speed()
            while len(self._speeds) > MODELS_MAX:
                self._speeds.popitem(last=False)
        self._speeds.move_to_end(place)
        return speed

    def began(self, provider: str, model: str) -> None:
        """A call of this worker began."""
        self._untold_of((provider, model)).begun += 1

    def saw(self, told: ModelSums, at: float) -> None:
        """A call of this worker."""
        self.of(told.provider, told.model).merge(at, told)
        self._untold_of((told.provider, told.model)).add(told)

    def _untold_of(self, place: Place) -> _Sums:
        """To add to: it is the newest then."""
        untold = self._untold.pop(place) if place in self._untold else _Sums()
        self._untold[place] = untold
        return untold

    def heard(self, models: Iterable[ModelSums], at: float) -> None:
        """What another worker has told."""
        for told in models:
            self.of(told.provider, told.model).merge(at, told)

    def take_untold(self) -> list[ModelSums]:
        """What this worker has seen since this was last asked."""
        untold, self._untold = self._untold, {}
        newest = list(untold.items())[-MODELS_TOLD_MAX:]
        return [ModelSums(provider=provider, model=model, **asdict(sums)) for (provider, model), sums in newest]

"""A fleet of workers that choose among simulated providers: no clock, no network, the same dice each time.

What is real is the choosing, the estimates, and what workers tell each other once a second.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from contracts.records.speeds import ModelSums
from inference_worker.models.routing import Option, Prefer, choose
from inference_worker.models.speeds import Speeds

REPORT_SECONDS = 1.0
MODEL = "m"
CACHED_PART = 0.1


@dataclass
class Provider:
    """How one behaves. `slower` and `fails` are of the time; `places`: calls at a time, before they wait."""

    first_token_seconds: float = 0.2
    seconds_per_input_token: float = 0.0
    seconds_per_output_token: float = 0.005
    price_input: float = 0.0
    price_output: float = 0.0
    places: int = 1_000_000
    slower: Callable[[float], float] = lambda _: 1.0
    fails: Callable[[float], bool] = lambda _: False
    weight: float = 1.0
    free_at: list[float] = field(default_factory=list)


@dataclass
class Turn:
    """One that was served: when it was chosen, where, how long it took, what it cost, and whether it came too late."""

    at: float
    provider: int
    seconds: float
    cost: float
    failed: bool
    late: bool
    why: str


@dataclass(frozen=True)
class Work:
    """A turn to come. `task`: whose next turn it is, with so much of its prompt from the turn before."""

    input_tokens: int = 500
    output_tokens: int = 100
    deadline_seconds: float | None = None
    prefix_tokens: int = 0
    task: int | None = None


class Fleet:
    """So many workers, and what they did."""

    def __init__(self, providers: Sequence[Provider], prefer: Prefer, workers: int = 8, seed: int = 1) -> None:
        self.turns: list[Turn] = []
        self._providers = providers
        self._prefer = prefer
        self._speeds = [Speeds() for _ in range(workers)]
        self._dice = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._prefix_at: dict[int, int] = {}
        self.fixed: int | None = None
        """The one that gets all, where the fleet is to have no choice."""

    def at(self, when: float, do: Callable[[float], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (when, next(self._order), do))

    def run(self, seconds: float, per_second: float, work: Callable[[random.Random], Work] = lambda _: Work()) -> None:
        """Turns come at random, so many in a second on average, each at any worker."""
        when = 0.0
        while (when := when + self._dice.expovariate(per_second)) < seconds:
            self.at(when, self._arrival(work))
        for tick in range(int(seconds / REPORT_SECONDS)):
            self.at((tick + 1) * REPORT_SECONDS, self._report)
        while self._events:
            when, _, do = heapq.heappop(self._events)
            do(when)

    def _arrival(self, work: Callable[[random.Random], Work]) -> Callable[[float], None]:
        worker = self._dice.randrange(len(self._speeds))
        return lambda now: self._serve(now, worker, work(self._dice))

    def _report(self, now: float) -> None:
        for teller in self._speeds:
            told = teller.take_untold()
            for listener in self._speeds:
                if listener is not teller:
                    listener.heard(told, now)

    def _options(self, now: float, speeds: Speeds, work: Work) -> list[Option]:
        options = []
        known = [
            speeds.of(str(index), MODEL).output_seconds(work.output_tokens) for index in range(len(self._providers))
        ]
        fastest = min((seconds for seconds in known if seconds is not None), default=0.0)
        kept = self._prefix_at.get(work.task) if work.task is not None else None
        for index, provider in enumerate(self._providers):
            speed = speeds.of(str(index), MODEL)
            cached = work.prefix_tokens if kept == index else 0
            first = speed.first_token_seconds(work.input_tokens - cached, now) if speed.is_known(now) else None
            behind = known[index]
            options.append(
                Option(
                    index=index,
                    seconds=None if first is None else first + (fastest if behind is None else behind),
                    is_guess=behind is None,
                    cost=_cost(provider, work, cached),
                    weight=provider.weight,
                    success=speed.success,
                    idle_seconds=now - speed.tried_at,
                    has_prefix=kept == index,
                )
            )
        return options

    def _serve(self, now: float, worker: int, work: Work) -> None:
        speeds, why = self._speeds[worker], "fixed"
        if self.fixed is None:
            choice = choose(self._options(now, speeds, work), self._prefer, work.deadline_seconds, self._dice)
            index, why = choice.option.index, choice.why
        else:
            index = self.fixed
        provider = self._providers[index]
        speed = speeds.of(str(index), MODEL)
        call = speed.begin(now)
        speeds.saw(ModelSums(provider=str(index), model=MODEL, begun=1), now)
        cached = work.prefix_tokens if work.task is not None and self._prefix_at.get(work.task) == index else 0
        noise = self._dice.lognormvariate(0, 0.25) * provider.slower(now)
        uncached = work.input_tokens - cached
        first = (provider.first_token_seconds + uncached * provider.seconds_per_input_token) * noise
        rest = work.output_tokens * provider.seconds_per_output_token * noise
        begins = now
        if len(provider.free_at) >= provider.places:
            begins = max(now, heapq.heappop(provider.free_at))
        ends = begins + first + rest
        heapq.heappush(provider.free_at, ends)
        if work.task is not None:
            self._prefix_at[work.task] = index
        first_at, failed = begins + first, provider.fails(now)

        def spoke(at: float) -> None:
            in_flight = speed.spoke(call)
            if failed:
                speed.end(call)
                speeds.saw(ModelSums(provider=str(index), model=MODEL, failures=1), at)
                return
            seconds = first_at - now
            told = ModelSums(
                provider=str(index),
                model=MODEL,
                calls=1,
                first_token_seconds=seconds,
                input_tokens=uncached,
                input_squares=uncached**2,
                input_by_seconds=uncached * seconds,
                in_flight=in_flight,
            )
            speeds.saw(told, at)

        def ended(at: float) -> None:
            speed.end(call)
            told = ModelSums(
                provider=str(index), model=MODEL, answers=1, output_tokens=work.output_tokens, output_seconds=rest
            )
            speeds.saw(told, at)

        if failed:
            first_at = now + 0.05
        self.at(first_at, spoke)
        if not failed:
            self.at(ends, ended)
        seconds = (first_at if failed else ends) - now
        late = work.deadline_seconds is not None and seconds > work.deadline_seconds
        cost = 0.0 if failed else _cost(provider, work, cached)
        self.turns.append(Turn(now, index, seconds, cost, failed, late, why))

    def share(self, provider: int, since: float, until: float) -> float:
        """The part of turns that a provider got in a time."""
        of_then = [turn.provider == provider for turn in self.turns if since <= turn.at < until]
        return sum(of_then) / max(1, len(of_then))

    @property
    def seconds(self) -> float:
        """What all turns took together."""
        return sum(turn.seconds for turn in self.turns)

    @property
    def cost(self) -> float:
        """What all turns cost together."""
        return sum(turn.cost for turn in self.turns)


def _cost(provider: Provider, work: Work, cached: int) -> float:
    read = work.input_tokens - cached + cached * CACHED_PART
    return read * provider.price_input + work.output_tokens * provider.price_output

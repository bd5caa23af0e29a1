"""A fleet of workers at one provider in simulated time: the own code of `mesh.pacing`, without a broker."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.codec import decode, encode
from contracts.journal.parts import Usage
from contracts.records.pace import PaceRecord
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.pacer import Pacer, Place, Turn
from mesh.pacing.rules import Wanted, book, sound

START = 1_800_000_000.0
ROUND_TRIP_SECONDS = 0.003


@dataclass
class Provider:
    """Enforces its limits by token buckets that hold `seconds` of what is allowed, and are full at first."""

    settings: PaceSettings
    seconds: float = 60.0
    at: float = START
    left: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    taken: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    running: int = 0
    running_most: int = 0

    def __post_init__(self) -> None:
        self.left = {limit: self.seconds * allowed / 60 for limit, allowed in self.settings.by_minute.items()}

    def takes(self, at: float, tokens: tuple[int, int]) -> bool:
        """Whether a request that comes now is let through."""
        for limit, allowed in self.settings.by_minute.items():
            self.left[limit] = min(self.seconds * allowed / 60, self.left[limit] + (at - self.at) * allowed / 60)
        self.at = at
        cost = {"requests": 1, "tokens": sum(tokens), "input_tokens": tokens[0], "output_tokens": tokens[1]}
        if any(self.left[limit] < cost[limit] for limit in self.settings.by_minute):
            self.refused += 1
            return False
        for limit in self.settings.by_minute:
            self.left[limit] -= cost[limit]
            self.used[limit] = self.used.get(limit, 0) + cost[limit]
        self.taken += 1
        self.first_at = self.first_at or at
        self.last_at = at
        return True

    def share_used(self, limit: str) -> float:
        """Of what it would have allowed in that time, without what its bucket held at first."""
        allowed = self.settings.by_minute[limit] / 60 * (self.last_at - self.first_at)  # type: ignore[index]
        return self.used[limit] / allowed


class Event(NamedTuple):
    """What happens to a worker, unless it is dead by then."""

    worker: int
    happens: Callable[[float], None]


class Fleet:
    """Workers, each with its pacer, that work on one queue. `places`: turns of a worker at a time."""

    def __init__(self, provider: Provider, workers: int, seed: int, places: int = 64) -> None:
        self.random = random.Random(seed)
        self.provider = provider
        self.places = places
        self.pacers = [Pacer("main", provider.settings, f"worker-{n}", random.Random(n)) for n in range(workers)]
        self.record: bytes | None = None
        self.revision = 0
        self.queue: list[tuple[int, int]] = []
        self.busy = dict.fromkeys(range(workers), 0)
        self.dead: set[int] = set()
        self.done = 0
        self.done_by = dict.fromkeys(range(workers), 0)
        self.turn_seconds = (0.2, 1.0)
        self.tells = False
        """Whether the provider tells what is left."""
        self.foreign = 0.0
        """Requests a second of others that have the same key."""
        self.writes = 0
        """Compare-and-sets, those that others won among them."""
        self.lost = 0
        """Those that others won."""
        self.reads = 0
        self.begun_at: list[float] = []
        self.far: dict[int, float] = {}
        """The round trip of a worker to the broker, where it is another."""
        self.clocks: dict[int, Callable[[float], float]] = {}
        """By how many seconds a worker's clock is ahead at a time, where it is."""
        self._events: list[tuple[float, int, Event]] = []
        self._count = 0
        self._looks = dict.fromkeys(range(workers), 0)
        self._writing: set[int] = set()
        for pacer in self.pacers:
            pacer.must_look = False

    def set_record(self, record: PaceRecord) -> None:
        """What is booked when it begins."""
        self.record, self.revision = encode(record), 1
        for pacer in self.pacers:
            pacer.see(record, START)

    def _at(self, at: float, worker: int, happens: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, Event(worker, happens)))

    def run(self, seconds: float, kill_at: float | None = None) -> None:
        """Until all is done, or so long."""
        for worker in range(len(self.pacers)):
            self._look_at(worker, START + self.random.uniform(0, 0.01))
        if kill_at is not None:
            self._at(START + kill_at, 0, lambda _: self._kill(0))
        while self._events:
            at, _, event = heapq.heappop(self._events)
            if at > START + seconds or (not self.queue and not any(self.busy.values())):
                return
            if event.worker in self.dead:
                continue
            event.happens(at)

    def _now(self, worker: int, at: float) -> float:
        """What a worker takes the time to be."""
        return at + self.clocks[worker](at) if worker in self.clocks else at

    def _look(self, worker: int, at: float) -> None:
        pacer, now = self.pacers[worker], self._now(worker, at)
        while self.queue and self.busy[worker] < self.places and (place := pacer.take(now)) is not None:
            self._begin(worker, at, place, self.queue.pop())
        if self.queue and self.busy[worker] < self.places:
            pacer.ask(now)
        if worker in self._writing:
            return
        if (wanted := pacer.wanted(now)) is not None:
            self._writing.add(worker)
            # Read half a round trip later, and written another one after that: another may have written by then.
            round_trip = self.random.uniform(0.5, 1.5) * self.far.get(worker, ROUND_TRIP_SECONDS)
            self._at(at + round_trip / 2, worker, lambda at: self._read(worker, at, wanted, now, round_trip))
            return
        times = [pacer.next_at(now), pacer.changes_at(now) or now + 60]
        self._look_at(worker, at + max(0.001, min(times) - now) + self.random.uniform(0, 0.003))

    def _read(self, worker: int, at: float, wanted: Wanted, asked_at: float, round_trip: float) -> None:
        self.reads += 1
        record = decode(self.record, PaceRecord) if self.record is not None else None
        read = self.revision
        self._at(at + round_trip, worker, lambda at: self._write(worker, at, wanted, record, read, asked_at))

    def _look_at(self, worker: int, at: float) -> None:
        """Look then, and no more when it was to look before."""
        self._looks[worker] += 1
        number = self._looks[worker]
        self._at(at, worker, lambda at: self._look(worker, at) if number == self._looks[worker] else None)

    def _kill(self, worker: int) -> None:
        self.dead.add(worker)
        self.busy[worker] = 0

    def _write(
        self, worker: int, at: float, wanted: Wanted, record: PaceRecord | None, revision: int, asked_at: float
    ) -> None:
        pacer, now = self.pacers[worker], self._now(worker, at)
        self._writing.discard(worker)
        pacer.see(sound(record, now) if record is not None else None, now)
        booked = book(pacer.record, "main", pacer.settings, f"worker-{worker}", wanted, asked_at)
        if booked.is_new:
            self.writes += 1
        if revision == self.revision or not booked.is_new:
            if booked.is_new:
                self.record, self.revision = encode(booked.record), self.revision + 1
            pacer.got(wanted, booked, now)
            pause_seconds = 0.002
        else:
            self.lost += 1
            pause_seconds = pacer.lost(self.far.get(worker, ROUND_TRIP_SECONDS))
        self._look_at(worker, at + self.random.uniform(0, pause_seconds))

    def _begin(self, worker: int, at: float, place: Place, tokens: tuple[int, int]) -> None:
        turn = self.pacers[worker].begin(place, tokens[0] * 4, None)
        self.begun_at.append(at)
        self.busy[worker] += 1
        self.provider.running += 1
        self.provider.running_most = max(self.provider.running_most, self.provider.running)
        if self.foreign:
            self.provider.left["requests"] -= self.foreign * (at - self.provider.at)
        if self.tells:
            self.pacers[worker].hear({}, dict(self.provider.left), self._now(worker, at))  # type: ignore[arg-type]
        if self.provider.takes(at, tokens):
            seconds = self.random.uniform(*self.turn_seconds)
            self._at(at + seconds, worker, lambda at: self._end(worker, at, turn, place, tokens))
        else:
            turn.refused(1.0, self._now(worker, at))
            self.queue.append(tokens)
            self._at(at + 0.001, worker, lambda at: self._end(worker, at, None, place, tokens))

    def _end(self, worker: int, at: float, turn: Turn | None, place: Place, tokens: tuple[int, int]) -> None:
        self.provider.running -= 1
        self.busy[worker] -= 1
        if turn is not None:
            turn.used(Usage(*tokens))
            self.done += 1
            self.done_by[worker] += 1
        place.release()
        self._look(worker, at)


def turns(count: int, seed: int) -> list[tuple[int, int]]:
    """Tokens read and put out, a hundred together on average, and quite uneven."""
    chance = random.Random(seed)
    return [(chance.randint(10, 90), int(min(500, chance.expovariate(1 / 50)) + 1)) for _ in range(count)]

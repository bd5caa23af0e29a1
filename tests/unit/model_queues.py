"""Model servers as queues, in simulated time, and workers that keep their places taken: what limits are tried on."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from inference_worker.capacity.followed_limit import FollowedLimit
from inference_worker.capacity.probed_limit import ProbedLimit
from inference_worker.capacity.signals import ServerLoad

SECONDS_PER_TOKEN = 0.02
FIRST_TOKEN_SECONDS = 0.2

Speed = Callable[[int], float]
"""The speed of a stream, as a part of that of one alone, while so many run."""


def shared_beyond(room: int) -> Speed:
    """All run at once, and share what there is beyond `room`."""
    return lambda running: min(1.0, room / max(running, 1))


def batching(room: int, part_lost_each_doubling: float) -> Speed:
    """As a batching engine: each doubling costs a stream a part of its speed, and beyond `room` nothing is gained."""

    def speed(running: int) -> float:
        batch = min(max(running, 1), room)
        doublings = max(0.0, (batch).bit_length() - 1)
        return float((1.0 - part_lost_each_doubling) ** doublings * min(1.0, room / max(running, 1)))

    return speed


@dataclass
class _Turn:
    number: int
    tokens: int
    began_at: float
    epoch: int | None
    left_seconds: float = 0.0


@dataclass
class Tried:
    """What came of a run: the limit as it was over time, what the server refused, and the tokens that it gave."""

    limits: list[tuple[float, int]] = field(default_factory=list)
    refused: int = 0
    tokens: int = 0

    def limit_from(self, seconds: float) -> int:
        """The limit's median from then on."""
        inside = sorted(limit for at, limit in self.limits if at >= seconds)
        return inside[len(inside) // 2]


def probe(
    limit: ProbedLimit,
    seconds: float,
    *,
    slots: int | None = None,
    speed: Speed = lambda _: 1.0,
    refuses_beyond: int | None = None,
    noise: float = 0.3,
    seed: int = 1,
    demand: Callable[[float], int] = lambda _: 1_000_000,
) -> Tried:
    """A worker against a server of `slots`, that runs so many and has others wait, at that speed, in steps of 20 ms.

    Turns have 20 to 400 tokens. `demand`: how many turns there are to run at once, at a time.
    """
    chance, at, number = random.Random(seed), 0.0, 0
    running: list[_Turn] = []
    waiting: list[_Turn] = []
    tried = Tried()
    retries: list[float] = []
    while at < seconds:
        tried.limits.append((at, limit.limit))
        while len(running) + len(waiting) < min(limit.limit, demand(at) - len(retries)):
            in_flight = len(running) + len(waiting)
            if refuses_beyond is not None and in_flight >= refuses_beyond:
                tried.refused += 1
                limit.refused(in_flight, at)
                heapq.heappush(retries, at + 1.0)
                break
            number += 1
            tokens = chance.randint(20, 400)
            epoch = limit.epoch if limit.counts(in_flight + 1, 1) else None
            wanted = (FIRST_TOKEN_SECONDS + tokens * SECONDS_PER_TOKEN) * chance.lognormvariate(0.0, noise)
            waiting.append(_Turn(number, tokens, at, epoch, wanted))
        while waiting and (slots is None or len(running) < slots):
            running.append(waiting.pop(0))
        part = speed(len(running)) * SECONDS_PER_TOKEN
        for turn in running:
            turn.left_seconds -= part
        at += SECONDS_PER_TOKEN
        for turn in [each for each in running if each.left_seconds <= 0]:
            running.remove(turn)
            tried.tokens += turn.tokens
            if turn.epoch is not None:
                limit.ended(turn.epoch, turn.tokens, at - turn.began_at, at, 1)
        while retries and retries[0] <= at:
            heapq.heappop(retries)
    return tried


@dataclass
class Followed:
    """What came of a run: what the server took back, how full its cache was, and how many ran, over the second half."""

    taken_back: int
    cache_most: float
    cache_mean: float
    running_mean: float
    waiting_mean: float


def follow(
    limits: list[FollowedLimit],
    seconds: float,
    *,
    cache_tokens: int,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    poll_seconds: float = 1.0,
    seed: int = 1,
) -> Followed:
    """Workers against an engine whose cache holds so many tokens of all requests, as vLLM's does, in steps of 50 ms.

    Each running request gains a token a step. What finds no room waits; where none is left for one more token the
    youngest request is taken back, and begins again.
    """
    chance, at, polled_at, taken_back = random.Random(seed), 0.0, 0.0, 0
    step = 0.05
    running: list[list[int]] = []  # worker, tokens in the cache, tokens at the end, prompt
    waiting: list[list[int]] = []
    seen: list[tuple[float, int, int]] = []
    while at < seconds:
        for worker, limit in enumerate(limits):
            mine = sum(turn[0] == worker for turn in (*running, *waiting))
            for _ in range(max(0, max(1, limit.limit // len(limits)) - mine)):
                prompt = chance.randint(*prompt_tokens)
                waiting.append([worker, prompt, prompt + chance.randint(*output_tokens), prompt])
                mine += 1
                limit.began(mine, len(limits))
        while waiting and sum(turn[1] for turn in running) + waiting[0][1] <= cache_tokens:
            running.append(waiting.pop(0))
        for turn in running:
            turn[1] += 1
        while sum(turn[1] for turn in running) > cache_tokens:
            victim = running.pop()
            victim[1] = victim[3]
            waiting.insert(0, victim)
            taken_back += 1
        for turn in [each for each in running if each[1] >= each[2]]:
            running.remove(turn)
            limits[turn[0]].ended(len(limits))
        at += step
        used = sum(turn[1] for turn in running) / cache_tokens
        if at - polled_at >= poll_seconds:
            polled_at = at
            load = ServerLoad(running=len(running), waiting=len(waiting), cache=used, taken_back=taken_back)
            for worker, limit in enumerate(limits):
                mine = sum(turn[0] == worker for turn in (*running, *waiting))
                limit.read(load, mine * len(limits), at)
        if at >= seconds / 2:
            seen.append((used, len(running), len(waiting)))
    return Followed(
        taken_back,
        max(used for used, _, _ in seen),
        sum(used for used, _, _ in seen) / len(seen),
        sum(ran for _, ran, _ in seen) / len(seen),
        sum(waited for _, _, waited in seen) / len(seen),
    )

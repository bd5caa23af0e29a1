"""Which of a pool's models a turn goes to, where the pool has a preference; by one score. Pure, but for the dice.

    score = seconds ^ a × cost ^ (1 - a) / success / min(1, 4 × room)       the lowest is the best

`seconds` is what the turn is expected to take, to its last token; `cost` what it is expected to cost; both as parts of
the best one's. `a` is 1 for `latency`, 0.05 for `cost` (of two that cost alike the faster one), and 1/2 for `balanced`:
there twice as fast may cost twice as much. `success` is the part of calls that the provider does not fail, `room` how
much of what it bears is free, 0 to 1. Who has just failed at this very step counts `FAILED_FACTOR` times. With `cost`
and `balanced` only those are chosen from that meet the task's deadline; if none does, one that nobody knows; without
any the fastest.

Two are drawn by lot, each with its weight over the eighth power of its score, and the better one gets the turn. So one
that is a fifth worse gets 1 turn in 30, and those that are alike share by their weights: a fleet whose workers all know
the same does not move all at once. Now and then a model that nobody has tried lately gets a turn, so that one that has
become better is found; how often is bounded by what that costs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

POWER: Final = 8.0
TIE: Final = 1.05
"""Scores that are no further apart are alike."""
PREFIX_FACTOR: Final = 1.1
"""A task stays where its prefix is cached, as long as no other is better by more than this."""
COST_MIN_PART: Final = 0.01
"""Of the dearest: what is cheaper, such as a model of one's own that costs nothing, counts as this."""
ROOM_FACTOR: Final = 4.0
FAILED_FACTOR: Final = 3.0
SUCCESS_MIN: Final = 0.02
EXPLORE_AFTER_SECONDS: Final = 2.0
"""Who was tried by anybody in so long is known well enough."""
EXPLORE_PART_MAX: Final = 0.2
FORGOTTEN_SECONDS: Final = 3_600.0
"""Half-life of what is held against a model that nobody tries: one that hung is tried again within some hours, however
little there is to do."""
UNKNOWN_SECONDS: Final = 30.0
"""What a turn may take where nobody knows: a deadline that is nearer is a reason to find out who is fast."""
DOUBTED_SECONDS: Final = 60.0
"""Half-life of the belief that a model can't meet a deadline, while nobody tries it."""

Prefer = Literal["cost", "latency", "balanced"]
Why = Literal["only", "probe", "prefix", "explore", "best", "near"]
_EXPLORE_COSTS: Final[dict[Prefer, float]] = {"latency": 0.05, "balanced": 0.05, "cost": 0.02}
"""How much worse turns may get on average for the sake of exploring: so a model five times as slow gets 1 in 80. What
it costs is known without, and only its speed is not."""
_EXPONENTS: Final[dict[Prefer, float]] = {"latency": 1.0, "balanced": 0.5, "cost": 0.05}


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may have the turn, and what is expected of it. `index` is its place in the pool."""

    index: int
    seconds: float | None = None
    """Until the last token; None: nobody knows. Then it is thought to be as fast as the fastest."""
    is_guess: bool = False
    """No answer was seen to end there: `seconds` is the least that it may take."""
    cost: float | None = None
    """In millionths of the currency; None: nobody has said."""
    weight: float = 1.0
    success: float = 1.0
    room: float = 1.0
    idle_seconds: float = 0.0
    """Since anybody has tried it."""
    has_prefix: bool = False
    just_failed: bool = False
    is_probe: bool = False
    """Its breaker is not closed, and this turn is to find out."""


class Choice(NamedTuple):
    """Which one, and why."""

    option: Option
    why: Why
    of: int
    """How many there were to choose from."""

    @property
    def reason(self) -> str:
        """As a claim has it: a word and figures, such as `best seconds=1.84 cost_micros=310 of=3`."""
        parts: list[str] = [self.why]
        if self.option.seconds is not None:
            parts.append(f"seconds={self.option.seconds:.2f}")
        if self.option.cost is not None:
            parts.append(f"cost_micros={self.option.cost:.0f}")
        return " ".join([*parts, f"of={self.of}"])


def choose(options: Sequence[Option], prefer: Prefer, left_seconds: float | None, dice: random.Random) -> Choice:
    """Choose among at least one. `left_seconds`: until the task's deadline; None without one."""
    count = len(options)
    probe = next((each for each in options if each.is_probe), None)
    if probe is not None:
        return Choice(probe, "probe", count)
    able = [each for each in options if each.room > 0] or list(options)
    if len(able) == 1:
        return Choice(able[0], "only", count)
    known = [each for each in able if each.seconds is not None] or able
    if left_seconds is not None and prefer != "latency":
        in_time = [each for each in known if _seconds(each) <= left_seconds]
        if in_time:
            known = in_time
        else:
            # None is known to meet it: one that may, or else the one that is the least late.
            known, prefer = [each for each in able if each.seconds is None] or able, "latency"
    scores = scores_of(known, prefer)
    best = known[min(range(len(known)), key=scores.__getitem__)]
    explored = _to_explore(able, best, prefer, left_seconds, dice)
    if explored is not None:
        return Choice(explored, "explore", count)
    kept = next((at for at, each in enumerate(known) if each.has_prefix), None)
    if kept is not None and scores[kept] <= min(scores) * PREFIX_FACTOR:
        return Choice(known[kept], "prefix", count)
    chances = [each.weight * (min(scores) / score) ** POWER for each, score in zip(known, scores, strict=True)]
    first, second = dice.choices(range(len(known)), chances, k=2)
    drawn = known[second if scores[second] * TIE < scores[first] else first]
    return Choice(drawn, "best" if drawn is best else "near", count)


def ranked(options: Sequence[Option], prefer: Prefer) -> list[Option]:
    """The same, the best first: for who has to leave the one that was chosen."""
    scores = scores_of(options, prefer)
    return [options[at] for at in sorted(range(len(options)), key=scores.__getitem__)]


def scores_of(options: Sequence[Option], prefer: Prefer) -> list[float]:
    """The score of each: the lowest is the best."""
    exponent = _EXPONENTS[prefer]
    known = [each.seconds for each in options if each.seconds is not None]
    least = max(min(known, default=1.0), 1e-3)
    told = [each.cost for each in options if each.cost is not None]
    floor = max(max(told, default=1.0) * COST_MIN_PART, 1e-6)
    cheapest = max(min(told, default=floor), floor)
    scores = []
    for each in options:
        time_part = max(least if each.seconds is None else each.seconds, 1e-3) / least
        cost_part = max(cheapest if each.cost is None else each.cost, floor) / cheapest
        score = time_part**exponent * cost_part ** (1 - exponent)
        score /= max(each.success, SUCCESS_MIN) * min(1.0, max(ROOM_FACTOR * each.room, 0.01))
        scores.append(score * FAILED_FACTOR if each.just_failed else score)
    return scores


def _seconds(option: Option) -> float:
    """What a deadline is held against."""
    if option.seconds is None:
        return UNKNOWN_SECONDS
    return max(option.seconds, UNKNOWN_SECONDS) if option.is_guess else option.seconds


def _to_explore(
    options: Sequence[Option], best: Option, prefer: Prefer, left_seconds: float | None, dice: random.Random
) -> Option | None:
    """One that was not tried lately, if it is its time. Several share what exploring may cost, so that one which is
    hopeless hides none that has become better."""
    waiting = [
        each
        for each in options
        if each is not best and each.idle_seconds >= EXPLORE_AFTER_SECONDS and _may_meet(each, left_seconds)
    ]
    if not waiting:
        return None
    drawn = dice.choice(waiting)
    believed = 0.5 ** (drawn.idle_seconds / FORGOTTEN_SECONDS)
    seconds = None if drawn.seconds is None else drawn.seconds * believed
    # What a call costs that fails is little more than another one.
    fails = (1.0 - drawn.success) * believed
    there, here = scores_of([msgspec.structs.replace(drawn, seconds=seconds, success=1.0), best], prefer)
    worse = there / here - 1 + fails
    part = min(EXPLORE_PART_MAX, _EXPLORE_COSTS[prefer] / max(worse, 1e-3))
    return drawn if dice.random() < part else None


def _may_meet(option: Option, left_seconds: float | None) -> bool:
    """Whether it may end in time, as far as what was seen of it is still believed."""
    if left_seconds is None or option.seconds is None:
        return True
    believed: float = option.seconds * 0.5 ** (option.idle_seconds / DOUBTED_SECONDS)
    return believed <= left_seconds

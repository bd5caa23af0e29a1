"""A limit found by trying, for a server that tells nothing: by the speed of its answers, and by its refusals. Pure.

The speed of a stream, in tokens a second from the request on, is the same at 4 turns at once and at 8 while the server
has room; what waits or shares makes it less. So two levels show where its room ends:

    throughput  ^            ______ as much as it can
                |          /:
                |        /  :        the knee, where a line through a lower level
                |      /    :        meets the throughput of the higher one
                +------+----+-----+-> turns at once
                     lower knee  saturated

A level is measured over turns that began with its places taken. While twice the places give at least 1.6 times the
tokens, they double; then the knee is the limit. It holds for a minute. What was measured is forgotten after five: then
two thirds of the limit are measured again, and from there a tenth more each time, up to the next knee. A refusal cuts
at once: a server that refuses says how many it has taken, and so many are the limit, which grows a tenth at a time from
there.

This is no control by latency alone, as TCP Vegas' is: a batching server may halve the speed of a stream, and still
gives more tokens in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

START = 4
SAMPLES_MIN = 24
"""A level is measured over so many turns, or twice its limit. The first ones, as many as its limit, don't count: the
server has yet to come to rest."""
WORTH = 0.65
"""Of twice the places so much of twice the tokens must come: 2 to the power of this is about 1.6."""
STEP = 1.5
"""Levels closer to each other say nothing: their difference is noise."""
GROWTH = 1.1
HOLD_SECONDS = 60.0
"""How long a limit that was found holds before more is tried."""
KNOWN_SECONDS = 300.0
CUT_PART = 0.5
"""Refusals within a second cut a limit to no less than this part of it: a single one may have another reason."""
CUT_SECONDS = 1.0
TAKEN_PART = 0.8
"""A turn counts for a level if it began with so much of it under way, and no more than it."""
OLDER_PART = 0.5
"""What an earlier measurement of the same level weighs beside a new one."""


@dataclass(slots=True)
class _Level:
    tokens: float = 0.0
    seconds: float = 0.0
    turns: int = 0
    at: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second of one stream."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def after(self, before: _Level | None, at: float) -> _Level:
        """This one, at that time, with what was measured before."""
        if before is None:
            return replace(self, at=at)
        return _Level(
            self.tokens + OLDER_PART * before.tokens,
            self.seconds + OLDER_PART * before.seconds,
            self.turns,
            at,
        )


class ProbedLimit:
    """How many turns a server bears at once, of all workers. `why` says what that follows from."""

    def __init__(self, limit_min: int, limit_max: int, start: int = START, epoch: int = 0) -> None:
        self._min, self._max = limit_min, limit_max
        self._limit = self._bounded(start)
        self._now = _Level()
        self._begun = 0
        self._known: dict[int, _Level] = {}
        self._is_doubling = True
        self._cut_from = self._limit
        self._cut_at = float("-inf")
        self._held_until = float("-inf")
        self.may_grow = True
        """Whether there is no other reason against more."""
        self.epoch = epoch
        """Counts the levels: what began at an earlier one says nothing about this one."""
        self.why = "nothing is known yet"

    @property
    def limit(self) -> int:
        """Turns at once."""
        return self._limit

    def counts(self, in_flight: int, workers: int) -> bool:
        """A turn begins, and so many are under way with it here: whether it shows how this level does."""
        self._begun += workers
        is_taken = TAKEN_PART * self._limit <= in_flight * workers < self._limit + workers
        return is_taken and self._begun > self._limit

    def ended(self, epoch: int, tokens: int, seconds: float, at: float, workers: int) -> None:
        """A turn that counted has ended well: begun at the level of that epoch, so many tokens in so many seconds."""
        if epoch != self.epoch or tokens <= 0 or seconds <= 0:
            return
        self._now.tokens += tokens
        self._now.seconds += seconds
        self._now.turns += 1
        # Each worker sees its part of them.
        if self._now.turns >= max(SAMPLES_MIN, 2 * self._limit) / workers:
            self._measured(at)

    def refused(self, in_flight: int, at: float) -> None:
        """The server refuses a turn for want of room, and has so many others, of all workers."""
        if at - self._cut_at >= CUT_SECONDS:
            self._cut_from, self._cut_at = self._limit, at
        cut = self._bounded(max(in_flight, int(self._cut_from * CUT_PART)))
        if cut >= self._limit:
            return
        self._move(cut)
        self._is_doubling, self._held_until = False, at + HOLD_SECONDS
        self._known = {level: known for level, known in self._known.items() if level <= cut}
        self.why = f"the server refused more than {cut}"

    def _measured(self, at: float) -> None:
        known = {level: each for level, each in self._known.items() if at - each.at < KNOWN_SECONDS}
        before = known.get(self._limit)
        self._known = known | {self._limit: self._now.after(before, at)}
        base, worse = self._pair()
        if worse is not None and before is None and self._limit in (base, worse):
            self._move(self._limit)  # Looked at twice, before it is believed.
            return
        if worse is not None and base == worse and base > self._min:
            # Nothing lower is known: is it the end of the room, or well within it?
            self._move(self._bounded(int(base / STEP)))
            self.why = "it tries how fast fewer are"
        elif worse is not None:
            self._settle(base, worse, at)
        elif self.may_grow and (self._is_doubling or at >= self._held_until):
            reached = max(base, self._limit)
            self.why = "more at once give more tokens"
            self._move(self._bounded(reached * 2 if self._is_doubling else math.ceil(reached * GROWTH)))
        else:
            self._move(max(base, self._limit))

    def _pair(self) -> tuple[int, int | None]:
        """The highest level that is known to be worth its places, and the next one that is not, if any.

        They are the same where the lowest level that is known is not known to be worth anything.
        """
        levels = sorted(self._known)
        base = levels[0]
        for level in levels[1:]:
            if level < base * STEP:
                continue
            if self._worth(base, level) < WORTH:
                return (base, level) if base == self._min or base != levels[0] else (base, base)
            base = level
        if base != levels[0] or base == self._min or self._is_doubling:
            return base, None
        return base, base

    def _worth(self, lower: int, higher: int) -> float:
        """How much of the added places came out as tokens: 1 all of them, 0 none."""
        slower = self._known[higher].speed / max(self._known[lower].speed, 1e-9)
        return 1.0 + math.log(max(slower, 1e-9)) / math.log(higher / lower)

    def _settle(self, base: int, worse: int, at: float) -> None:
        """The limit is where the line through a lower level meets the throughput of the level that is worse.

        The line goes through the level below the base, if one is known: the base may lie a little beyond the knee.
        """
        line = max((level for level in self._known if level * STEP <= base), default=base)
        knee = round(worse * self._known[worse].speed / max(self._known[line].speed, 1e-9))
        self._is_doubling = False
        if at >= self._held_until or self._limit > knee:
            self._held_until = at + HOLD_SECONDS
            self._move(self._bounded(max(line, min(worse, knee))))
            self.why = f"{worse} at once give no more tokens than {self._limit}"
        else:
            self._move(self._limit)

    def _move(self, limit: int) -> None:
        if limit != self._limit:
            self._begun = 0
        self._limit, self._now = limit, _Level()
        self.epoch += 1

    def _bounded(self, limit: int) -> int:
        return max(self._min, min(self._max, limit))

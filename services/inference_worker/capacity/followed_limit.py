"""A limit that follows what the server tells: its queue, and its cache. Pure, but for what it is told.

    slots told                     as many as there are slots
    nothing waits, cache has room  one more for each turn that ended with all places taken (so it doubles with each
                                   round of turns), up to what the cache bears; after a cut one more for each round
    something waits, twice         the part that the server works on, of what it has
    the cache is all but full, or  the part that fits into the cache, and nothing new is begun until there is so much
    a request was taken back       room

A request's part of the cache grows while it is generated. So the limit grows by turns that have ended, whose growth
has been seen, and not by the room that a burst of young ones seems to leave. The server's figures are of all its
clients: a cut is a part of what this mesh has there, so that clients which do alike give way alike.
"""

from __future__ import annotations

from inference_worker.capacity.signals import ServerLoad

START = 8
"""Turns at once, of all workers, before anything is known of a server."""
CACHE_TARGET = 0.8
"""How full the cache is to be: what runs there goes on growing."""
CACHE_FULL = 0.9
"""From here on less is begun at once."""
SHARE_HALF_LIFE_SECONDS = 120.0
"""How fast it is forgotten how much of the cache a request took at most."""
CUT_SECONDS = 2.0
"""How long after a cut the next one may follow: turns that run need time to end."""
WAITING_READINGS = 2
"""A server that has just been given requests has some waiting for a moment: so often it must say so."""


class FollowedLimit:
    """How many turns a server bears at once, of all workers. `why` says what that follows from."""

    def __init__(self, limit_min: int, limit_max: int) -> None:
        self._min, self._max = limit_min, limit_max
        self._limit = float(self._bounded(START))
        self._is_wide = False
        """It has begun with all places, and nothing has spoken against that yet."""
        self._is_doubling = True
        self._share = 0.0
        """The part of the cache that a request has, at its most."""
        self._read_at: float | None = None
        self._cut_at = float("-inf")
        self._waiting_readings = 0
        self._taken_back: int | None = None
        self._is_pressed = False
        self._others = 0
        """What other clients have there at the least."""
        self._has_slots = False
        self._is_silent = False
        self._may_grow = 0
        """For so many turns that end: all places were taken not long ago."""
        self.why = "nothing is known yet"

    @property
    def limit(self) -> int:
        """Turns at once."""
        return int(self._limit)

    def widen(self, limit: int) -> None:
        """Begin with so many, all that there are, and never have more: who has set no limit has no slow start."""
        if limit == self._max:
            return
        self._max = max(limit, self._min)
        if self._is_wide or self._read_at is None:
            self._is_wide, self._limit = True, self._ceiling()
        self._limit = min(self._limit, float(self._max))

    def read(self, load: ServerLoad, in_flight: int, at: float) -> None:
        """The server has told this, at a time in seconds, while about so many turns of all workers are under way."""
        self._is_silent = False
        self._notice(load, in_flight, at)
        self._has_slots = load.slots is not None
        if load.slots is not None:
            self._is_wide = False
            self._limit, self._is_pressed = float(self._bounded(load.slots)), False
            self.why = f"{load.slots} slots"
            return
        self._waiting_readings = self._waiting_readings + 1 if load.waiting else 0
        taken_back = self._taken_back is not None and load.taken_back > self._taken_back
        self._taken_back = load.taken_back
        is_full = load.cache is not None and load.cache >= CACHE_FULL
        self._is_pressed = is_full or taken_back or self._waiting_readings >= WAITING_READINGS
        if self._is_pressed:
            self._cut(load, in_flight, at, self._reason(load, is_full=is_full, taken_back=taken_back))
        else:
            self._limit = min(self._limit, self._ceiling())
            if load.cache is not None:
                self.why = f"cache at {load.cache:.0%}, nothing waits"
            else:
                self.why = f"{load.running} run, nothing waits"

    def silent(self) -> None:
        """The server has told nothing: what nobody sees does not grow."""
        self._may_grow = 0
        self._is_silent = True

    def began(self, in_flight: int, workers: int) -> None:
        """A turn begins, and so many are under way here with it; `workers` share the server."""
        if in_flight * workers >= self._limit - workers and not self._is_silent:
            self._may_grow = self.limit

    def ended(self, workers: int) -> None:
        """A turn has ended well. `workers` share the server, and grow alike."""
        if self._is_pressed or self._has_slots or self._may_grow <= 0:
            return
        self._may_grow -= workers
        more = workers if self._is_doubling else workers / max(self._limit, 1.0)
        self._limit = min(self._limit + more, self._ceiling())

    def refused(self, in_flight: int, at: float) -> None:
        """The server refuses a turn for want of room, and has so many others, of all workers."""
        if in_flight >= self.limit or at - self._cut_at < CUT_SECONDS:
            return
        self._cut_at, self._is_doubling, self._is_wide = at, False, False
        self._limit = float(self._bounded(max(in_flight, self.limit // 2)))
        self.why = "the server refused one more"

    def _notice(self, load: ServerLoad, in_flight: int, at: float) -> None:
        if self._read_at is not None:
            self._share *= 0.5 ** (max(0.0, at - self._read_at) / SHARE_HALF_LIFE_SECONDS)
        self._read_at = at
        if load.cache is not None and load.running:
            self._share = max(self._share, load.cache / load.running)
        # How many other workers have is not known: what the limit allows may all be this mesh's.
        self._others = max(0, (load.running or 0) + load.waiting - max(in_flight, self.limit))

    def _cut(self, load: ServerLoad, in_flight: int, at: float, reason: str) -> None:
        self.why = reason
        # What was begun before the last cut has yet to end: until then less would change nothing but what comes after.
        if at - self._cut_at < CUT_SECONDS or in_flight > max(self._limit, 1.0) < self._max:
            return
        self._cut_at, self._is_doubling = at, False
        part = 1.0
        if load.cache is not None and load.cache > CACHE_TARGET:
            part = CACHE_TARGET / load.cache
        if load.waiting and load.running:
            part = min(part, load.running / (load.running + load.waiting))
        # What was not used is given up first, though not at one stroke: a worker may just have had nothing to do.
        used = max(float(in_flight), min(self._limit / 2, START) if self._is_wide else self._limit / 2)
        self._is_wide = False
        self._limit = max(float(self._min), min(self._limit, used) * part)

    def _reason(self, load: ServerLoad, *, is_full: bool, taken_back: bool) -> str:
        if taken_back:
            return "a request was taken back for want of cache"
        return f"cache at {load.cache:.0%}" if is_full else f"{load.waiting} wait at the server"

    def _ceiling(self) -> float:
        """What the cache bears beside what others have in it."""
        fits = CACHE_TARGET / self._share - self._others if self._share > 0 else float("inf")
        return max(float(self._min), min(float(self._max), fits))

    def _bounded(self, limit: int) -> int:
        return max(self._min, min(self._max, limit))

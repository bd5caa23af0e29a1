"""A follower of a journal (PROTOCOL.md, section 16): pages that may be stale, live events that may be lost or late.

The journal grows, and its deltas are purged, whatever the follower does. What it hands on is judged as it is handed on.
Sequences are left out: they ascend as n does, and where one is missing the other is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model import checker
from tests.model.rules import Off, Rules

Phase = Literal["begin", "place", "look", "read", "live", "ended"]
"""What the follower does next: subscribe, look up its cursor, look for the last event, read, take live events."""


class Bounds(NamedTuple):
    """How often each misfortune may still happen."""

    lost: int = 0
    """Live events that get lost."""
    stale_reads: int = 0
    overflows: int = 0
    """Losses of all that waits: the buffer is full, or the connection is made again."""
    purges: int = 0


class Following(NamedTuple):
    """Everything: the journal, what is on its way, and the follower."""

    length: int
    """How many events were stored."""
    left: Bounds
    next_n: int
    handed: int
    """n of the last event that the client has, by itself or in a snapshot: what it was really given."""
    purged: bool = False
    """Whether the deltas of completed turns are gone."""
    live: tuple[int, ...] | None = None
    """n of live events on their way, in order; None without a subscription."""
    overflowed: bool = False
    phase: Phase = "begin"
    gap: bool = False
    """Whether events behind the cursor are lost to it."""
    end_n: int = -1
    """Up to where the journal is to be read."""
    must_reach: int = -1
    """n of an event that was seen live behind a hole."""
    may_idle: bool = False
    """Whether something has happened that may cost an idle time: a lost live event, or a stale look at the end."""


Step = checker.Step[Following]


@dataclass(frozen=True, slots=True)
class FollowedJournal:
    """A journal, and what may happen while it is followed."""

    name: str
    bounds: Bounds
    events: str = "qddcde"
    """q: queued, d: a delta, c: a completed turn, e: the end."""
    begun: int = 1
    """How many of them are stored when the follower comes."""
    cursor: int = -1
    """n of the last event that the client has."""
    page_max: int = 2

    def model(self, off: Rules) -> FollowerModel:
        """The model with some rules switched off."""
        return FollowerModel(self, off)

    def kept(self, length: int, purged: bool) -> list[int]:
        """n of the events that are there."""
        completed = self.events.rfind("c", 0, length)
        return [n for n in range(length) if not (purged and self.events[n] == "d" and n < completed)]


class FollowerModel:
    """All that may come next, under the rules that are not switched off."""

    def __init__(self, journal: FollowedJournal, off: Rules) -> None:
        self._journal = journal
        self._off = off

    def initial(self) -> Following:
        """A client comes with its cursor."""
        cursor = self._journal.cursor
        return Following(self._journal.begun, self._journal.bounds, next_n=cursor + 1, handed=cursor)

    def judge_rest(self, state: Following) -> str | None:
        """What is wrong where nothing comes any more, or None."""
        return None if state.phase == "ended" else "the follower does not come to the end"

    def after(self, state: Following) -> Iterator[Step]:
        """Every step from a state."""
        yield from self._writers(state)
        match state.phase:
            case "begin":
                live = None if Off.LATE_SUBSCRIPTION in self._off else ()
                begun = state._replace(live=live, phase="place" if state.next_n else "look")
                yield Step("follower", "begins" if live is None else "subscribes", begun)
            case "place":
                yield from self._place(state)
            case "look":
                yield from self._look(state)
            case "read" if state.gap:
                yield from self._over_the_gap(state)
            case "read" if state.next_n <= state.end_n:
                yield from self._read(state)
            case "read":
                yield Step("follower", "has read up to the end", self._goes_live(state))
            case "live":
                yield from self._take(state)
            case "ended":
                pass

    def _writers(self, state: Following) -> Iterator[Step]:
        n, live, left = state.length, state.live, state.left
        if n < len(self._journal.events):
            stored = state._replace(length=n + 1)
            if live is not None and not state.overflowed:
                stored = stored._replace(live=(*live, n))
            yield Step("writer", f"appends n={n} ({self._journal.events[n]})", stored)
            if live is not None and left.lost:
                lost = state._replace(length=n + 1, may_idle=True, left=left._replace(lost=left.lost - 1))
                yield Step("writer", f"appends n={n}, which gets lost on its way", lost, progress=False)
        if left.purges and "c" in self._journal.events[:n]:
            purged = state._replace(purged=True, left=left._replace(purges=left.purges - 1))
            yield Step("retention", "purges the deltas of completed turns", purged, progress=False)
        if live and left.overflows:
            spent = left._replace(overflows=left.overflows - 1)
            yield Step("buffer", "overflows", state._replace(live=(), overflowed=True, left=spent), progress=False)

    # The journal

    def _seen(self, state: Following) -> Iterator[tuple[int, bool]]:
        """How much of the journal a read may see, and whether that is stale."""
        yield state.length, False
        if state.left.stale_reads:
            yield from ((length, True) for length in range(state.length))

    def _step(self, state: Following, changed: Following, what: str, stale: bool, violation: str | None = None) -> Step:
        if not stale:
            return Step("follower", what, changed, violation)
        left = state.left._replace(stale_reads=state.left.stale_reads - 1)
        return Step("follower", f"{what}, by a stale read", changed._replace(left=left), violation, progress=False)

    def _place(self, state: Following) -> Iterator[Step]:
        """Find out where the cursor lies. If it is no event any more, nobody knows what is behind it."""
        cursor = state.next_n - 1
        for length, stale in self._seen(state):
            there = cursor in self._journal.kept(length, state.purged)
            what = "finds its cursor" if there else "does not find its cursor"
            yield self._step(state, state._replace(phase="look", gap=not there), what, stale)

    def _look(self, state: Following) -> Iterator[Step]:
        """Find out up to where there is something to read. What overflows from now on is read once more."""
        overflowed = state.overflowed and Off.OVERFLOW_FORGOTTEN in self._off
        for length, stale in self._seen(state):
            looked = state._replace(
                phase="read",
                overflowed=overflowed,
                end_n=max(state.must_reach, length - 1),
                may_idle=state.may_idle or stale,
            )
            yield self._step(state, looked, f"sees n={length - 1} at the end", stale)

    def _read(self, state: Following) -> Iterator[Step]:
        for length, stale in self._seen(state):
            there = [n for n in self._journal.kept(length, state.purged) if n >= state.next_n]
            page = there[: self._journal.page_max]
            if page:
                changed, violation = self._hand_on(state, page, Off.JOURNAL_HOLE)
                if changed.next_n <= page[-1]:
                    changed = changed._replace(gap=True)
                yield self._step(state, changed, f"reads {_ns(page)}", stale, violation)
            elif Off.STALE_PAGE_IS_END in self._off:
                yield self._step(state, self._goes_live(state), "reads nothing, and takes that for the end", stale)
            else:
                yield self._step(state, state, "reads nothing, and will read again", stale)

    def _over_the_gap(self, state: Following) -> Iterator[Step]:
        """Say what is lost, and what the journal came to. Its end is never part of that: it follows."""
        for length, stale in self._seen(state):
            kept = [n for n in self._journal.kept(length, state.purged) if self._journal.events[n] != "e"]
            covered = kept[-1] if kept else -1
            changed = state._replace(gap=False, next_n=covered + 1, handed=covered)
            yield self._step(state, changed, f"tells of a gap, and what there is up to n={covered}", stale)

    def _goes_live(self, state: Following) -> Following:
        live = () if state.live is None else state.live
        forgets = Off.OVERFLOW_FORGOTTEN in self._off
        return state._replace(
            phase="live", end_n=-1, must_reach=-1, live=live, overflowed=state.overflowed and not forgets
        )

    # Live

    def _take(self, state: Following) -> Iterator[Step]:
        if state.overflowed:
            yield Step("follower", "goes back to the journal, its buffer was lost", state._replace(phase="look"))
            return
        live = state.live or ()
        for count in range(1, len(live) + 1):
            # The others are late.
            new = [n for n in live[:count] if n >= state.next_n]
            changed, violation = self._hand_on(state._replace(live=live[count:]), new, Off.LIVE_HOLE)
            if new and changed.next_n <= new[-1]:
                behind = next(n for n in new if n > changed.next_n)
                changed = changed._replace(phase="look", must_reach=behind)
            yield Step("follower", f"takes {_ns(live[:count])}", changed, violation)
        if not live and state.next_n < state.length:
            if not state.may_idle:
                late = "an event waits for the follower's idle time, though no live event was lost"
                yield Step("follower", "waits", state, late)
            elif Off.NO_IDLE_READ not in self._off:
                yield Step("follower", "is idle, and looks into the journal", state._replace(phase="look"))

    def _hand_on(self, state: Following, events: list[int], unchecked: Off) -> tuple[Following, str | None]:
        """Hand on what goes on from the cursor, up to a hole, or to the end."""
        for n in events:
            if n != state.next_n and unchecked not in self._off:
                break
            if n != state.handed + 1:
                return state, "what is handed on has a hole, or something twice"
            state = state._replace(next_n=n + 1, handed=n)
            if self._journal.events[n] == "e":
                return state._replace(phase="ended", live=None), None
        return state, None


def _ns(events: list[int] | tuple[int, ...]) -> str:
    return "n=" + ",".join(map(str, events))


FOLLOWED: tuple[FollowedJournal, ...] = (
    FollowedJournal("following", Bounds(lost=2, stale_reads=1)),
    FollowedJournal("following, stale reads", Bounds(stale_reads=3), begun=3),
    FollowedJournal("following, overflows", Bounds(lost=1, overflows=2)),
    FollowedJournal("following, a purge", Bounds(stale_reads=1, lost=1, purges=1)),
    FollowedJournal("following from a cursor", Bounds(stale_reads=2, purges=1), begun=4, cursor=1),
    FollowedJournal("following, everything", Bounds(lost=1, stale_reads=1, overflows=1, purges=1), cursor=0),
)

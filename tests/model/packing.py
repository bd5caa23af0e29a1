"""Packing (PROTOCOL.md, sections 14a and 14b): stewards that move an ended task into the archive, and who comes late.

Any of them may die, or go on after the end of its lease, between any two operations. A first turn's message may be
delivered once more at any time, and a record be written late. Where the task is, is judged in each state: who looks
into EVENTS first, and then into the archive, has to find it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model import checker
from tests.model.rules import Off, Rules

Doing = Literal["idle", "takes over", "looks", "packs", "places", "purges the record", "purges the journal"]
"""What a steward does next."""
Coming = Literal["away", "looks", "asks", "begins"]
"""What the worker with the late message does next: look into EVENTS, ask the archive, begin the journal."""


class Bounds(NamedTuple):
    """How often each misfortune may still happen."""

    crashes: int = 0
    stalls: int = 0
    """Leases that end while their steward goes on."""
    anew: int = 0
    """Walks that begin anew, and so elsewhere."""
    late_turns: int = 0
    late_records: int = 0


class Steward(NamedTuple):
    """A steward. `piece`: which one it is at; `last`: how many packs of that it knows of; `leased`: it is its own."""

    doing: Doing = "idle"
    piece: int = 0
    last: int = 0
    leased: bool = False


class Packing(NamedTuple):
    """Everything. Stewards are sorted: which of them is which makes no difference."""

    stewards: tuple[Steward, ...]
    left: Bounds
    in_events: bool = True
    record: bool = True
    packs: tuple[int, ...] = ()
    """Of each piece of the walk, how often the task is in a pack of it."""
    place: bool = False
    """Whether the archive says where one of them is."""
    orphan: bool = False
    """Whether the last piece of the walk is somebody's who has died, or lost its lease."""
    coming: Coming = "away"


Step = checker.Step[Packing]


@dataclass(frozen=True, slots=True)
class PackedTask:
    """A task that has ended, and so many stewards."""

    name: str
    bounds: Bounds
    stewards: int = 2

    def model(self, off: Rules) -> PackingModel:
        """The model with some rules switched off."""
        return PackingModel(self, off)


class PackingModel:
    """All that may come next, under the rules that are not switched off."""

    def __init__(self, task: PackedTask, off: Rules) -> None:
        self._task = task
        self._off = off

    def initial(self) -> Packing:
        """It has ended long enough ago."""
        return Packing((Steward(),) * self._task.stewards, self._task.bounds)

    def judge_rest(self, state: Packing) -> str | None:
        """What is wrong where nothing moves any more, or None."""
        if state.in_events or state.record:
            return "something of a packed task is left"
        return None if sum(state.packs) == 1 and state.place else "a task is not in one pack"

    def after(self, state: Packing) -> Iterator[Step]:
        """Every step from a state."""
        for step in self._steps(state):
            after = step.state
            lost = not after.in_events and not (after.place and any(after.packs))
            yield step._replace(violation="nobody finds a task that was accepted") if lost else step

    def _steps(self, state: Packing) -> Iterator[Step]:
        for steward in sorted(set(state.stewards)):
            yield from self._steward(state, steward)
            if state.left.crashes and steward.doing != "idle":
                died = _with(_spend(state, "crashes"), steward, Steward())
                yield Step("steward", "dies", died._replace(orphan=steward.leased or state.orphan), progress=False)
            if state.left.stalls and steward.leased:
                lapsed = _with(_spend(state, "stalls"), steward, steward._replace(leased=False))
                yield Step("clock", "ends the lease of a steward", lapsed._replace(orphan=True), progress=False)
        yield from self._walk(state)
        yield from self._latecomers(state)

    # The stewards

    def _steward(self, state: Packing, steward: Steward) -> Iterator[Step]:
        if steward.doing == "idle":
            if state.in_events and not any(each.leased for each in state.stewards):
                packs = state.packs if state.orphan else (*state.packs, 0)
                taken = Steward("takes over", len(packs) - 1, leased=True)
                yield Step("steward", "takes a piece", _with(state, steward, taken)._replace(orphan=False, packs=packs))
            return
        match steward.doing:
            case "takes over":
                yield self._take_over(state, steward)
            case "looks":
                known = state.place and Off.PACKED_AGAIN not in self._off
                yield self._goes_on(state, steward, "purges the record" if known else "packs", f"finds it: {known}")
            case "packs":
                yield self._pack(state, steward)
            case "places":
                yield self._goes_on(state._replace(place=True), steward, "purges the record", "writes where it lies")
            case "purges the record":
                purged = state._replace(record=False)
                yield self._goes_on(purged, steward, "purges the journal", "purges the record")
            case "purges the journal":
                purged = state._replace(in_events=False)
                if Off.PURGED_FIRST in self._off and not state.place:
                    yield self._goes_on(purged, steward, "places", "purges the journal")
                    return
                yield Step("steward", "purges the journal", _with(purged, steward, Steward()))

    def _take_over(self, state: Packing, steward: Steward) -> Step:
        there = state.packs[steward.piece]
        if there and Off.LAST_PACK_UNREAD not in self._off:
            state = state._replace(place=True)
        told = steward._replace(doing="looks", last=there)
        return Step("steward", "reads the last pack, and writes what is in it", _with(state, steward, told))

    def _pack(self, state: Packing, steward: Steward) -> Step:
        there = state.packs[steward.piece]
        if there != steward.last and Off.PACK_UNFENCED not in self._off:
            return self._goes_on(state, steward, "takes over", "is refused by the fence")
        packs = tuple(count + (piece == steward.piece) for piece, count in enumerate(state.packs))
        told = steward._replace(doing=self._after_pack(), last=there + 1)
        twice = "a task is packed twice" if sum(packs) > 1 else None
        return Step("steward", "stores a pack", _with(state._replace(packs=packs), steward, told), twice)

    def _after_pack(self) -> Doing:
        return "purges the record" if Off.PURGED_FIRST in self._off else "places"

    @staticmethod
    def _goes_on(state: Packing, steward: Steward, doing: Doing, what: str) -> Step:
        return Step("steward", what, _with(state, steward, steward._replace(doing=doing)))

    def _walk(self, state: Packing) -> Iterator[Step]:
        # What was left and has still something due is taken before that: it is no orphan any more.
        forgets = Off.LEFT_PIECE_FORGOTTEN in self._off or not state.in_events
        if state.left.anew and state.orphan and forgets:
            yield Step("clock", "begins the walk anew", _spend(state, "anew")._replace(orphan=False), progress=False)

    # Who comes late

    def _latecomers(self, state: Packing) -> Iterator[Step]:
        if state.left.late_records:
            # Compare-and-set over a record that is there finds out that it says as much.
            late = _spend(state, "late_records")._replace(record=True)
            yield Step("writer", "projects the task late", late, progress=False)
        if state.record and not state.in_events and state.place:
            yield Step("sweep", "purges a record without a journal", state._replace(record=False))
        match state.coming:
            case "away":
                if state.left.late_turns:
                    came = _spend(state, "late_turns")._replace(coming="looks")
                    yield Step("worker", "gets the first turn again", came, progress=False)
            case "looks":
                absent: Coming = "begins" if Off.ARCHIVE_UNASKED in self._off else "asks"
                yield Step("worker", "looks into EVENTS", state._replace(coming="away" if state.in_events else absent))
            case "asks":
                yield Step("worker", "asks the archive", state._replace(coming="away" if state.place else "begins"))
            case "begins":
                again = None if state.in_events else "a task that has ended is begun again"
                yield Step("worker", "begins the journal", state._replace(coming="away"), again)


def _with(state: Packing, old: Steward, new: Steward) -> Packing:
    stewards = list(state.stewards)
    stewards[stewards.index(old)] = new
    return state._replace(stewards=tuple(sorted(stewards)))


def _spend(state: Packing, what: str) -> Packing:
    return state._replace(left=state.left._replace(**{what: getattr(state.left, what) - 1}))


PACKED: tuple[PackedTask, ...] = (
    PackedTask("packing, crashes", Bounds(crashes=3, anew=1)),
    PackedTask("packing, zombies", Bounds(crashes=1, stalls=2, anew=1)),
    PackedTask("packing, late first turns", Bounds(crashes=1, stalls=1, late_turns=2)),
    PackedTask("packing, late records", Bounds(crashes=2, stalls=1, late_records=2)),
    PackedTask("packing by three", Bounds(crashes=2, stalls=2, anew=2, late_turns=1), stewards=3),
)

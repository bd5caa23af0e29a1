"""One provider's pace in one process: what it may begin now, what it has booked ahead, and what it owes. No I/O.

A turn takes a place (`take`) before its message is worked on, and begins (`begin`) when its model is asked. It never
waits in between: where there is no place its message is not pulled. Nothing is booked ahead while there is little to
do: a turn may begin on credit as long as the fleet is known to have booked nothing ahead, and is booked right after.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping

from contracts.journal.parts import Usage
from contracts.records.pace import Limit, PaceRecord
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.ramp import Ramp
from mesh.pacing.rules import (
    AHEAD_SECONDS,
    BURST_SECONDS,
    CALM_SECONDS,
    CLOCK_SECONDS,
    FREE_SECONDS,
    ROOM_SECONDS,
    SHUT_TOLD_SECONDS_MAX,
    Booked,
    Wanted,
    cost_of,
    is_free,
    rates,
    room,
    shut_until,
    sound,
)
from mesh.pacing.slots import Slots
from mesh.pacing.turn_size import TurnSize

LOOK_SECONDS, SHUT_LOOK_SECONDS = 60.0, 5.0
"""How often a record is looked at that nothing is heard of; and while the provider is shut: somebody may open it."""
GAP_SECONDS = 0.02
"""How soon after one booking comes the next."""
ASK_SECONDS_MAX = 5.0
"""How long a worker waits at most before it asks again: others may have given something back."""
DEBT_SECONDS = ((0.25, 0.1), (0.02, 0.8), (-math.inf, 4.0))
"""How long what turns have used beside their booking may stay unsaid, by what a limit gives out in so many seconds."""
TIMES_LATER_MAX = 8
"""Who loses comes later by so many times what it took at most: those that come together lose together."""
ASK_SPREAD_SECONDS, ASK_SPREAD_SECONDS_MAX = 0.125, 0.5
"""Workers that wait for the same moment come one after the other in that time: longer each time in vain."""
LESS_ROOM, ROOM_SECONDS_MIN = 0.9, 0.1
"""Who asks in vain is content with less each time: so all have their turn, those at a distance, too."""
START_SECONDS = 2.0
"""How long a booked beginning that nobody uses is kept."""


class Place:
    """Leave to begin a turn at a provider."""

    def __init__(self, pacer: Pacer, cost: Mapping[Limit, float]) -> None:
        self.pacer = pacer
        self.cost: Mapping[Limit, float] = cost
        """What it is booked with, until the turn begins."""
        self.begun = False

    @property
    def provider(self) -> str:
        """Where."""
        return self.pacer.provider

    def release(self) -> None:
        """The turn is over, or will not begin: what it was booked with is given back then."""
        self.pacer.leave(self)


class Turn:
    """A request to a provider, whose use is booked: as it is expected, and then as it was."""

    def __init__(self, pacer: Pacer, read_bytes: int, expected: Mapping[Limit, float]) -> None:
        self._pacer = pacer
        self._read_bytes = read_bytes
        self._expected = expected

    def used(self, usage: Usage) -> None:
        """The provider has told what it was."""
        if usage.input_tokens or usage.output_tokens:
            self._pacer.learn(self._read_bytes, usage)
            self._pacer.owe(cost_of((usage.input_tokens, usage.output_tokens)), self._expected)

    def refused(self, retry_after_seconds: float | None, at: float) -> None:
        """It was too many: it took no tokens, and nobody is to call before the time, if there is one."""
        self._pacer.owe({"requests": 1.0}, self._expected)
        self._pacer.refuse(retry_after_seconds, at)


class Pacer:
    """The pace of one provider. Times are the mesh's, in seconds since 1970."""

    def __init__(self, provider: str, settings: PaceSettings, worker: str, dice: random.Random | None = None) -> None:
        self.provider = provider
        self._dice = dice or random.Random()
        self.record: PaceRecord | None = None
        self.slots = Slots(worker, settings.concurrency)
        """Its places under a limit of concurrency."""
        self.settings = settings
        self.must_look = True
        """Whether the record may have changed."""
        self._starts: deque[float] = deque()
        self._cost: Mapping[Limit, float] = {}
        self._taken: deque[float] = deque(maxlen=1024)
        self._debts: dict[Limit, float] = {}
        self._debts_since: float | None = None
        self._on_credit = False
        """Whether a turn has begun that was not booked."""
        self._lacks_turns = False
        self._size = TurnSize()
        self._ramp = Ramp()
        self._remaining: dict[Limit, float] = {}
        self._told: dict[Limit, float] = {}
        self._refused_until: float | None = None
        self._refused = 0
        self._ask_at = 0.0
        self._misses = 0
        self._latest_at = 0.0
        self._seen_at = 0.0

    # What gates ask

    @property
    def is_paced(self) -> bool:
        """Whether anything of it is limited."""
        return bool(self._limits) or self._settings.concurrency is not None

    @property
    def settings(self) -> PaceSettings:
        """What is allowed. May be set again."""
        return self._settings

    @settings.setter
    def settings(self, settings: PaceSettings) -> None:
        self._settings, self._limits = settings, tuple(settings.by_minute)
        self.slots.concurrency = settings.concurrency

    @property
    def has_a_say(self) -> bool:
        """Whether it may have changed what others may do: something is limited, or it was refused."""
        return self.is_paced or self._refused_until is not None or self.record is not None

    def is_shut(self, at: float) -> bool:
        """Whether nobody may call the provider, since it has refused."""
        return self._shut_until() > at

    def room(self, at: float) -> int:
        """How many turns may begin now."""
        if self.is_shut(at):
            return 0
        return min(self._room_of_turns(at), self.slots.room(self.record, at))

    def part(self, at: float) -> float:
        """How much may begin at the provider, by all: 0.0 is nothing, 1.0 all that it allows."""
        return 0.0 if self.is_shut(at) else room(self.settings, self.record, at)

    def seconds_shut(self, at: float) -> float:
        """How long there is no room for sure; 0 if there is some, or may be at any time."""
        if self.is_shut(at):
            return self._shut_until() - at
        if self._room_of_turns(at) > 0:
            return 0.0
        next_at = self._starts[0] if self._starts else max(self._ask_at, at)
        return max(0.0, next_at - at)

    def ask(self, at: float) -> bool:
        """Somebody would begin a turn, and has no room. True if that is news."""
        before = self._lacks_turns
        self._lacks_turns = before or (self._rated and self._room_of_turns(at) <= 0)
        lacks_slots = not self.is_shut(at) and self.slots.ask(self.record, at)
        return self._lacks_turns != before or lacks_slots

    def changes_at(self, at: float) -> float | None:
        """When there is another room, if nobody does anything; None if never."""
        if self.is_shut(at):
            return self._shut_until()
        if not self._rated:
            return self._ramp.changes_at(self._shut_until(), at)
        if not self._starts and not self._on_credit and self.record is not None:
            frees = [until.timestamp() - FREE_SECONDS for until in self.record.booked_until.values()]
            frees.append(self._shut_until() + CALM_SECONDS)
            return max((free for free in frees if free > at), default=None)
        return next((start for start in self._starts if start > at), None)

    # Turns

    def take(self, at: float) -> Place | None:
        """A place for a turn; None if there is no room."""
        if self.room(at) <= 0:
            return None
        cost: Mapping[Limit, float] = {}
        if self._rated:
            cost = self._cost or self._cost_now()
            if self._starts and self._starts[0] <= at:
                self._starts.popleft()
            else:
                self._on_credit = True
                self.owe(cost, {})
            self._taken.append(at)
        else:
            self._ramp.take(self._shut_until(), at)
        self.slots.take(at)
        return Place(self, cost)

    def leave(self, place: Place) -> None:
        """A place is given up."""
        if not place.begun:
            place.begun = True
            self.owe({}, place.cost)
        self.slots.in_use -= 1

    def begin(self, place: Place | None, read_bytes: int, output_tokens_max: int | None) -> Turn:
        """A model is asked, with that much to read. `place`: the one it has, if it has one that has not begun."""
        expected = cost_of(self._size.of(read_bytes, output_tokens_max, self.record))
        booked: Mapping[Limit, float] = {}
        if place is not None:
            place.begun, booked = True, place.cost
        self.owe(expected, booked)
        return Turn(self, read_bytes, expected)

    def owe(self, used: Mapping[Limit, float], booked: Mapping[Limit, float]) -> None:
        """So much was used, where so much was booked."""
        for limit in self._limits:
            more = used.get(limit, 0.0) - booked.get(limit, 0.0)
            if more:
                self._debts[limit] = self._debts.get(limit, 0.0) + more

    def learn(self, read_bytes: int, usage: Usage) -> None:
        """A turn was so long."""
        self._size.learn(read_bytes, usage, self._settings, self.record)

    # What the provider says

    def refuse(self, retry_after_seconds: float | None, at: float) -> None:
        """It has refused a request as one too many. Without a time only a provider with limits is left alone."""
        if retry_after_seconds is not None:
            until = at + min(retry_after_seconds, SHUT_TOLD_SECONDS_MAX)
            self._refused_until = max(self._refused_until or 0.0, until)
        elif self.is_paced:
            self._refused = max(self._refused, 0) + 1
        self._drop_starts()

    def answered(self) -> None:
        """It has answered, and did not refuse."""
        if self.record is not None and self.record.refusals and not self._refused:
            self._refused = -1

    def hear(self, allowed: Mapping[Limit, float], remaining: Mapping[Limit, float], at: float) -> None:
        """What it allows a minute, and how much of that is left, as it tells with an answer."""
        by_second = rates(self.settings, self.record)
        told: Mapping[Limit, float] = self.record.told if self.record is not None else {}
        for limit, set_to in self.settings.by_minute.items():
            says = allowed.get(limit)
            if says is not None and min(says, set_to) != told.get(limit, set_to):
                self._told[limit] = says
            left = remaining.get(limit)
            if left is not None and self._is_news(limit, at + BURST_SECONDS - left / by_second[limit], at):
                self._remaining[limit] = left

    # What is to be written

    def wanted(self, at: float, *, stopping: bool = False) -> Wanted | None:
        """What there is to be said and asked now; None if that is nothing."""
        self._put_right(at)
        self._expire(at, stopping=stopping)
        if self._debts and self._debts_since is None:
            self._debts_since = at
        turns = 0 if stopping or self.is_shut(at) else self._turns_wanted(at)
        asks = turns > 0 and at >= self._ask_at
        slots = self.slots.in_use if stopping else self.slots.wanted(at)
        news = asks or self._on_credit or self._refused or self._refused_until or self._told or self._remaining
        debts = self._debts_since is not None and (stopping or at >= self._debts_at())
        due = self.slots.held > 0 if stopping else self.slots.is_due(slots, self.record, at)
        if not news and not debts and not due:
            return None
        return Wanted(
            turns=turns,
            room_seconds=max(ROOM_SECONDS * LESS_ROOM**self._misses, ROOM_SECONDS_MIN),
            debts=dict(self._debts),
            tokens=self._size.mean,
            remaining=dict(self._remaining),
            told=dict(self._told),
            refused_until=self._refused_until,
            refused=self._refused,
            on_credit=self._on_credit,
            must_say=self._on_credit or debts,
            slots=slots,
            slots_in_use=self.slots.in_use,
        )

    def got(self, wanted: Wanted, booked: Booked, at: float) -> None:
        """That was written, if it was new, and this is what came of it."""
        self.record = booked.record
        self._said(wanted, at, written=booked.is_new)
        if not self.is_shut(at):
            self._starts.extend(booked.starts)
            self._cost = booked.cost
        elif booked.starts:
            self.owe({}, {limit: amount * len(booked.starts) for limit, amount in booked.cost.items()})
        if booked.starts:
            self._lacks_turns = False
        got_less = len(booked.starts) < wanted.turns
        if wanted.turns:
            self._misses = 0 if booked.starts else self._misses + 1
        spread = min(ASK_SPREAD_SECONDS * 2.0 ** min(self._misses, 8), ASK_SPREAD_SECONDS_MAX)
        again_at = booked.again_at + self._dice.uniform(0, spread)
        self._ask_at = min(again_at, at + ASK_SECONDS_MAX) if got_less else at + GAP_SECONDS
        self.slots.got(wanted, booked, at)

    def lost(self, seconds: float) -> float:
        """Another has written first, in the `seconds` that it took. How long to wait before trying again, at most."""
        self._misses += 1
        return seconds * min(self._misses, TIMES_LATER_MAX)

    def see(self, record: PaceRecord | None, at: float, *, told: bool = False) -> None:
        """The record, as it was read. `told`: since somebody has said that it has changed."""
        if told:
            self._ask_at = min(self._ask_at, at)
        self.record, self._seen_at = record, at
        self.slots.see(record, at)
        if self.is_shut(at):
            self._drop_starts()

    def is_to_look(self, at: float) -> bool:
        """Whether the record is to be read, whatever there is to write."""
        return self.must_look or at >= self._look_at(at)

    def next_at(self, at: float) -> float:
        """When there may be something to be written, if nothing happens."""
        times = [self._look_at(at), self.slots.next_at(at)]
        if self._turns_wanted(at):
            times.append(max(self._ask_at, self._shut_until(), at + GAP_SECONDS))
        if self._debts:
            times.append(max(self._debts_at(), at))
        if self._starts:
            times.append(self._starts[0] + START_SECONDS)
        return min(times)

    # Inside

    def _said(self, wanted: Wanted, at: float, *, written: bool) -> None:
        """That is written, or nothing of it was news but what is owed. What has come since is for the next time."""
        for limit, amount in wanted.debts.items() if written else ():
            self._debts[limit] = self._debts.get(limit, 0.0) - amount
        self._debts = {limit: amount for limit, amount in self._debts.items() if abs(amount) > 1e-9}  # noqa: PLR2004 - of rounding
        if written or not self._debts:
            self._debts_since = at if self._debts else None
        self._on_credit = self._on_credit and not wanted.on_credit
        self._remaining = dict(self._remaining.items() - wanted.remaining.items())
        self._told = dict(self._told.items() - wanted.told.items())
        if self._refused_until == wanted.refused_until:
            self._refused_until = None
        self._refused = 0 if self._refused == wanted.refused else self._refused

    @property
    def _rated(self) -> bool:
        return bool(self._limits)

    def _shut_until(self) -> float:
        return max(shut_until(self.record), self._refused_until or 0.0)

    def _room_of_turns(self, at: float) -> int:
        if not self._rated:
            return self._ramp.room(self._shut_until(), at)
        ready = 0
        for start in self._starts:
            if start > at:
                break
            ready += 1
        return ready or int(not self._starts and self._has_credit(at))

    def _has_credit(self, at: float) -> bool:
        """Whether a turn may begin that is not booked: nobody was refused of late, and the fleet has booked nothing.

        Where others book all there is, the record as it was read last would say so again and again.
        """
        if self._on_credit or (self._misses and at < self._ask_at + ASK_SECONDS_MAX):
            return False
        calm = self._refused_until is None or self._refused_until <= at - CALM_SECONDS
        return calm and is_free(self.record, at)

    def _cost_now(self) -> Mapping[Limit, float]:
        return cost_of(self._size.mean_or(self.record))

    def _turns_wanted(self, at: float) -> int:
        if not self._rated:
            return 0
        while self._taken and self._taken[0] < at - AHEAD_SECONDS:
            self._taken.popleft()
        lately = len(self._taken)
        if self._lacks_turns:
            # As much as may be: what is booked goes at the fleet's rate, and not at that of this worker.
            return max(2, 2 * lately) - len(self._starts) if len(self._starts) <= max(1, lately // 2) else 0
        ahead = lately // 2
        return ahead - len(self._starts) if len(self._starts) < ahead // 2 else 0

    def _look_at(self, at: float) -> float:
        return self._seen_at + (SHUT_LOOK_SECONDS if self.is_shut(at) else LOOK_SECONDS)

    def _debts_at(self) -> float:
        """When what is owed is to be said."""
        by_second = rates(self._settings, self.record)
        owed = max((self._debts.get(limit, 0.0) / each for limit, each in by_second.items()), default=0.0)
        within = next(seconds for least, seconds in DEBT_SECONDS if owed >= least)
        return (self._debts_since or 0.0) + within

    def _is_news(self, limit: Limit, until: float, at: float) -> bool:
        """Whether a limit is given out up to then, and nobody has said so."""
        told = self.record.booked_until.get(limit) if self.record is not None else None
        return until > max(at, told.timestamp() if told is not None else 0.0)

    def _put_right(self, at: float) -> None:
        """Where the clock was put back: wait for nothing that is far off now."""
        if at < self._latest_at - CLOCK_SECONDS:
            self.record = sound(self.record, at) if self.record is not None else None
            self._drop_starts()
            self._taken.clear()
            self._ask_at, self._debts_since = at, at if self._debts else None
            if self._refused_until is not None:
                self._refused_until = min(self._refused_until, at + SHUT_TOLD_SECONDS_MAX)
            self.slots.put_right(at)
            self._seen_at = at
            self.must_look = True
        self._latest_at = at

    def _expire(self, at: float, *, stopping: bool) -> None:
        """Give back what was booked, and is not used."""
        unused = 0
        while self._starts and (stopping or self._starts[0] < at - START_SECONDS):
            self._starts.popleft()
            unused += 1
        if unused:
            self.owe({}, {limit: amount * unused for limit, amount in self._cost.items()})

    def _drop_starts(self) -> None:
        unused = len(self._starts)
        self._starts.clear()
        self.owe({}, {limit: amount * unused for limit, amount in self._cost.items()})

"""One provider's pace in one process: what it may begin now, what it has booked ahead, and what it owes. No I/O.

A turn takes a place (`take`) before its message is worked on, and begins (`begin`) when its model is asked. It never
waits in between: where there is no place its message is not pulled. Nothing is booked ahead while there is little to
do: a turn may begin on credit as long as the fleet is known to have booked nothing ahead, and is booked right after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from contracts.journal.parts import Usage
from contracts.records.pace import Limit, PaceRecord
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.rules import (
    AHEAD_SECONDS,
    BURST_SECONDS,
    FREE_SECONDS,
    HOLD_SECONDS,
    Booked,
    Wanted,
    cost_of,
    is_free,
    is_short,
    rates,
    room,
    shut_until,
    slots_of_others,
    tokens_of,
)

NO_LIMIT = 1_000_000
"""How much may begin where nothing is limited (`mesh.broker.gates.UNLIMITED`)."""
LOOK_SECONDS = 60.0
"""How often a record is looked at that nothing is heard of."""
GAP_SECONDS = 0.02
"""How soon after one booking comes the next."""
DEBT_SECONDS = 0.5
"""How long what a turn has used beside its booking may stay unsaid."""
START_SECONDS = 2.0
"""How long a booked beginning that nobody uses is kept."""
IDLE_SECONDS = 2.0
"""How long the last place under a limit of concurrency is kept."""
SLOTS_AGAIN_SECONDS = 1.0
"""How often places are asked for in vain; those that get free are announced."""
TURNS_OF_MEAN = 20
"""About how many turns an average goes back."""
TOKENS_PER_BYTE = 0.25
"""Of a conversation, until its provider has told how many they were."""
TOKENS_PER_BYTE_MIN, TOKENS_PER_BYTE_MAX = 0.02, 2.0


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

    def __init__(self, provider: str, settings: PaceSettings, worker: str) -> None:
        self.provider = provider
        self.settings = settings
        self.record: PaceRecord | None = None
        self.in_use = 0
        """Places that turns have."""
        self.slots = 0
        """Places that this worker holds under a limit of concurrency."""
        self.must_look = True
        """Whether the record may have changed."""
        self._worker = worker
        self._starts: deque[float] = deque()
        self._cost: Mapping[Limit, float] = {}
        self._taken: deque[float] = deque(maxlen=1024)
        self._debts: dict[Limit, float] = {}
        self._debts_since: float | None = None
        self._on_credit = False
        """Whether a turn has begun that was not booked."""
        self._lacks_turns = False
        self._lacks_slots = False
        self._tokens: tuple[float, float] | None = None
        self._turns_seen = 0
        self._tokens_per_byte = TOKENS_PER_BYTE
        self._remaining: dict[Limit, float] = {}
        self._told: dict[Limit, float] = {}
        self._refused_until: float | None = None
        self._refused = 0
        self._used_at = 0.0
        self._written_at = 0.0
        self._ask_at = 0.0
        self._slots_at = 0.0

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
        return min(self._room_of_turns(at), self._room_of_slots(at))

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
        before = (self._lacks_turns, self._lacks_slots)
        if not self.is_shut(at):
            self._lacks_turns = self._lacks_turns or self._room_of_turns(at) <= 0
            self._lacks_slots = self._lacks_slots or self._room_of_slots(at) <= 0
        return before != (self._lacks_turns, self._lacks_slots)

    def changes_at(self, at: float) -> float | None:
        """When there is another room, if nobody does anything; None if never."""
        if self.is_shut(at):
            return self._shut_until()
        times = [start for start in self._starts if start > at][:1]
        if not self._starts and not self._on_credit and self.record is not None:
            frees = [until.timestamp() - FREE_SECONDS for until in self.record.booked_until.values()]
            return max((free for free in frees if free > at), default=None)
        return min(times, default=None)

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
        self.in_use += 1
        self._used_at = at
        return Place(self, cost)

    def leave(self, place: Place) -> None:
        """A place is given up."""
        if not place.begun:
            place.begun = True
            self.owe({}, place.cost)
        self.in_use -= 1

    def begin(self, place: Place | None, read_bytes: int, output_tokens_max: int | None) -> Turn:
        """A model is asked, with that much to read. `place`: the one it has, if it has one that has not begun."""
        tokens = self._tokens or tokens_of(self.record)
        put_out = tokens[1] if output_tokens_max is None else min(tokens[1], output_tokens_max)
        expected = cost_of((read_bytes * self._tokens_per_byte, put_out))
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
        self._turns_seen = min(self._turns_seen + 1, TURNS_OF_MEAN)
        before = self._tokens or tokens_of(self.record)
        share = 1 / self._turns_seen if self.record is None or self.record.input_tokens is None else 1 / TURNS_OF_MEAN
        read, put_out = usage.input_tokens, usage.output_tokens
        self._tokens = (before[0] + (read - before[0]) * share, before[1] + (put_out - before[1]) * share)
        if read_bytes and read:
            per_byte = min(max(read / read_bytes, TOKENS_PER_BYTE_MIN), TOKENS_PER_BYTE_MAX)
            self._tokens_per_byte += (per_byte - self._tokens_per_byte) * share

    # What the provider says

    def refuse(self, retry_after_seconds: float | None, at: float) -> None:
        """It has refused a request as one too many. Without a time only a provider with limits is left alone."""
        if retry_after_seconds is not None:
            self._refused_until = max(self._refused_until or 0.0, at + retry_after_seconds)
        elif self.is_paced:
            self._refused = max(self._refused, 0) + 1
        self._drop_starts()

    def answered(self) -> None:
        """It has answered, and did not refuse."""
        if self.record is not None and self.record.refusals and not self._refused:
            self._refused = -1

    def hear(self, allowed: Mapping[Limit, float], remaining: Mapping[Limit, float]) -> None:
        """What it allows a minute, and how much of that is left, as it tells with an answer."""
        by_second = rates(self.settings, self.record)
        told: Mapping[Limit, float] = self.record.told if self.record is not None else {}
        for limit, set_to in self.settings.by_minute.items():
            says = allowed.get(limit)
            if says is not None and min(says, set_to) != told.get(limit, set_to):
                self._told[limit] = says
            left = remaining.get(limit)
            if left is not None and left < by_second[limit] * BURST_SECONDS:
                self._remaining[limit] = left

    # What is to be written

    def wanted(self, at: float, *, stopping: bool = False) -> Wanted | None:
        """What there is to be said and asked now; None if that is nothing."""
        self._expire(at, stopping=stopping)
        if self._debts and self._debts_since is None:
            self._debts_since = at
        turns = 0 if stopping or self.is_shut(at) or at < self._ask_at else self._turns_wanted(at)
        slots = self.in_use if stopping else self._slots_wanted(at)
        news = turns or self._on_credit or self._refused or self._refused_until or self._told or self._remaining
        debts = self._debts_since is not None and (stopping or at - self._debts_since >= DEBT_SECONDS)
        if not news and not debts and not self._slots_due(slots, at) and not (stopping and self.slots):
            return None
        return Wanted(
            turns=turns,
            debts=dict(self._debts),
            tokens=self._tokens,
            remaining=dict(self._remaining),
            told=dict(self._told),
            refused_until=self._refused_until,
            refused=self._refused,
            slots=slots,
            slots_in_use=self.in_use,
        )

    def got(self, wanted: Wanted, booked: Booked, at: float) -> None:
        """That was written, and this is what came of it."""
        self.record = booked.record
        for limit, amount in wanted.debts.items():
            self._debts[limit] = self._debts.get(limit, 0.0) - amount
        self._debts = {limit: amount for limit, amount in self._debts.items() if abs(amount) > 1e-9}  # noqa: PLR2004 - of rounding
        self._debts_since = at if self._debts else None
        self._on_credit = False
        self._remaining, self._told = {}, {}
        if self._refused_until == wanted.refused_until:
            self._refused_until = None
        self._refused = 0 if self._refused == wanted.refused else self._refused
        if not self.is_shut(at):
            self._starts.extend(booked.starts)
            self._cost = booked.cost
        elif booked.starts:
            self.owe({}, {limit: amount * len(booked.starts) for limit, amount in booked.cost.items()})
        if booked.starts:
            self._lacks_turns = False
        if self._room_of_slots(at) > 0 or booked.slots > self.slots:
            self._lacks_slots = False
        self._ask_at = booked.again_at if len(booked.starts) < wanted.turns else at + GAP_SECONDS
        self._slots_at = at + SLOTS_AGAIN_SECONDS if booked.slots < wanted.slots else at
        self.slots = booked.slots
        self._written_at = at
        self.must_look = False

    def see(self, record: PaceRecord | None, at: float) -> None:
        """The record, as it was read."""
        self.record, self.must_look = record, False
        if is_short(record, self._worker, at) or self.slots < self._slots_wanted(at):
            self._slots_at = at
        if self.is_shut(at):
            self._drop_starts()

    def next_at(self, at: float) -> float:
        """When there may be something to be written, if nothing happens."""
        times = [at + LOOK_SECONDS]
        if (self._lacks_turns or self._turns_wanted(at)) and not self.is_shut(at):
            times.append(max(self._ask_at, at + GAP_SECONDS))
        if self._debts:
            times.append((self._debts_since or at) + DEBT_SECONDS)
        if self._starts:
            times.append(self._starts[0] + START_SECONDS)
        if self.settings.concurrency is not None and (self.slots or self._lacks_slots or self.in_use):
            times.append(max(self._slots_at, at + GAP_SECONDS, min(self._written_at + HOLD_SECONDS / 3, at + 1.0)))
        return min(times)

    # Inside

    @property
    def _rated(self) -> bool:
        return bool(self._limits)

    def _shut_until(self) -> float:
        return max(shut_until(self.record), self._refused_until or 0.0)

    def _room_of_turns(self, at: float) -> int:
        if not self._rated:
            return NO_LIMIT
        ready = 0
        for start in self._starts:
            if start > at:
                break
            ready += 1
        return ready or int(not self._starts and not self._on_credit and is_free(self.record, at))

    def _room_of_slots(self, at: float) -> int:
        if self.settings.concurrency is None:
            return NO_LIMIT
        if self.in_use < self.slots:
            return self.slots - self.in_use
        free = self.settings.concurrency - slots_of_others(self.record, self._worker, at) - self.slots
        return int(self.in_use == 0 and self.slots == 0 and free > 0)

    def _cost_now(self) -> Mapping[Limit, float]:
        return cost_of(self._tokens or tokens_of(self.record))

    def _turns_wanted(self, at: float) -> int:
        if not self._rated:
            return 0
        while self._taken and self._taken[0] < at - AHEAD_SECONDS:
            self._taken.popleft()
        lately = len(self._taken)
        if self._lacks_turns:
            return max(2, lately) - len(self._starts) if len(self._starts) < max(2, lately) else 0
        ahead = lately // 2
        return ahead - len(self._starts) if len(self._starts) < ahead // 2 else 0

    def _slots_wanted(self, at: float) -> int:
        if self.settings.concurrency is None:
            return 0
        if self._lacks_slots:
            want = 2 * self.in_use + 1
        elif self.in_use:
            want = self.in_use + max(1, self.in_use // 4)
        else:
            want = int(at - self._used_at < IDLE_SECONDS)
        return min(want, self.settings.concurrency)

    def _slots_due(self, slots: int, at: float) -> bool:
        if self.settings.concurrency is None:
            return False
        if slots > self.slots or slots < self.slots // 2 or (slots < self.slots and slots == 0):
            return at >= self._slots_at
        if self.slots > self.in_use and at >= self._slots_at and is_short(self.record, self._worker, at):
            return at - self._written_at >= GAP_SECONDS * 5
        return self.slots > 0 and at - self._written_at >= HOLD_SECONDS / 3

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

"""How the fleet shares what a provider allows: one record by compare-and-set, from which workers book ahead. Pure.

Each limit by the minute is a generic cell rate algorithm of the whole fleet: `booked_until` is the time up to which its
allowance is given out. A worker books the beginnings of a few turns at once, each with its time: so it asks the broker
a few times a second at most, and a turn that begins waits for nobody. What a turn has used beyond what it was booked
with, or less, goes into the worker's next booking, and so to all.

    booked_until   ≥ now - BURST_SECONDS     what nobody used for longer is gone
    booked_until   ≤ now + AHEAD_SECONDS     but for a turn that alone takes longer: that begins when all is free
    a booking      ≤ half of what is left    so that others get something, too

A worker that dies loses what it has booked: half a second's worth, once. Its places under a limit of concurrency are
free again after `HOLD_SECONDS`. All times are the mesh's, in seconds since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from contracts.records.pace import Limit, PaceHolder, PaceRecord
from mesh.configuration.pace_table import PaceSettings

PACED_SHARE = 0.98
"""Of what is allowed. What is left is for clocks and counts that differ."""
BURST_SECONDS = 1.0
"""So much of what was not used may go at once: more than the pause of a busy process, and within what providers that
say "a minute" mean by a second."""
AHEAD_SECONDS = 1.0
FREE_SECONDS = 0.25
"""A provider with no more than that booked ahead has room: a turn may begin before it is booked."""
HOLD_SECONDS = 10.0
"""How long places stay with a worker that says nothing more. It says so again at a third of it."""
TURN_TOKENS = 250.0
"""Of the input, and of the output of a turn, until one has ended."""
SHUT_SECONDS_FIRST, SHUT_SECONDS_MAX = 1.0, 60.0
"""How long nobody calls a provider that has answered 429 without a time: doubles with each in a row."""
AGAIN_SECONDS_MIN = 0.02
"""How soon a worker that got nothing asks again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker has to say and to ask. Amounts are by limit."""

    turns: int = 0
    """Beginnings to book."""
    debts: Mapping[Limit, float] = field(default_factory=dict)
    """What was used and is not booked yet; below zero: booked, and not used."""
    tokens: tuple[float, float] | None = None
    """Of the input and of the output of a turn, on average, where it knows."""
    remaining: Mapping[Limit, float] = field(default_factory=dict)
    """What is left, as the provider has told."""
    told: Mapping[Limit, float] = field(default_factory=dict)
    """What it allows a minute, as it has told."""
    refused_until: float | None = None
    """When it may be called again, as it has told."""
    refused: int = 0
    """Its refusals without a time since the last word; below zero: it has answered otherwise."""
    slots: int = 0
    """Places to hold under a limit of concurrency, those included that are in use."""
    slots_in_use: int = 0

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to write, but for places."""
        news = (self.turns, self.debts, self.remaining, self.told, self.refused_until, self.refused)
        return not any(news)


@dataclass(frozen=True, slots=True)
class Booked:
    """What came of it. `starts`: when each turn that was booked may begin; `cost`: what each is booked with."""

    record: PaceRecord
    starts: tuple[float, ...]
    cost: Mapping[Limit, float]
    slots: int
    again_at: float
    """When to ask again, if it was less than was wanted."""
    news: bool
    """Whether others should look at once: it is shut, or no longer free, or places are free, or short."""


def rates(settings: PaceSettings, record: PaceRecord | None) -> dict[Limit, float]:
    """What is given out each second, by limit: what is set, or less where the provider says so."""
    told: Mapping[Limit, float] = record.told if record is not None else {}
    return {
        limit: min(allowed, told.get(limit) or allowed) * PACED_SHARE / 60
        for limit, allowed in settings.by_minute.items()
    }


def cost_of(tokens: tuple[float, float]) -> dict[Limit, float]:
    """What a turn of so many tokens, read and put out, takes of each limit."""
    read, put_out = tokens
    return {"requests": 1.0, "tokens": read + put_out, "input_tokens": read, "output_tokens": put_out}


def tokens_of(record: PaceRecord | None) -> tuple[float, float]:
    """The tokens of a turn on average, as the record has them."""
    if record is None or record.input_tokens is None or record.output_tokens is None:
        return TURN_TOKENS, TURN_TOKENS
    return record.input_tokens, record.output_tokens


def shut_until(record: PaceRecord | None) -> float:
    """When the provider may be called again; 0 if it was never shut."""
    return record.shut_until.timestamp() if record is not None and record.shut_until is not None else 0.0


def is_free(record: PaceRecord | None, at: float) -> bool:
    """Whether next to nothing is booked ahead: then a turn may begin before it is booked."""
    return record is None or all(until.timestamp() <= at + FREE_SECONDS for until in record.booked_until.values())


def slots_of_others(record: PaceRecord | None, worker: str, at: float) -> int:
    """Places that other workers hold."""
    return sum(each.slots for name, each in _holders(record, at).items() if name != worker)


def is_short(record: PaceRecord | None, worker: str, at: float) -> bool:
    """Whether another worker could use more places than it has."""
    return any(each.wants > each.slots for name, each in _holders(record, at).items() if name != worker)


def room(settings: PaceSettings, record: PaceRecord | None, at: float) -> float:
    """How much may begin at a provider now: from 0.0, nothing, to 1.0, all that it allows."""
    if shut_until(record) > at:
        return 0.0
    parts = [1.0]
    if record is not None:
        for limit in settings.by_minute:
            until = record.booked_until.get(limit)
            if until is not None:
                parts.append((at + AHEAD_SECONDS - until.timestamp()) / AHEAD_SECONDS)
    if settings.concurrency is not None:
        parts.append(1 - slots_of_others(record, "", at) / settings.concurrency)
    return max(0.0, min(parts))


def book(
    record: PaceRecord | None, provider: str, settings: PaceSettings, worker: str, wanted: Wanted, at: float
) -> Booked:
    """Write down what a worker says, and give it what there is of what it asks for."""
    record = record or PaceRecord(provider=provider, time=_time(at))
    record = msgspec.structs.replace(record, time=_time(at), told=_told(settings, record, wanted))
    record, shut = _shut(record, wanted, at)
    if wanted.tokens is not None:
        record = msgspec.structs.replace(
            record, input_tokens=round(wanted.tokens[0], 1), output_tokens=round(wanted.tokens[1], 1)
        )
    by_second = rates(settings, record)
    cost = {limit: amount for limit, amount in cost_of(tokens_of(record)).items() if limit in by_second}
    until = _settled(record, by_second, wanted, at)
    turns = _turns(until, by_second, cost, wanted.turns, at)
    starts = tuple(
        max((until[limit] + turn * cost[limit] / by_second[limit] for limit in by_second), default=at)
        for turn in range(turns)
    )
    again_at = at + AGAIN_SECONDS_MIN
    if turns < wanted.turns:
        again_at = max([again_at, *(until[limit] - AHEAD_SECONDS / 2 for limit in by_second)])
    for limit, second in by_second.items():
        until[limit] += turns * cost[limit] / second
    held = _held(record, settings, worker, wanted, at)
    was_free = is_free(record, at)
    after = msgspec.structs.replace(
        record, booked_until={limit: _time(each) for limit, each in until.items()}, holders=held.holders
    )
    news = shut or held.news or (was_free and not is_free(after, at))
    return Booked(after, starts, cost, held.slots, max(again_at, shut_until(after)), news)


def _told(settings: PaceSettings, record: PaceRecord, wanted: Wanted) -> dict[Limit, float]:
    """What the provider allows by its own word, where that is less than what is set."""
    told = record.told | dict(wanted.told)
    return {limit: told[limit] for limit, allowed in settings.by_minute.items() if told.get(limit, allowed) < allowed}


def _shut(record: PaceRecord, wanted: Wanted, at: float) -> tuple[PaceRecord, bool]:
    """The record once a refusal is known, and whether there was one."""
    refusals = record.refusals if wanted.refused >= 0 else 0
    until = wanted.refused_until or 0.0
    # Those that were under way together are refused together: that is one refusal.
    if wanted.refused > 0:
        refusals = record.refusals + 1 if shut_until(record) <= at else max(1, record.refusals)
        until = max(until, at + min(SHUT_SECONDS_FIRST * 2.0 ** (refusals - 1), SHUT_SECONDS_MAX))
    if until > max(shut_until(record), at):
        return msgspec.structs.replace(record, refusals=refusals, shut_until=_time(until)), True
    kept = record.shut_until if shut_until(record) > at else None
    return msgspec.structs.replace(record, refusals=refusals, shut_until=kept), False


def _settled(record: PaceRecord, by_second: Mapping[Limit, float], wanted: Wanted, at: float) -> dict[Limit, float]:
    """Up to when each limit is given out, once debts are booked and the provider's own word is heard."""
    until: dict[Limit, float] = {}
    for limit, second in by_second.items():
        told = record.booked_until.get(limit)
        booked = max(told.timestamp() if told is not None else 0.0, at - BURST_SECONDS)
        booked = max(booked + wanted.debts.get(limit, 0.0) / second, at - BURST_SECONDS)
        if limit in wanted.remaining:
            # Somebody else uses the provider as well, or it counts otherwise: wait until a second's worth is left.
            booked = max(booked, at + (second * BURST_SECONDS - wanted.remaining[limit]) / second)
        until[limit] = max(booked, shut_until(record)) if shut_until(record) > at else booked
    return until


def _turns(
    until: Mapping[Limit, float], by_second: Mapping[Limit, float], cost: Mapping[Limit, float], wanted: int, at: float
) -> int:
    if wanted <= 0 or not by_second:
        return 0
    most = min(
        math.floor(round((at + AHEAD_SECONDS - until[limit]) * second / max(cost[limit], 1e-9), 6))
        for limit, second in by_second.items()
    )
    if most < 1:
        # A turn that takes longer than what may be booked ahead begins when all is free.
        return 1 if all(each <= at for each in until.values()) else 0
    return min(wanted, max(1, most // 2))


@dataclass(frozen=True, slots=True)
class _Held:
    holders: dict[str, PaceHolder]
    slots: int
    news: bool


def _held(record: PaceRecord, settings: PaceSettings, worker: str, wanted: Wanted, at: float) -> _Held:
    """Who holds how many places, once this worker has got what it wants, or less."""
    if settings.concurrency is None:
        return _Held({}, 0, news=False)
    holders = _holders(record, at)
    before = holders.pop(worker, None)
    free = settings.concurrency - sum(each.slots for each in holders.values())
    most = free
    if any(each.wants > each.slots for each in holders.values()):
        # Others are short: nobody takes more than an equal part.
        most = min(free, max(1, settings.concurrency // (len(holders) + 1)))
    slots = max(wanted.slots_in_use, min(wanted.slots, most), 0)
    wants = wanted.slots if wanted.slots > slots else 0
    fewer = before is not None and slots < before.slots
    if slots or wants:
        holders[worker] = PaceHolder(slots=slots, wants=wants, until=_time(at + HOLD_SECONDS))
    newly_short = wants > 0 and (before is None or before.wants == 0)
    return _Held(holders, slots, news=fewer or newly_short)


def _holders(record: PaceRecord | None, at: float) -> dict[str, PaceHolder]:
    """Those whose time has not come."""
    if record is None:
        return {}
    return {name: each for name, each in record.holders.items() if each.until.timestamp() > at}


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)

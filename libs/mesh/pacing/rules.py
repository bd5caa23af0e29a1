"""How the fleet shares what a provider allows: one record by compare-and-set, from which workers book ahead. Pure.

Each limit by the minute is a generic cell rate algorithm of the whole fleet: `booked_until` is the time up to which its
allowance is given out. A worker books the beginnings of a few turns at once, each with its time: so it asks the broker
a few times a second at most, and a turn that begins waits for nobody. What a turn has used beyond what it was booked
with, or less, goes into the worker's next booking, and so to all.

    booked_until   ≥ now - BURST_SECONDS     what nobody used for longer is gone
    booked_until   ≤ now + AHEAD_SECONDS     but for a turn that alone takes longer: that begins when all is free
    a booking      ≤ half of what is left    so that others get something, too; and half a second of it is free before

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
ROOM_SECONDS = AHEAD_SECONDS / 2
"""So much of it is free before turns are booked: who takes the little that is left has all others write as often."""
FREE_SECONDS = 0.25
"""A provider with no more than that booked ahead has room: a turn may begin before it is booked."""
HOLD_SECONDS = 10.0
"""How long places stay with a worker that says nothing more."""
RENEW_SECONDS = HOLD_SECONDS / 3
"""How often it says so again."""
CALM_SECONDS = 1.0
"""How long after a refusal nobody begins on credit: all that waited would begin at once."""
TURN_TOKENS = 250.0
"""Of the input, and of the output of a turn, until one has ended."""
SHUT_SECONDS_FIRST, SHUT_SECONDS_MAX = 1.0, 60.0
"""How long nobody calls a provider that has answered 429 without a time: doubles with each in a row."""
AGAIN_SECONDS_MIN = 0.02
"""How soon a worker that got nothing asks again."""
SHUT_TOLD_SECONDS_MAX = 3600.0
"""How long a provider is left alone at most, whatever it says. What a record says of the future ends there, too."""
TOLD_MIN = 0.1
"""The least that a provider is believed to allow a minute: the least that can be set."""
OWED_SECONDS_MAX = 60.0
"""How long the tokens of turns that have ended hold up those that come: a limit by the minute forgets after one."""
CLOCK_SECONDS = 10.0
"""A record that was written so far in the future was written by a clock that has been put right since."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker has to say and to ask. Amounts are by limit."""

    turns: int = 0
    """Beginnings to book."""
    room_seconds: float = ROOM_SECONDS
    """They are booked once so much of what may be booked ahead is free."""
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
    on_credit: bool = False
    """Whether a turn has begun that was not booked: it is among the debts."""
    must_say: bool = False
    """Whether that, or what is owed, is to be written now, whatever comes of the rest."""
    slots: int = 0
    """Places to hold under a limit of concurrency, those included that are in use."""
    slots_in_use: int = 0


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
    is_new: bool = True
    """Whether there is anything to write: else the worker got nothing, and had nothing to say."""


def rates(settings: PaceSettings, record: PaceRecord | None) -> dict[Limit, float]:
    """What is given out each second, by limit: what is set, or less where the provider says so."""
    told: Mapping[Limit, float] = record.told if record is not None else {}
    return {
        limit: max(min(allowed, told.get(limit) or allowed), TOLD_MIN) * PACED_SHARE / 60
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
    return record is None or (
        shut_until(record) <= at - CALM_SECONDS
        and all(until.timestamp() <= at + FREE_SECONDS for until in record.booked_until.values())
    )


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


def sound(record: PaceRecord, at: float) -> PaceRecord:
    """A record within bounds, whoever has written it: nothing in it holds a provider up for more than an hour."""
    written_at = record.time.timestamp()
    # The clock was put back: what the record says is meant from when it was written.
    back = max(0.0, written_at - at) if written_at > at + CLOCK_SECONDS else 0.0
    latest = min(written_at - back, at) + SHUT_TOLD_SECONDS_MAX

    def bounded(told: datetime) -> datetime:
        until = max(0.0, min(told.timestamp() - back, latest))
        return told if until == told.timestamp() else _time(until)

    return msgspec.structs.replace(
        record,
        booked_until={limit: bounded(until) for limit, until in record.booked_until.items()},
        shut_until=bounded(record.shut_until) if record.shut_until is not None else None,
        holders={name: _held_soundly(each, at, back) for name, each in record.holders.items()},
    )


def _held_soundly(holder: PaceHolder, at: float, back: float) -> PaceHolder:
    until = max(0.0, min(holder.until.timestamp() - back, at + HOLD_SECONDS + CLOCK_SECONDS))
    return holder if until == holder.until.timestamp() else msgspec.structs.replace(holder, until=_time(until))


def book(
    record: PaceRecord | None, provider: str, settings: PaceSettings, worker: str, wanted: Wanted, at: float
) -> Booked:
    """Write down what a worker says, and give it what there is of what it asks for."""
    before = record or PaceRecord(provider=provider, time=_time(at))
    record = msgspec.structs.replace(before, time=_time(at), told=_told(settings, before, wanted))
    record, shut = _shut(record, wanted, at)
    if wanted.tokens is not None:
        record = msgspec.structs.replace(
            record, input_tokens=round(wanted.tokens[0], 1), output_tokens=round(wanted.tokens[1], 1)
        )
    by_second = rates(settings, record)
    cost = _cost(record, by_second)
    until, heard = _settled(record, by_second, wanted, at)
    seconds = {limit: cost[limit] / second for limit, second in by_second.items()}
    turns = _turns(until, seconds, wanted, at)
    starts = tuple(
        max((until[limit] + turn * each for limit, each in seconds.items()), default=at) for turn in range(turns)
    )
    for limit, each in seconds.items():
        until[limit] += turns * each
    again_at = at + AGAIN_SECONDS_MIN
    if turns < wanted.turns:
        again_at = max(again_at, shut_until(record), _room_at(until, seconds, wanted.room_seconds))
    held = _held(record, settings, worker, wanted, at)
    was_free = is_free(record, at)
    after = msgspec.structs.replace(
        record, booked_until=_of_others(record, by_second, at) | _times(until, at), holders=held.holders
    )
    news = shut or held.news or (was_free and not is_free(after, at))
    says = wanted.must_say or heard or shut or after.told != before.told or after.refusals != before.refusals
    return Booked(after, starts, cost, held.slots, again_at, news, is_new=bool(says or turns or held.is_new))


def _cost(record: PaceRecord, by_second: Mapping[Limit, float]) -> dict[Limit, float]:
    """What a turn is booked with. A limit by the minute has no more tokens than those of one."""
    told = cost_of(tokens_of(record))
    return {
        limit: told[limit] if limit == "requests" else min(told[limit], OWED_SECONDS_MAX * second)
        for limit, second in by_second.items()
    }


def _turns(until: Mapping[Limit, float], seconds: Mapping[Limit, float], wanted: Wanted, at: float) -> int:
    """How many turns are booked, of which each takes so many seconds of a limit."""
    if wanted.turns <= 0 or not seconds:
        return 0
    left = min(
        math.floor(round((at + AHEAD_SECONDS - until[limit]) / max(each, 1e-9), 6)) for limit, each in seconds.items()
    )
    if at < _room_at(until, seconds, wanted.room_seconds):
        return 0
    return min(wanted.turns, max(1, left // 2))


def _room_at(until: Mapping[Limit, float], seconds: Mapping[Limit, float], room_seconds: float) -> float:
    """When so much of what may be booked ahead is free, and a turn; all of it, if a turn alone takes longer."""
    if any(each > AHEAD_SECONDS for each in seconds.values()):
        return max(until.values())
    free = (until[limit] - AHEAD_SECONDS + max(room_seconds, each) for limit, each in seconds.items())
    return max(free, default=0.0) - 1e-6


def _of_others(record: PaceRecord, by_second: Mapping[Limit, float], at: float) -> dict[Limit, datetime]:
    """What is booked of limits that this worker does not know: others have them, by another file."""
    return {
        limit: until
        for limit, until in record.booked_until.items()
        if limit not in by_second and until.timestamp() > at - BURST_SECONDS
    }


def _times(until: Mapping[Limit, float], at: float) -> dict[Limit, datetime]:
    return {limit: _time(min(each, at + SHUT_TOLD_SECONDS_MAX)) for limit, each in until.items()}


def _told(settings: PaceSettings, record: PaceRecord, wanted: Wanted) -> dict[Limit, float]:
    """What the provider allows by its own word, where that is less than what is set; of limits of others as it is."""
    told = record.told | dict(wanted.told)
    return {limit: each for limit, each in told.items() if each < settings.by_minute.get(limit, math.inf)}


def _shut(record: PaceRecord, wanted: Wanted, at: float) -> tuple[PaceRecord, bool]:
    """The record once a refusal is known, and whether there was one."""
    refusals = record.refusals if wanted.refused >= 0 else 0
    until = wanted.refused_until or 0.0
    # Those that were under way together are refused together: that is one refusal.
    if wanted.refused > 0:
        refusals = record.refusals + 1 if shut_until(record) <= at else max(1, record.refusals)
        until = max(until, at + min(SHUT_SECONDS_FIRST * 2.0 ** min(refusals - 1, 99), SHUT_SECONDS_MAX))
    if until > max(shut_until(record), at):
        return msgspec.structs.replace(record, refusals=refusals, shut_until=_time(until)), True
    kept = record.shut_until if shut_until(record) > at - CALM_SECONDS else None
    return msgspec.structs.replace(record, refusals=refusals, shut_until=kept), False


def _settled(
    record: PaceRecord, by_second: Mapping[Limit, float], wanted: Wanted, at: float
) -> tuple[dict[Limit, float], bool]:
    """Up to when each limit is given out, once debts are booked and the provider's own word is heard.

    And whether that has said anything.
    """
    until: dict[Limit, float] = {}
    heard = False
    for limit, second in by_second.items():
        told = record.booked_until.get(limit)
        before = max(told.timestamp() if told is not None else 0.0, at - BURST_SECONDS)
        debt = wanted.debts.get(limit, 0.0)
        booked = max(before + debt / second, at - BURST_SECONDS)
        if limit != "requests" and debt > 0:
            booked = max(before, min(booked, at + OWED_SECONDS_MAX))
        if limit in wanted.remaining:
            # Somebody else uses the provider as well, or it counts otherwise: wait until a second's worth is left.
            left_at = at + (second * BURST_SECONDS - wanted.remaining[limit]) / second
            booked, heard = max(booked, left_at), heard or left_at > booked
        booked = min(booked, at + SHUT_TOLD_SECONDS_MAX)
        until[limit] = max(booked, shut_until(record)) if shut_until(record) > at else booked
    return until, heard


@dataclass(frozen=True, slots=True)
class _Held:
    holders: dict[str, PaceHolder]
    slots: int
    news: bool
    is_new: bool


def _held(record: PaceRecord, settings: PaceSettings, worker: str, wanted: Wanted, at: float) -> _Held:
    """Who holds how many places, once this worker has got what it wants, or less."""
    holders = _holders(record, at)
    if settings.concurrency is None:
        # Others may have a limit, by another file.
        gone = holders.pop(worker, None) is not None
        return _Held(holders, 0, news=gone, is_new=gone)
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
    stays = before is not None and (before.slots, before.wants) == (slots, wants)
    is_due = before is not None and before.until.timestamp() - at <= HOLD_SECONDS - RENEW_SECONDS
    is_new = is_due or not stays if worker in holders else before is not None
    return _Held(holders, slots, news=fewer or newly_short, is_new=is_new)


def _holders(record: PaceRecord | None, at: float) -> dict[str, PaceHolder]:
    """Those whose time has not come."""
    if record is None:
        return {}
    return {name: each for name, each in record.holders.items() if each.until.timestamp() > at}


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)

"""What an event adds to the counters. Pure: the event alone says it, so that all who count come to the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from contracts.codec import decode
from contracts.errors import InvalidName, InvalidPayload
from contracts.fields import Tenant, Time
from contracts.journal.parts import ModelCall, Usage
from contracts.records.usage import NOT_TOLD, Counter, Place, amounts, day_of, month_of
from contracts.subjects import check_pool
from contracts.tasks import MODEL_CHARACTERS_MAX

_MARKS: Final = (b'"turn.completed"', b'"model.spent"', b'"lost"')
"""What is in the bytes of each event that adds something; few others have it, as a text."""
_LOST: Final = Usage(untold_calls=1)
AMOUNT_MAX: Final = 10**15
"""No call uses so much. What tells more is no count, and would take the sums with it."""


class _Spoken(msgspec.Struct, frozen=True):
    """As much of an event as counts."""

    type: str
    tenant: Tenant
    time: Time
    usage: Usage | None = None
    provider: str | None = None
    model: str | None = None
    pool: str | None = None
    lost: list[ModelCall] | None = None


def increments_of(payload: bytes) -> dict[Counter, int]:
    """What a stored event adds to the counters of its day and its month. Raises `InvalidPayload`."""
    if not any(mark in payload for mark in _MARKS):
        return {}
    event = decode(payload, _Spoken)
    day = day_of(event.time)
    increments: dict[Counter, int] = {}
    for provider, model, pool, usage, turns in _entries(event):
        for period in (day, month_of(day)):
            place = Place(event.tenant, period, _name(provider), _model(model), _name(pool))
            for what, amount in amounts(usage, turns):
                if amount > AMOUNT_MAX:
                    raise InvalidPayload(f"{what}: {amount:.3g} are more than any call uses")
                counter = Counter(place, what)
                increments[counter] = increments.get(counter, 0) + amount
    return increments


def _entries(event: _Spoken) -> Iterator[tuple[str | None, str | None, str | None, Usage, int]]:
    if event.type in ("turn.completed", "model.spent") and event.usage is not None:
        turns = int(event.type == "turn.completed")
        yield event.provider, event.model, event.pool, event.usage, turns
    for call in event.lost or ():
        yield call.provider, call.model, call.pool, _LOST, 0


def _model(name: str | None) -> str:
    """A model's name as a counter has it: one that is longer than any that a request may name fits no subject."""
    return name if name and len(name) <= MODEL_CHARACTERS_MAX else NOT_TOLD


def _name(name: str | None) -> str:
    """A name as a counter has it. A writer of another version may have one that fits no subject."""
    try:
        return NOT_TOLD if name is None else check_pool(name)
    except InvalidName:
        return NOT_TOLD

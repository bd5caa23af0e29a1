"""Counters of what tenants have used: their subjects, and what a call of a model adds to them. Pure.

There is a counter for each tenant, period, provider, model, pool and kind of amount, below
`usage.<tenant>.<period>.<provider>.<model>.<pool>.<what>`. A period is a day (`2026-11-27`) or a month (`2026-11`) in
UTC; the model is made one token, as any text may be its name (`subjects.as_token`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from contracts import subjects
from contracts.errors import InvalidName
from contracts.journal.parts import Usage

What = Literal["input", "output", "cached", "cache_creation", "reasoning", "turns", "cost", "unpriced", "untold"]
"""Tokens of each kind; completed turns; cost in millionths of the currency; tokens without a price; calls of which the
provider has told no usage, or not all of it."""
WHATS: Final[tuple[What, ...]] = get_args(What)
NOT_TOLD: Final = "_"
"""Stands for a provider, model or pool that an event does not name: those of versions before 0.2. It is no name of one
itself, but for a model, where it is as good as none."""
PLACES_REMEMBERED: Final = 4_096
"""Some 200 bytes each."""
_TOKENS: Final = 7
"""Of a counter's subject."""
_PERIOD: Final = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2})?")
_ESCAPED: Final = re.compile(r"=([0-9a-f]{2})")


class Place(NamedTuple):
    """What a counter counts for. `period`: a day or a month."""

    tenant: str
    period: str
    provider: str
    model: str
    pool: str


class Counter(NamedTuple):
    """A counter by its name."""

    place: Place
    what: What

    @property
    def subject(self) -> str:
        """Where it is counted. Raises `InvalidName`."""
        return f"{_subject_of(self.place)}.{self.what}"


@lru_cache(PLACES_REMEMBERED)
def _subject_of(place: Place) -> str:
    """What the subjects of a place's counters begin with. Whoever counts asks for the same ones all day."""
    names = (
        subjects.check_tenant(place.tenant),
        check_period(place.period),
        _name(place.provider),
        subjects.as_token(place.model),
        _name(place.pool),
    )
    return f"usage.{'.'.join(names)}"


def counter_of(subject: str) -> Counter:
    """The counter of a subject. Raises `InvalidName`."""
    names = subject.split(".")
    if len(names) != _TOKENS or names[0] != "usage" or names[-1] not in WHATS:
        raise InvalidName(f"not a counter's subject: {subject!r:.120}")
    tenant, period, provider, model, pool = names[1:6]
    place = Place(subjects.check_tenant(tenant), check_period(period), _name(provider), _text_of(model), _name(pool))
    return Counter(place, next(what for what in WHATS if what == names[-1]))


def counters_of(tenant: str | None, period: str) -> str:
    """The counters of a tenant, or of all, in a period, as a filter. Raises `InvalidName`."""
    return f"usage.{'*' if tenant is None else subjects.check_tenant(tenant)}.{check_period(period)}.*.*.*.*"


def check_period(value: str) -> str:
    """Return a day or a month unchanged, else raise `InvalidName`."""
    if _PERIOD.fullmatch(value) is None:
        raise InvalidName(f"not a day or a month: {value!r:.40}")
    return value


def day_of(at: datetime) -> str:
    """The day that a time is in, by UTC. Of one that UTC has none of, at either end of the calendar, its own."""
    try:
        return at.astimezone(UTC).date().isoformat()
    except OverflowError:
        return at.date().isoformat()


def month_of(day: str) -> str:
    """The month that a day is in."""
    return check_period(day)[:7]


def is_month(period: str) -> bool:
    """Whether a period is a month, and not a day."""
    return period == month_of(period)


def days_of(first: date, last: date) -> list[str]:
    """The days from one to another, both included."""
    return [(first + timedelta(days=at)).isoformat() for at in range((last - first).days + 1)]


def amounts(usage: Usage, turns: int = 0) -> Iterator[tuple[What, int]]:
    """What usage adds to the counters of its place; nothing that is 0. `turns`: how many were completed by it."""
    told: tuple[tuple[What, int | msgspec.UnsetType], ...] = (
        ("input", usage.input_tokens),
        ("output", usage.output_tokens),
        ("cached", usage.cached_tokens),
        ("cache_creation", usage.cache_creation_tokens),
        ("reasoning", usage.reasoning_tokens),
        ("turns", turns),
        ("cost", usage.cost_micros),
        ("unpriced", unpriced_of(usage)),
        ("untold", usage.untold_calls),
    )
    for what, amount in told:
        if amount:
            yield what, amount


def unpriced_of(usage: Usage) -> int:
    """Its tokens, read and put out, for which nobody has set a price: all, where it tells no cost."""
    if usage.cost_micros is msgspec.UNSET:
        return usage.input_tokens + usage.output_tokens
    return usage.unpriced_tokens or 0


def _name(value: str) -> str:
    return value if value == NOT_TOLD else subjects.check_pool(value)


def _text_of(token: str) -> str:
    """The text that `subjects.as_token` has made a token of."""
    return (
        _ESCAPED.sub(lambda found: chr(int(found[1], 16)), token)
        .encode("latin-1", "replace")
        .decode("utf-8", "replace")
    )

"""The counters in USAGE: adding to them, so that nothing counts twice, and reading them.

The stream adds up by itself (NATS ADR-49): a message has an increment, and its last message the sum. An increment can't
be fenced as an append is: the server (2.15.1) refuses `Nats-Expected-Last-Subject-Sequence` beside `Nats-Incr`. So all
that is counted at once is a batch with a name of its own, and each counter's last message tells the batch that it is
from. A message id of both makes a second copy a duplicate while the stream remembers it, for ten minutes; whoever goes
on with a batch after that asks the counters which of them have had it (`counted_in`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from contracts import headers
from contracts.codec import decode
from contracts.errors import InvalidName
from contracts.records.usage import Counter, What, counter_of, counters_of
from contracts.streams import USAGE
from mesh.broker.direct_get import LAST_SUBJECTS_MAX, Stored, last_from_leader, last_of_many, subjects_of
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable

AT_ONCE_MAX: Final = 32
"""Requests under way at a time: the broker takes ten thousand a second, and others wait for it, too."""
PERIODS_AT_ONCE_MAX: Final = 8
"""Days and months that are read at a time: a year of them, one after the other, takes half a minute at 40 ms."""
LOOKED_UP_BYTES_MAX: Final = 48 * 1024
"""Of the names that are looked up at once: they have to fit into a request to the smallest broker."""
DAYS_KEPT: Final = 366
"""Counters of days. Those of months stay."""
MICROS: Final = 1_000_000
"""Of what costs are told in, in one of the currency."""


T = TypeVar("T")


class Totals(NamedTuple):
    """What was used in a period. `cost_micros` is of all that has a price; `untold_calls` are in nothing else."""

    input_tokens: int = 0
    output_tokens: int = 0
    turns: int = 0
    cost_micros: int = 0
    unpriced_tokens: int = 0
    untold_calls: int = 0

    @property
    def tokens(self) -> int:
        """Read and put out together."""
        return self.input_tokens + self.output_tokens


class _Value(msgspec.Struct):
    val: Annotated[str, msgspec.Meta(max_length=64)]


def _always() -> bool:
    return True


def by_subject(increments: Mapping[Counter, int]) -> dict[str, int]:
    """Increments by the subjects of their counters. Raises `InvalidName`."""
    return {counter.subject: increment for counter, increment in increments.items()}


async def add(requests: Requests, increments: Mapping[str, int], batch: str, may: Callable[[], bool] = _always) -> None:
    """Count a batch, by its counters' subjects; its name is its own. Once more within ten minutes changes nothing.

    `may` is asked right before each increment goes out. Raises `BrokerError`, `BrokerUnavailable`, also where it may
    not go on: then none of it is under way any more.
    """

    async def count(subject: str) -> None:
        if not may():
            raise BrokerUnavailable("others count now: this took too long")
        message_headers = {
            headers.INCREMENT: f"{increments[subject]:+d}",
            headers.USAGE_BATCH: batch,
            headers.MESSAGE_ID: f"{batch}:{subject}",
        }
        await requests.publish(subject, b"", message_headers)

    await _each(count, [subject for subject, increment in increments.items() if increment], AT_ONCE_MAX)


async def counted_in(requests: Requests, subjects: Collection[str], batch: str) -> set[str]:
    """Which counters' last increment was of this batch, by the stream's leader.

    Raises `BrokerError`, `BrokerUnavailable`.
    """
    found: set[str] = set()

    async def look(subject: str) -> None:
        last = await last_from_leader(requests, USAGE.name, subject)
        if last is not None and last.headers.get(headers.USAGE_BATCH) == batch:
            found.add(subject)

    await _each(look, subjects, AT_ONCE_MAX)
    return found


async def read(requests: Requests, tenant: str | None, periods: Collection[str]) -> dict[Counter, int]:
    """The counters of a tenant, or of all tenants, in these days and months, without those that are 0.

    Two requests for a period with up to some hundred counters. What is under the stream's subjects and no counter of
    this version's is passed over. Raises `BrokerUnavailable`, `InvalidName`.
    """
    values: dict[Counter, int] = {}

    async def read_period(period: str) -> None:
        names = await subjects_of(requests, USAGE.name, counters_of(tenant, period))
        for chunk in _chunks(names):
            for subject, stored in (await last_of_many(requests, USAGE.name, chunk)).items():
                try:
                    counter = counter_of(subject)
                except InvalidName:
                    continue
                if value := value_of(stored):
                    values[counter] = value

    await _each(read_period, periods, PERIODS_AT_ONCE_MAX)
    return values


async def read_from_leader(requests: Requests, counters: Collection[Counter]) -> dict[Counter, int]:
    """What each of these has, 0 as well, by the stream's leader. Raises `BrokerError`, `BrokerUnavailable`."""
    values: dict[Counter, int] = {}

    async def look(counter: Counter) -> None:
        last = await last_from_leader(requests, USAGE.name, counter.subject)
        values[counter] = value_of(last) if last is not None else 0

    await _each(look, counters, AT_ONCE_MAX)
    return values


async def totals(requests: Requests, tenant: str, periods: Sequence[str]) -> dict[str, Totals]:
    """What a tenant has used in each of these days and months (`2026-11-27`, `2026-11`), by its name.

    What a turn has used is in there some seconds after its end, as a steward counts it. Raises `BrokerUnavailable`,
    `InvalidName`.
    """
    sums: dict[str, dict[What, int]] = {period: {} for period in periods}
    for (place, what), value in (await read(requests, tenant, periods)).items():
        sums[place.period][what] = sums[place.period].get(what, 0) + value
    return {period: totals_of(amounts) for period, amounts in sums.items()}


def totals_of(amounts: Mapping[What, int]) -> Totals:
    """The totals of amounts of each kind."""
    return Totals(
        input_tokens=amounts.get("input", 0),
        output_tokens=amounts.get("output", 0),
        turns=amounts.get("turns", 0),
        cost_micros=amounts.get("cost", 0),
        unpriced_tokens=amounts.get("unpriced", 0),
        untold_calls=amounts.get("untold", 0),
    )


async def _each(act: Callable[[T], Awaitable[None]], items: Collection[T], at_once_max: int) -> None:
    """Act on each of them, several at a time. Of a failure is told once nothing is under way any more."""
    failures: list[Exception] = []
    left = iter(items)

    async def work() -> None:
        for item in left:
            try:
                await act(item)
            except Exception as error:
                failures.append(error)
            if failures:
                return

    await asyncio.gather(*(work() for _ in range(min(at_once_max, len(items)))))
    if failures:
        raise failures[0]


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    """As many of them at a time as are looked up at once."""
    chunk: list[str] = []
    size = 0
    for name in names:
        size += len(name) + 3
        if chunk and (len(chunk) == LAST_SUBJECTS_MAX or size > LOOKED_UP_BYTES_MAX):
            yield chunk
            chunk, size = [], len(name) + 3
        chunk.append(name)
    if chunk:
        yield chunk


def value_of(stored: Stored) -> int:
    """The sum that a counter's last message tells. Raises `InvalidPayload`."""
    return int(decode(stored.payload, _Value).val)

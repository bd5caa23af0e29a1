"""Changes of valves at the broker: shut, opened, and a tenant's limits for a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final, TypeVar

from msgspec.structs import replace

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.records.valves import TenantLimits, Valve
from contracts.streams import VALVES_BUCKET
from contracts.valve_keys import VALVES_CHANGED, limits_key, valve_key
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import BrokerUnavailable
from mesh.valves.watched import holds

CHANGE_SECONDS_MAX: Final = 5.0
"""How long a change is tried while others change the same record."""
AGAIN_SECONDS_MAX: Final = 0.02
"""Who was not the first waits for a moment by chance: of two dozen all get through."""

Record = TypeVar("Record", Valve, TenantLimits)


class ValveUnknown(TaskmeshError):
    """Nothing of that name is paused, or limited."""

    code = "not-found"


async def shut(requests: Requests, valve: Valve) -> Valve:
    """Pause what a valve names; what is paused already stays so since when it was, with what is said now.

    Returns the record. Raises `BrokerUnavailable`, and `NoRoom` if the bucket is full.
    """

    def next_of(before: Valve | None) -> Valve:
        if before is None or not holds(before, valve.since):
            return valve
        return replace(valve, since=before.since)

    return await _change(requests, valve_key(valve.kind, valve.name), Valve, next_of)


async def limit(requests: Requests, limits: TenantLimits) -> TenantLimits:
    """Give a tenant limits for a while, in place of those that it had for a while. Raises as `shut`."""
    return await _change(requests, limits_key(limits.tenant), TenantLimits, lambda _: limits)


async def open_again(requests: Requests, key: str, kind: type[Record]) -> Record:
    """Take a record away, and return it. Raises `ValveUnknown` where there is none that holds, `BrokerUnavailable`."""
    async for _ in _tries():
        entry = await key_value.get_from_leader(requests, VALVES_BUCKET.name, key)
        if entry is None or entry.value is None:
            raise ValveUnknown(f"{key}: nothing is paused or limited there")
        if not await key_value.compare_and_delete(requests, VALVES_BUCKET.name, key, entry.revision):
            continue
        await requests.announce(VALVES_CHANGED)
        record = _decoded(entry, kind)
        ends: datetime | None = record.until if record is not None else None
        if record is None or (ends is not None and ends <= now()):
            raise ValveUnknown(f"{key}: nothing is paused or limited there any more")
        return record
    raise BrokerUnavailable(f"{key} is changed by others again and again")


async def _change(
    requests: Requests, key: str, kind: type[Record], next_of: Callable[[Record | None], Record]
) -> Record:
    async for _ in _tries():
        entry = await key_value.get_from_leader(requests, VALVES_BUCKET.name, key)
        record = next_of(_decoded(entry, kind))
        revision = entry.revision if entry is not None else 0
        if await key_value.compare_and_set(requests, VALVES_BUCKET.name, key, encode(record), revision):
            await requests.announce(VALVES_CHANGED)
            return record
    raise BrokerUnavailable(f"{key} is changed by others again and again")


async def _tries() -> AsyncIterator[None]:
    """One after the other, for so long."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + CHANGE_SECONDS_MAX
    while loop.time() < give_up_at:
        yield
        await asyncio.sleep(random.uniform(0, AGAIN_SECONDS_MAX))


def _decoded(entry: key_value.KeyValueEntry | None, kind: type[Record]) -> Record | None:
    """The record; None where there is none, or one of another version, which may be replaced."""
    if entry is None or not entry.value:
        return None
    try:
        return decode(entry.value, kind)
    except InvalidPayload:
        return None

"""How many tasks the critic has got in the last hour, of all stewards together, before and after a restart."""

from __future__ import annotations

import msgspec

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.fields import Id
from contracts.streams import TRIGGERS_BUCKET
from mesh import faults
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable

BUCKET = TRIGGERS_BUCKET.name
HOUR_SECONDS = 3600.0
TRIES_MAX = 16
"""How often it is written before it counts as contended: each try that fails let another steward's through."""


class CriticPace(msgspec.Struct, frozen=True):
    """The tasks of the last hour, as `[task, Unix time in seconds]`, the oldest first."""

    started: list[tuple[Id, float]] = []


def admitted(pace: CriticPace, task: str, per_hour_max: int, now: float) -> CriticPace | None:
    """What the pace is once the critic has got a task; None if there is no room for it.

    A task that was let through in the last hour needs no room again. What lies more than an hour ahead was written by a
    clock that was wrong, and counts for nothing.
    """
    kept = [(each, time) for each, time in pace.started if now - HOUR_SECONDS < time <= now + HOUR_SECONDS]
    if any(each == task for each, _ in kept):
        return pace
    return CriticPace([*kept, (task, round(now))]) if len(kept) < per_hour_max else None


async def admit(requests: Requests, task: str, per_hour_max: int, now: float) -> bool:
    """Count a task of the critic, if there is room for it in this hour.

    By compare-and-set, so that any number of stewards share one bound. Who dies between this and the task finds its
    place kept. Raises `BrokerUnavailable`.
    """
    for _ in range(TRIES_MAX):
        entry = await key_value.get(requests, BUCKET, subjects.CRITIC_PACE_KEY)
        pace = _pace(entry.value if entry else None)
        after = admitted(pace, task, per_hour_max, now)
        if after is None or after is pace:
            return after is pace
        revision = entry.revision if entry else 0
        if await key_value.compare_and_set(requests, BUCKET, subjects.CRITIC_PACE_KEY, encode(after), revision):
            faults.reach("after-admit", "critic")
            return True
    raise BrokerUnavailable("the critic's pace is contended")


def _pace(value: bytes | None) -> CriticPace:
    try:
        return decode(value, CriticPace) if value else CriticPace()
    except InvalidPayload:
        return CriticPace()

"""How streams grow, how long they last, and how many tasks a day fit. Pure: from samples and measured bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from contracts.records.storage import StorageSample
from mesh.broker.levels import ACCOUNT, DISK, Level

DAY_SECONDS: Final = 86_400.0
GROWTH_SECONDS_MIN: Final = 600.0
"""Growth over less than ten minutes says nothing of a day."""
WHOLE_DAY: Final = 0.95
"""The part of a day from which on growth counts as measured over one; samples are an hour apart."""
TASKS_MIN: Final = 50
"""Of fewer tasks the bytes of each are chance: then the figures below stand in."""


class TaskBytes(NamedTuple):
    """What one ended task takes: its journal and its record until it is packed, then its part of a pack and its place.

    `is_measured` says whether the first two are of this mesh, `is_packed_measured` whether the last two are.
    """

    journal: float
    record: float
    packed: float
    place: float
    is_measured: bool
    is_packed_measured: bool


BY_DEFAULT: Final = TaskBytes(5_000, 1_100, 1_500, 85, is_measured=False, is_packed_measured=False)
"""Of a small task of one turn: 3,000 bytes of milestones and its deltas."""


class Growth(NamedTuple):
    """By how much something grows in a day, net of what goes; `over_seconds` is how long that was looked at."""

    bytes_a_day: float
    over_seconds: float

    @property
    def is_extrapolated(self) -> bool:
        """Whether it was looked at for less than a day."""
        return self.over_seconds < WHOLE_DAY * DAY_SECONDS


class Kept(NamedTuple):
    """How long tasks are kept after their end, in days: unpacked, then packed. And the mark that nothing may pass."""

    unpacked_days: float
    packed_days: float
    high_water_percent: float


class TasksADay(NamedTuple):
    """How many tasks a day fit for good, and what they fill up first."""

    tasks: float
    bound_by: str


def growth(name: str, used_bytes: int, samples: Sequence[StorageSample], at: datetime) -> Growth | None:
    """The growth of one stream: since the sample that is nearest to a day ago. None if there is none old enough."""
    usable = [
        (sample, (at - sample.time).total_seconds())
        for sample in samples
        if name in sample.bytes and (at - sample.time).total_seconds() >= GROWTH_SECONDS_MIN
    ]
    if not usable:
        return None
    sample, over_seconds = min(usable, key=lambda each: abs(each[1] - DAY_SECONDS))
    return Growth((used_bytes - sample.bytes[name]) * DAY_SECONDS / over_seconds, over_seconds)


def days_left(level: Level, grows: Growth | None, high_water_percent: float) -> float | None:
    """Days until the level is at the mark, if it goes on like that; None if it does not grow, or has no limit."""
    if grows is None or grows.bytes_a_day <= 0 or level.limit_bytes <= 0:
        return None
    return max(0.0, level.limit_bytes * high_water_percent / 100 - level.used_bytes) / grows.bytes_a_day


def kept(pack_after_hours: float, retention_days: float, high_water_percent: float) -> Kept:
    """How long tasks are kept where, by the settings."""
    unpacked = min(pack_after_hours / 24, retention_days)
    return Kept(unpacked, retention_days - unpacked, high_water_percent)


def task_bytes(levels: Mapping[str, Level], packs: Level, packed_tasks: int) -> TaskBytes:
    """What a task takes here, as far as there are enough of them to tell.

    `packs` are messages of ARCHIVE that were looked at, and `packed_tasks` how many tasks they hold.
    """
    records, archive, places = levels.get("KV_tasks"), levels.get("ARCHIVE"), levels.get("KV_archive")
    found = BY_DEFAULT
    if records is not None and "EVENTS" in levels and records.messages >= TASKS_MIN:
        journal = levels["EVENTS"].used_bytes / records.messages
        found = found._replace(journal=journal, record=records.used_bytes / records.messages, is_measured=True)
    if archive is not None and places is not None and packed_tasks >= TASKS_MIN:
        packed = packs.used_bytes / packed_tasks
        place = places.used_bytes * packed / archive.used_bytes
        found = found._replace(packed=packed, place=place, is_packed_measured=True)
    return found


def tasks_a_day(levels: Mapping[str, Level], each: TaskBytes, keeps: Kept) -> TasksADay | None:
    """How many tasks may end in a day, for ever, with no level above the mark; None if nothing bounds them."""
    unpacked, packed = keeps.unpacked_days, keeps.packed_days
    days_bytes = {
        "EVENTS": unpacked * each.journal,
        "KV_tasks": unpacked * each.record,
        "ARCHIVE": packed * each.packed,
        "KV_archive": packed * each.place,
    }
    days_bytes |= {ACCOUNT: sum(days_bytes.values()), DISK: sum(days_bytes.values())}
    fits = {
        name: levels[name].limit_bytes * keeps.high_water_percent / 100 / taken
        for name, taken in days_bytes.items()
        if taken > 0 and name in levels and levels[name].limit_bytes > 0
    }
    if not fits:
        return None
    bound_by = min(fits, key=lambda name: fits[name])
    return TasksADay(fits[bound_by], bound_by)

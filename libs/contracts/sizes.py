"""How large streams and buckets are: a total is shared out among them, each between a least and a most. Pure.

The streams of a mesh are as different as their uses: packs of ended tasks may fill most of a disk, and a queue of
work needs little of even the largest. So each has a share, which says how it stands to the others; a least, with which
a mesh runs on the smallest disk that will do; and a most, beyond which more room would be of no use to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from contracts.errors import TaskmeshError

MIB = 1024**2
GIB = 1024**3
_UNLIMITED = 2**60
"""More than any disk has."""


class Size(NamedTuple):
    """What a stream gets of a total: a share, as it stands to the shares of others, within bounds in bytes."""

    share: float
    least_bytes: int
    most_bytes: int


_SMALL_BUCKET = Size(0.07, 4 * MIB, 16 * MIB)
"""Records of processes, lanes, rules: at most some thousands, each below 1 MiB."""

SIZES: Mapping[str, Size] = MappingProxyType(
    {
        # Journals of what runs, and of what has ended in the last day.
        "EVENTS": Size(32, 64 * MIB, 256 * GIB),
        # All ended tasks of a month: the one that grows with the disk.
        "ARCHIVE": Size(36, 32 * MIB, _UNLIMITED),
        # Records of the same tasks as in EVENTS, a third of their size. Their number is bounded by memory, too.
        "KV_tasks": Size(8, 16 * MIB, 16 * GIB),
        # A result has up to 16 MiB.
        "OBJ_results": Size(6, 32 * MIB, 64 * GIB),
        # Some 70 bytes for each task in ARCHIVE.
        "KV_archive": Size(4, 8 * MIB, 64 * GIB),
        "DEAD_LETTERS": Size(4, 16 * MIB, 16 * GIB),
        # Queues. The largest message has 1 MiB; TASKS takes 50,000 messages, BACKLOG 100,000, and what waits elsewhere
        # came from there.
        "TASKS": Size(2, 8 * MIB, 2 * GIB),
        "BACKLOG": Size(3, 8 * MIB, 4 * GIB),
        "TURNS": Size(2, 16 * MIB, 2 * GIB),
        "TOOLS": Size(2, 16 * MIB, 2 * GIB),
        "CONTROL": Size(0.6, 8 * MIB, 512 * MIB),
        # Some 490 bytes for each timer: at the most half a million.
        "TIMERS": Size(1, 8 * MIB, 256 * MIB),
        "SIGNALS": Size(1, 8 * MIB, GIB),
        "ADVISORIES": Size(0.2, 4 * MIB, 64 * MIB),
        # Some 280 bytes for each counter: a tenant, a day, a model and a kind.
        "USAGE": Size(0.5, 4 * MIB, GIB),
        "KV_workers": _SMALL_BUCKET,
        "KV_providers": _SMALL_BUCKET,
        "KV_lanes": _SMALL_BUCKET,
        "KV_tools": _SMALL_BUCKET,
        "KV_triggers": _SMALL_BUCKET,
        "KV_walks": _SMALL_BUCKET,
        "KV_storage": _SMALL_BUCKET,
        "KV_keys": _SMALL_BUCKET,
        "KV_valves": _SMALL_BUCKET,
        "KV_budgets": _SMALL_BUCKET,
    }
)
"""By the name of the stream; that of a bucket is `KV_<bucket>`, and `OBJ_results` is the store of large results."""

DEFAULT_TOTAL_BYTES = 24 * GIB
"""What is shared out where nobody knows how much there is: a broker of one's own without a limit of its account."""
LEAST_TOTAL_BYTES = sum(size.least_bytes for size in SIZES.values())
"""The least with which a mesh runs: each stream has its least then."""

TASK_MEMORY_BYTES = 2 * 1024
"""What the broker needs of memory for a task in EVENTS and in the bucket `tasks`: about 1.2 KiB was measured while
300,000 of them were stored, and more where many are stored at once."""
TASKS_MEMORY_SHARE = 0.5
"""The part of a machine's memory that this may come to."""
TASK_RECORD_BYTES = 1_100
"""A status record, as it is stored: small ones, measured."""


class SizesDoNotFit(TaskmeshError):
    """Sizes that can't be: their sum is more than there is, or what is left for the others is too little."""


def share_out(
    total_bytes: int, given: Mapping[str, int] | None = None, memory_bytes: int | None = None
) -> dict[str, int]:
    """The size of each stream in bytes, by name; their sum is at most `total_bytes`.

    `given` are sizes that hold as they are; the others share what these leave. `memory_bytes` is what the broker's
    machine has: it bounds how many tasks may lie unpacked, and so the bucket of their records. Raises `SizesDoNotFit`.
    """
    given = given or {}
    others = {name: size for name, size in SIZES.items() if name not in given}
    if memory_bytes is not None and "KV_tasks" in others:
        others["KV_tasks"] = _in_memory(others["KV_tasks"], memory_bytes)
    left = total_bytes - sum(given.values())
    least = sum(size.least_bytes for size in others.values())
    if left < least:
        raise SizesDoNotFit(_does_not_fit(total_bytes, given, least))
    level = _level(others, left)
    sizes = {name: _of(size, level) for name, size in others.items()}
    return {name: given[name] if name in given else sizes[name] for name in SIZES}


def text(size_bytes: float) -> str:
    """A size for people, as settings have it: `1.5GiB`, with one digit after the point, rounded down."""
    for unit, name in ((1024 * GIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")):
        if size_bytes >= unit:
            return f"{int(size_bytes * 10 / unit) / 10:g}{name}"
    return f"{size_bytes / 1024:.0f}KiB"


def share_of(total_bytes: int, percent: float) -> int:
    """So many percent of a total, in whole MiB."""
    return int(total_bytes * percent / 100) // MIB * MIB


def _level(sizes: Mapping[str, Size], total_bytes: int) -> float:
    """Bytes for one of share: the most with which the sum of all sizes is within the total. By halves."""
    low, high = 0.0, float(total_bytes) / min((size.share for size in sizes.values()), default=1.0)
    for _ in range(100):
        middle = (low + high) / 2
        if sum(_of(size, middle) for size in sizes.values()) <= total_bytes:
            low = middle
        else:
            high = middle
    return low


def _of(size: Size, level: float) -> int:
    wanted = min(max(size.share * level, size.least_bytes), size.most_bytes)
    # Whole MiB read well, and do not change with each byte of the disk.
    return int(wanted) // MIB * MIB


def _in_memory(size: Size, memory_bytes: int) -> Size:
    tasks = memory_bytes * TASKS_MEMORY_SHARE / TASK_MEMORY_BYTES
    most = max(size.least_bytes, int(tasks * TASK_RECORD_BYTES))
    return size._replace(most_bytes=min(size.most_bytes, most))


def _does_not_fit(total_bytes: int, given: Mapping[str, int], least_of_others: int) -> str:
    if not given:
        return f"the streams need {text(least_of_others)} at least, and there are {text(total_bytes)}"
    return (
        f"the sizes that are set come to {text(sum(given.values()))}, and the other streams need"
        f" {text(least_of_others)} at least: that is more than the total of {text(total_bytes)}"
    )

"""How full streams, the account and the disk are, and whether TIMERS has room for one more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from contracts.codec import decode
from contracts.headers import STATUS
from contracts.records.storage import StoreRoom
from contracts.sizes import SIZES
from contracts.streams import (
    ARCHIVE,
    ARCHIVE_BUCKET,
    BACKLOG,
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    RESULTS,
    TASKS,
    TASKS_BUCKET,
    TIMERS,
    TOOLS,
    TURNS,
)
from contracts.subjects import STORE_ROOM
from mesh.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from mesh.broker.requests import Requests

ACCOUNT = "account"
"""Stands for the storage of the whole JetStream account, beside names of streams."""
DISK = "disk"
"""Stands for what the broker's store can have of its disk."""
NEEDED = (
    *(stream.name for stream in (EVENTS, TASKS, TURNS, TOOLS, CONTROL, TIMERS, DEAD_LETTERS, RESULTS)),
    TASKS_BUCKET.stream_name,
)
"""What a task needs to begin, to go on and to end."""
WATCHED = (*NEEDED, BACKLOG.name, ARCHIVE.name, ARCHIVE_BUCKET.stream_name)
"""What is looked at. While ended tasks can't be packed they stay where they are, so that the others fill up in time.
A full BACKLOG refuses those who have much there, and nobody whose lane has room."""
ROOM_SECONDS_MAX = 2.0
"""How long to wait for the room of the store. Where nobody serves it the broker says so at once."""
STREAM_NOT_FOUND = 10059
TIMERS_PERCENT_MAX = 97.0
"""From here on no timer is published: those who want to wait. The rest is for what many publish between two looks."""
LOOK_SECONDS = 2.0
"""How long a look at TIMERS is good for, while timers are published: an idle process never looks."""
SHARE_MAX = 32
"""Of the room that a look has shown a process uses up this part before it looks again."""


class Level(NamedTuple):
    """How much of its storage something uses, in bytes. A limit of 0 or below is none.

    `messages` and `subjects` are how many a stream has.
    """

    name: str
    used_bytes: int
    limit_bytes: int
    messages: int = 0
    subjects: int = 0

    @property
    def percent(self) -> float:
        """Of the limit; 0 where there is none."""
        return 100 * self.used_bytes / self.limit_bytes if self.limit_bytes > 0 else 0.0


def above(levels: Iterable[Level], percent: float) -> list[Level]:
    """The levels at or above a mark, the fullest first."""
    return sorted((level for level in levels if level.percent >= percent), key=lambda level: -level.percent)


def refusing(levels: Iterable[Level], percent: float) -> list[Level]:
    """The levels for which no new task is taken, the fullest first: of what a task needs to begin, go on and end."""
    return above((level for level in levels if level.name in (*NEEDED, ACCOUNT, DISK)), percent)


def describe(level: Level) -> str:
    """A level, for people."""
    if level.name == DISK:
        return f"the disk of the broker's store is {level.percent:.0f} % full"
    return f"storage of {level.name} is {level.percent:.0f} % full"


def level_of(info: dict[str, Any]) -> Level:
    """The level of a stream, by its `STREAM.INFO` answer."""
    config, state = info["config"], info["state"]
    counts = int(state.get("messages", 0)), int(state.get("num_subjects", 0))
    return Level(str(config["name"]), int(state["bytes"]), int(config["max_bytes"]), *counts)


def disk_level(room: StoreRoom) -> Level:
    """The level of a disk: what the store takes, of what it could take at present. What others take counts as gone."""
    return Level(DISK, room.used_bytes, room.limit_bytes)


async def store_room(requests: Requests) -> StoreRoom | None:
    """How much room the broker's store has on its disk; None where nobody knows, as of a broker of one's own.

    Raises `BrokerUnavailable` if there is somebody who should, and gave no answer.
    """
    answer = await requests.one(STORE_ROOM, timeout_seconds=ROOM_SECONDS_MAX)
    if answer.headers and STATUS in answer.headers:
        return None
    return decode(answer.data, StoreRoom)


async def read_levels(requests: Requests) -> list[Level]:
    """The levels of all that is watched, and of the account. What is not there has none.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    found = await asyncio.gather(*(_read_level(requests, stream) for stream in WATCHED))
    return [*(level for level in found if level is not None), _account(await requests.api("INFO"))]


async def read_all_levels(requests: Requests) -> list[Level]:
    """The levels of all streams and buckets, of the account, and of the disk if somebody knows it.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    found = await asyncio.gather(*(_read_level(requests, stream) for stream in SIZES))
    levels = [*(level for level in found if level is not None), _account(await requests.api("INFO"))]
    disk = await read_disk_level(requests)
    return [*levels, disk] if disk is not None else levels


async def read_disk_level(requests: Requests) -> Level | None:
    """The level of the disk; None where nobody knows. Raises `BrokerUnavailable`, `InvalidPayload`."""
    room = await store_room(requests)
    return disk_level(room) if room is not None else None


async def _read_level(requests: Requests, stream: str) -> Level | None:
    info = await stream_info(requests, stream)
    return None if info is None else level_of(info)


async def stream_info(requests: Requests, stream: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the leader of a stream says of it; None if there is no such stream.

    Raises `BrokerError`, `BrokerUnavailable`.
    """
    try:
        return await requests.api(f"STREAM.INFO.{stream}", body)
    except BrokerError as error:
        if error.number != STREAM_NOT_FOUND:
            raise
        return None


def _account(info: dict[str, Any]) -> Level:
    """The account's level. An account in tiers (R1, R3) is as full as its fullest tier."""
    tiers = list(info.get("tiers", {}).values()) or [info]
    levels = [Level(ACCOUNT, int(tier["storage"]), int(tier["limits"]["max_storage"])) for tier in tiers]
    return max(levels, key=lambda level: level.percent)


class TimerRoom:
    """Whether TIMERS takes one more timer.

    The stream itself never refuses: schedules can't be combined with discard new, so that a full one drops its oldest
    message, which may be a timer that somebody waits for. So whoever publishes one asks here before.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._level = Level(TIMERS.name, 0, 0)
        self._left_bytes = 0.0

    async def take(self, size_bytes: int) -> None:
        """Take room for a timer of about that size. Raises `BrokerUnavailable` if there is none, or nobody knows."""
        if not self._is_good(size_bytes):
            async with self._looking:
                if not self._is_good(size_bytes):
                    await self._look()
        if self._level.percent >= TIMERS_PERCENT_MAX:
            raise BrokerUnavailable(f"no room for a timer: {describe(self._level)}")
        self._left_bytes -= size_bytes

    def _is_recent(self) -> bool:
        return asyncio.get_running_loop().time() - self._looked_at < LOOK_SECONDS

    def _is_good(self, size_bytes: int) -> bool:
        # A full stream stays full for a moment: those who wait for it need not all ask.
        full = self._level.percent >= TIMERS_PERCENT_MAX
        return self._is_recent() and (full or self._left_bytes >= size_bytes)

    async def _look(self) -> None:
        info = await self._requests.api(f"STREAM.INFO.{TIMERS.name}")
        self._level = level_of(info)
        limit, used = self._level.limit_bytes, self._level.used_bytes
        self._left_bytes = (limit * TIMERS_PERCENT_MAX / 100 - used) / SHARE_MAX if limit > 0 else float("inf")
        self._looked_at = asyncio.get_running_loop().time()

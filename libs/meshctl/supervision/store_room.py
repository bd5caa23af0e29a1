"""How much room the embedded broker's store has: on its disk, and of the machine's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from contracts.records.storage import StoreRoom
from contracts.sizes import LEAST_TOTAL_BYTES, MIB, share_of, text
from mesh.broker.sizing import DISK_PERCENT, sizes_of
from mesh.configuration.mesh_toml import Configuration
from mesh.errors import SettingsError

RESERVE_PERCENT: Final = 5.0
RESERVE_BYTES_MAX: Final = 1024 * MIB
"""What is left of a disk for logs, and for whatever else is on it: so many percent of it, and no more than this."""
_CGROUP_MEMORY: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may have: version 2, and version 1."""
_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the file system's own blocks are."""


def measure(store: Path, share_bytes: int | None = None) -> StoreRoom:
    """Look at the store and its disk now. Blocks. Raises `OSError`.

    `share_bytes` is what the store could have when the broker was started; absent, it is what it could have now.
    """
    disk = os.statvfs(store)
    used = stored_bytes(store)
    free = disk.f_bavail * disk.f_frsize
    reserve = min(share_of(disk.f_blocks * disk.f_frsize, RESERVE_PERCENT), RESERVE_BYTES_MAX)
    room = max(0, used + free - reserve)
    return StoreRoom(
        used_bytes=used,
        free_bytes=free,
        reserve_bytes=reserve,
        share_bytes=room if share_bytes is None else share_bytes,
        memory_bytes=memory_bytes(),
    )


def stored_bytes(folder: Path) -> int:
    """What the files below a folder take of the disk. What disappears meanwhile does not count."""
    total = 0
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return 0
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                total += stored_bytes(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
        except FileNotFoundError:
            continue
    return total


def memory_bytes(limits: tuple[Path, ...] = _CGROUP_MEMORY) -> int:
    """What processes here may have of memory: of the machine, or less in a container that is bounded."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # There is none, or it says "max".
        return min(machine, limit)
    return machine


def room_at_start(configuration: Configuration, store: Path) -> StoreRoom:
    """The room that sizes come from. Blocks. Raises `OSError`, and `SettingsError` with the numbers if they do not fit.

    A store that holds something is started all the same: its streams are there, and stay as they are. Whoever has
    filled the disk since may go, and retention may make room.
    """
    storage, room = configuration.storage, measure(store)
    if any(store.iterdir()):
        # With 1 % on top, so that what is rounded down is no less than the least.
        least = int(LEAST_TOTAL_BYTES * 100 / (storage.total_percent or DISK_PERCENT) * 1.01)
        room = msgspec.structs.replace(room, share_bytes=max(room.share_bytes, least, storage.total_bytes or 0))
    total = storage.total_of(room.share_bytes, DISK_PERCENT)
    if total > room.share_bytes:
        raise SettingsError(
            f"{configuration.source}: storage.total: {text(total)} is more than the {text(room.share_bytes)} that the"
            f" disk of {store} has: lower it, leave it out, or put MESH_HOME on a larger disk"
        )
    if total < LEAST_TOTAL_BYTES and storage.total is None:
        raise SettingsError(
            f"MESH_HOME: the disk of {store} has {text(room.share_bytes)}, of which {DISK_PERCENT:g} % are for streams:"
            f" they need {text(LEAST_TOTAL_BYTES)} at least. Make room, or put MESH_HOME on a larger disk"
        )
    sizes_of(storage, total, room.memory_bytes, configuration.source)
    return room

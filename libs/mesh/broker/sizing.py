"""How large the streams of a mesh are to be: what mesh.toml says, of what its broker has.

Everybody who creates or compares streams works out the same sizes, each for himself. What they come from is told by
the broker's side: `meshctl up` answers on `storage.room` for the broker that it runs, and says how much room the store
had when that was started; an account that has a limit says so itself. Where nobody says anything a total stands in.
"""

from __future__ import annotations

from typing import NamedTuple

from contracts.sizes import DEFAULT_TOTAL_BYTES, SizesDoNotFit, share_out
from mesh.broker.levels import store_room
from mesh.broker.requests import Requests
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.storage_table import StorageConfiguration
from mesh.errors import SettingsError

DISK_PERCENT = 75.0
"""Of what a disk has for the store. Streams hold on to more than their messages: what is deleted goes a block at a
time, and there are indexes. What that comes to differs, so the disk itself is watched as well."""
ACCOUNT_PERCENT = 90.0
"""Of an account's limit: the server reserves the sizes, and somebody else may keep a stream there."""


class Sizes(NamedTuple):
    """The size of each stream in bytes, by name. `asked_for` are those that mesh.toml decides on.

    The others follow from what there is: a stream that is larger than that stays so, and counts as it should be.
    """

    by_stream: dict[str, int]
    asked_for: frozenset[str]
    total_bytes: int


def sizes_by_default() -> Sizes:
    """What holds where neither mesh.toml nor the broker says anything."""
    return Sizes(share_out(DEFAULT_TOTAL_BYTES), frozenset(), DEFAULT_TOTAL_BYTES)


def sizes_of(storage: StorageConfiguration, total_bytes: int, memory_bytes: int | None, source: str) -> Sizes:
    """The sizes for a total. Raises `SettingsError` with the numbers if they do not fit."""
    given = storage.sizes
    try:
        by_stream = share_out(total_bytes, given, memory_bytes)
    except SizesDoNotFit as error:
        raise SettingsError(f"{source}: storage: {error}: {_remedy(storage)}") from None
    return Sizes(by_stream, frozenset(given if storage.total is None else by_stream), total_bytes)


async def find_sizes(requests: Requests, configuration: Configuration, replicas: int = 1) -> Sizes:
    """The sizes for this mesh and its broker. Raises `BrokerUnavailable`, `BrokerError`, `SettingsError`.

    `replicas`: how many copies there are to be; each counts against the account's limit.
    """
    storage = configuration.storage
    room = await store_room(requests)
    if room is not None:
        total = storage.total_of(room.share_bytes, DISK_PERCENT)
        return sizes_of(storage, total, room.memory_bytes, configuration.source)
    total = storage.total_bytes or await _account_total(requests, storage, configuration.source, replicas)
    return sizes_of(storage, total, None, configuration.source)


async def account_limit_bytes(requests: Requests) -> int | None:
    """The limit of the account's storage; None if it has none, or one for each kind of replication."""
    info = await requests.api("INFO")
    limit = int(info["limits"]["max_storage"]) if "limits" in info and not info.get("tiers") else -1
    return limit if limit > 0 else None


async def _account_total(requests: Requests, storage: StorageConfiguration, source: str, replicas: int) -> int:
    limit = await account_limit_bytes(requests)
    if limit is not None:
        return storage.total_of(limit // replicas, ACCOUNT_PERCENT)
    if storage.total is not None:
        raise SettingsError(
            f"{source}: storage.total: {storage.total!r} of what? The broker's account has no limit, and nobody here"
            " knows its disk: give a size, such as 200GiB"
        )
    return DEFAULT_TOTAL_BYTES


def _remedy(storage: StorageConfiguration) -> str:
    if storage.sizes:
        return "make them smaller, leave some out, or raise storage.total"
    return "raise storage.total, or give the store more room"

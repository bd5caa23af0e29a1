"""What the operator says of sizes in mesh.toml: `[storage]`. Without it the disk decides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from contracts.codec import exactly
from contracts.sizes import GIB, MIB, SIZES, share_of, text
from mesh.configuration.toml_tables import convert
from mesh.errors import SettingsError

SIZE_PATTERN: Final = r"[0-9]{1,7}(\.[0-9]{1,3})?(MiB|GiB|TiB)"
TOTAL_PATTERN: Final = rf"([1-9][0-9]?%|{SIZE_PATTERN})"

SizeText = Annotated[str, exactly(SIZE_PATTERN)]
Replicas = Literal[1, 3, 5]
TotalText = Annotated[str, exactly(TOTAL_PATTERN)]

_SIZE: Final = re.compile(r"([0-9.]+)(MiB|GiB|TiB)")
_BYTES: Final = {"MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_OBJECTS: Final = "results"
"""The one that is an object store; its stream is `OBJ_results`."""


class BucketsConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of key-value buckets. What is absent gets its share of the total, as streams do."""

    tasks: SizeText | None = None
    """Records of tasks: about 1.1 KB each, until the task is packed."""
    archive: SizeText | None = None
    """Where packed tasks lie: some 70 bytes each."""
    workers: SizeText | None = None
    """Heartbeats of workers and runners."""
    providers: SizeText | None = None
    """Breakers of model providers."""
    lanes: SizeText | None = None
    """Depth and pace of each lane."""
    tools: SizeText | None = None
    """Declarations of tools."""
    triggers: SizeText | None = None
    """Trigger rules."""
    walks: SizeText | None = None
    """How far the stewards are with what they look through."""
    storage: SizeText | None = None
    """How full streams were in the last day."""
    keys: SizeText | None = None
    """API keys: some 300 bytes each."""
    valves: SizeText | None = None
    """What people have paused, or limited for a while."""
    budgets: SizeText | None = None
    """What tenants with a budget have used: about a kilobyte each."""


class StorageConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the broker keeps, all in all and in each stream. What is absent gets its share of the total."""

    total: TotalText | None = None
    """What all streams together may take: a size, or a part of the disk such as `"60%"`.

    Unset: 75 % of what the disk of the embedded broker has left for it; with a broker of your own 90 % of its account's
    limit, or 24GiB if that has none.
    """
    replicas: Replicas | None = None
    """How many servers of a cluster have a copy of each stream and bucket: 1, 3 or 5.

    Unset: 3 on a cluster of three servers or more, else 1.
    """
    events: SizeText | None = None
    """EVENTS: journals, until their tasks are packed."""
    archive: SizeText | None = None
    """ARCHIVE: packed tasks."""
    results: SizeText | None = None
    """The object store: results of tools that are larger than 256 KiB."""
    tasks: SizeText | None = None
    """TASKS: first turns that wait for a worker, or run."""
    backlog: SizeText | None = None
    """BACKLOG: turns that wait for their tenant's turn."""
    turns: SizeText | None = None
    """TURNS: later turns that wait."""
    tools: SizeText | None = None
    """TOOLS: calls that wait."""
    control: SizeText | None = None
    """CONTROL: commands to tasks."""
    dead_letters: SizeText | None = None
    """DEAD_LETTERS: work that gave up."""
    timers: SizeText | None = None
    """TIMERS: about 490 bytes for each approval, question, deadline and later try that is open."""
    signals: SizeText | None = None
    """SIGNALS: events from outside, of the last seven days."""
    advisories: SizeText | None = None
    """ADVISORIES: what the broker says of messages that it gave up."""
    usage: SizeText | None = None
    """USAGE: counters of what tenants have used."""
    buckets: BucketsConfiguration = BucketsConfiguration()
    """The sizes of buckets."""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that are set, in bytes, by the name of the stream."""
        given = {_stream(name): getattr(self, name) for name in self.__struct_fields__ if name not in _NO_STREAMS}
        given |= {f"KV_{name}": getattr(self.buckets, name) for name in self.buckets.__struct_fields__}
        return {name: size_bytes(value) for name, value in given.items() if value is not None}

    @property
    def total_bytes(self) -> int | None:
        """The total, if it is set as a size."""
        return None if self.total is None or self.total.endswith("%") else size_bytes(self.total)

    @property
    def total_percent(self) -> float | None:
        """The total, if it is set as a part of what there is."""
        return float(self.total[:-1]) if self.total is not None and self.total.endswith("%") else None

    def total_of(self, room_bytes: int, percent_by_default: float) -> int:
        """The total where there is so much room, in bytes."""
        if self.total_bytes is not None:
            return self.total_bytes
        return share_of(room_bytes, self.total_percent or percent_by_default)


_NO_STREAMS: Final = ("total", "replicas", "buckets")


def size_bytes(value: str) -> int:
    """The bytes of a size such as `1.5GiB`."""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"not a size: {value!r}")
    return int(float(match[1]) * _BYTES[match[2]])


def parse_storage(tables: Mapping[str, Any], source: str) -> StorageConfiguration:
    """Read `[storage]`; what holds without it if it is not there. Raises `SettingsError` that names the key."""
    if "storage" not in tables:
        return StorageConfiguration()
    table = tables["storage"]
    if isinstance(table, dict):
        _check_texts(table, "storage", source)
    storage = convert(table, StorageConfiguration, "storage", source)
    for stream, given in storage.sizes.items():
        least = SIZES[stream].least_bytes
        if given < least:
            raise SettingsError(f"{source}: {storage_key(stream)}: {text(given)} is too little: at least {text(least)}")
    return storage


def _check_texts(table: Mapping[str, Any], key: str, source: str) -> None:
    """Say what a size looks like, rather than which pattern it does not match."""
    for name, value in table.items():
        if name == "buckets" and key == "storage" and isinstance(value, dict):
            _check_texts(value, f"{key}.{name}", source)
            continue
        is_total = name == "total" and key == "storage"
        if isinstance(value, str) and re.fullmatch(TOTAL_PATTERN if is_total else SIZE_PATTERN, value) is None:
            share = ', or a part of the disk from "1%" to "99%"' if is_total else ""
            rule = f'must be a number with MiB, GiB or TiB, such as "1.5GiB"{share}'
            raise SettingsError(f"{source}: {key}.{name}: {value!r} is no size: {rule}")


def _stream(name: str) -> str:
    return f"OBJ_{name}" if name == _OBJECTS else name.upper()


def storage_key(stream: str) -> str:
    """The key of mesh.toml that sets the size of a stream: `storage.events`, `storage.buckets.tasks`."""
    if stream.startswith("KV_"):
        return f"storage.buckets.{stream.removeprefix('KV_')}"
    return f"storage.{stream.removeprefix('OBJ_').lower()}"

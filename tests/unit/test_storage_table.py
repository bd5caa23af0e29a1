"""`[storage]` of mesh.toml: what it takes, and what it says of the rest."""

from __future__ import annotations

import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from contracts.sizes import GIB, LEAST_TOTAL_BYTES, MIB, SIZES
from mesh.broker.sizing import sizes_of
from mesh.configuration.mesh_toml import Configuration, parse_configuration
from mesh.configuration.storage_table import StorageConfiguration, storage_key
from mesh.errors import SettingsError
from meshctl.supervision.store_room import measure, memory_bytes, room_at_start, stored_bytes

Disk = namedtuple("Disk", "f_frsize f_blocks f_bavail")


def parse(text: str) -> Configuration:
    return parse_configuration(text.encode())


def storage_of(text: str) -> StorageConfiguration:
    return parse(f"[storage]\n{text}").storage


def test_every_stream_and_bucket_has_a_key() -> None:
    streams = "\n".join(
        f'{storage_key(name).removeprefix("storage.")} = "1TiB"' for name in SIZES if not name.startswith("KV_")
    )
    buckets = "\n".join(f'{name.removeprefix("KV_")} = "1TiB"' for name in SIZES if name.startswith("KV_"))
    assert storage_of(f"{streams}\n[storage.buckets]\n{buckets}").sizes == dict.fromkeys(SIZES, 1024 * GIB)
    assert storage_of("").sizes == {}


@pytest.mark.parametrize(
    ("size", "meant"), [("64MiB", 64 * MIB), ("1.5GiB", 1536 * MIB), ("0.25TiB", 256 * GIB), ("100GiB", 100 * GIB)]
)
def test_sizes_have_units(size: str, meant: int) -> None:
    assert storage_of(f'events = "{size}"').sizes == {"EVENTS": meant}
    assert storage_of(f'total = "{size}"').total_bytes == meant


def test_a_total_may_be_a_part_of_the_disk() -> None:
    storage = storage_of('total = "60%"')
    assert (storage.total_bytes, storage.total_percent) == (None, 60)
    assert storage.total_of(100 * GIB, 75) == 60 * GIB
    assert storage_of("").total_of(100 * GIB, 75) == 75 * GIB
    assert storage_of('total = "20GiB"').total_of(100 * GIB, 75) == 20 * GIB


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('events = "20GB"', "storage.events: '20GB' is no size: must be a number with MiB, GiB or TiB"),
        ('events = "20 GiB"', "storage.events: '20 GiB' is no size"),
        ('events = "20"', "storage.events: '20' is no size"),
        ('events = "-1GiB"', "storage.events: '-1GiB' is no size"),
        ('events = "50%"', "storage.events: '50%' is no size"),
        ('events = "1GiB\\n"', "is no size"),
        ("events = 20", "storage.events: Expected `str | null`, got `int`"),
        ('total = "100%"', "storage.total: '100%' is no size: must be a number .*, or a part of the disk from \"1%\""),
        ('total = "0%"', "storage.total: '0%' is no size"),
        ('event = "1GiB"', "unknown field `event`"),
        ("replicas = 2", "storage.replicas: "),
        ('replicas = "3"', "storage.replicas: "),
        ('events = "10MiB"', "storage.events: 10MiB is too little: at least 64MiB"),
        ('results = "1MiB"', "storage.results: 1MiB is too little: at least 32MiB"),
        ('[storage.buckets]\ntasks = "1GB"', "storage.buckets.tasks: '1GB' is no size"),
        ('[storage.buckets]\ntasks = "1MiB"', "storage.buckets.tasks: 1MiB is too little: at least 16MiB"),
        ('[storage.buckets]\nevents = "1GiB"', "unknown field `events`"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("|", r"\|") if "|" in said else said):
        storage_of(text)


def test_copies_are_one_three_or_five_and_no_size() -> None:
    assert [storage_of(f"replicas = {number}").replicas for number in (1, 3, 5)] == [1, 3, 5]
    assert storage_of("").replicas is None
    assert storage_of("replicas = 3").sizes == {}


def test_a_table_that_is_none_is_told() -> None:
    with pytest.raises(SettingsError, match="storage: Expected `object`"):
        parse('storage = "20GiB"')


def test_sizes_that_do_not_fit_are_told_with_the_numbers_and_what_to_do() -> None:
    storage = storage_of('total = "4GiB"\nevents = "3GiB"\narchive = "2GiB"')
    with pytest.raises(SettingsError) as failed:
        sizes_of(storage, 4 * GIB, None, "mesh.toml")
    assert str(failed.value) == (
        "mesh.toml: storage: the sizes that are set come to 5GiB, and the other streams need 192MiB at least: that is"
        " more than the total of 4GiB: make them smaller, leave some out, or raise storage.total"
    )


def test_who_asks_for_a_total_asks_for_every_size() -> None:
    asked = sizes_of(storage_of('total = "4GiB"'), 4 * GIB, None, "mesh.toml").asked_for
    assert asked == SIZES.keys()
    asked = sizes_of(storage_of('events = "4GiB"'), 9 * GIB, None, "mesh.toml").asked_for
    assert asked == {"EVENTS"}


def disk_of(monkeypatch: pytest.MonkeyPatch, size: int, free: int) -> None:
    """A disk of that size, whatever the test's own is."""
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(4096, size // 4096, free // 4096))


def start(store: Path, text: str = "") -> Any:
    return room_at_start(parse(text), store)


def test_the_room_is_what_is_used_and_what_is_free_less_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_of(monkeypatch, 2 * GIB, GIB)
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "block").write_bytes(b"x" * MIB)
    used = stored_bytes(tmp_path)
    assert MIB <= used < MIB + 64 * 1024
    room = measure(tmp_path)
    assert (room.used_bytes, room.free_bytes, room.reserve_bytes) == (used, GIB, 102 * MIB)
    assert room.share_bytes == room.limit_bytes == used + GIB - 102 * MIB
    assert measure(tmp_path, 7).share_bytes == 7
    disk_of(monkeypatch, 1024 * GIB, GIB)
    assert measure(tmp_path).reserve_bytes == GIB, "no more than that is left to others"


def test_a_store_that_disappears_while_it_is_looked_at_takes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "streams"
    folder.mkdir()
    shutil.rmtree(folder)
    assert stored_bytes(folder) == 0


@pytest.mark.parametrize(("size", "starts"), [(256 * MIB, False), (412 * MIB, True), (GIB, True), (4096 * GIB, True)])
def test_a_small_disk_will_do_and_a_tiny_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, starts: bool
) -> None:
    disk_of(monkeypatch, size, size)
    if starts:
        assert start(tmp_path).share_bytes * 0.75 >= LEAST_TOTAL_BYTES
        return
    with pytest.raises(SettingsError, match=r"has 244MiB, of which 75 % are for streams: they need 288MiB at least"):
        start(tmp_path)


def test_a_total_that_the_disk_has_not_is_told_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_of(monkeypatch, 2 * GIB, 2 * GIB)
    with pytest.raises(SettingsError, match=r"storage\.total: 20GiB is more than the 1\.9GiB that the disk of"):
        start(tmp_path, '[storage]\ntotal = "20GiB"')
    with pytest.raises(SettingsError, match=re.escape("need 288MiB at least")):
        start(tmp_path, '[storage]\ntotal = "5%"')


def test_a_mesh_that_is_there_starts_on_whatever_is_left_of_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "$G").mkdir()
    disk_of(monkeypatch, 2 * GIB, 0)
    room = start(tmp_path)
    assert sizes_of(StorageConfiguration(), StorageConfiguration().total_of(room.share_bytes, 75), None, "mesh.toml")
    assert start(tmp_path, '[storage]\ntotal = "20GiB"').share_bytes == 20 * GIB


@pytest.mark.parametrize(
    ("says", "bound"), [("268435456\n", 256 * MIB), ("max\n", None), (None, None), ("9" * 19, None)]
)
def test_a_container_has_the_memory_that_it_is_given(tmp_path: Path, says: str | None, bound: int | None) -> None:
    if says is not None:
        (tmp_path / "memory.max").write_text(says)
    machine = memory_bytes(())
    assert machine > 256 * MIB
    assert memory_bytes((tmp_path / "memory.max",)) == (bound or machine)

"""Sizes against a real broker: where they come from, what grows, and what nobody makes smaller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from contracts.records.storage import SAMPLES_KEY, StorageSamples, StoreRoom
from contracts.sizes import DEFAULT_TOTAL_BYTES, GIB, MIB, SIZES, share_out
from contracts.streams import STORAGE_BUCKET
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.levels import read_all_levels, read_disk_level, read_levels, store_room
from mesh.broker.provisioning import apply, compare, declared
from mesh.broker.requests import Requests
from mesh.broker.sizing import find_sizes
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, SettingsError
from meshctl.supervision.broker_setup import provision
from meshctl.supervision.store_watch import watch_store
from steward.storage_samples import StorageSampling
from tests.support import children
from tests.support.broker import PROGRAM, free_port
from tests.support.waiting import until

pytestmark = pytest.mark.integration

ROOM = StoreRoom(used_bytes=0, free_bytes=8 * GIB, reserve_bytes=0, share_bytes=4 * GIB, memory_bytes=64 * GIB)


@pytest.fixture
async def bare(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to a broker without streams."""
    async with connect(settings, "test") as opened:
        yield opened


def with_storage(settings: Settings, text: str) -> Settings:
    """Settings with that table in mesh.toml."""
    return replace(settings, configuration=parse_configuration(f"[storage]\n{text}".encode()))


async def sizes_there(requests: Requests) -> dict[str, int]:
    """The sizes of the streams as they are."""
    return {level.name: level.limit_bytes for level in await read_all_levels(requests) if level.name in SIZES}


@asynccontextmanager
async def watched(settings: Settings, store: Path, room: StoreRoom = ROOM) -> AsyncIterator[None]:
    """As `meshctl up` does: somebody tells of the store's room."""
    serving = asyncio.Event()
    watching = asyncio.create_task(watch_store(settings, store, room, serving))
    try:
        await serving.wait()
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_without_anybody_who_knows_the_disk_a_total_stands_in(bare: Connection, settings: Settings) -> None:
    assert await store_room(bare.requests) is None
    assert await read_disk_level(bare.requests) is None
    sizes = await find_sizes(bare.requests, settings.configuration)
    assert sizes.by_stream == share_out(DEFAULT_TOTAL_BYTES)
    assert not sizes.asked_for
    half = with_storage(settings, 'total = "50%"').configuration
    with pytest.raises(SettingsError, match=r"storage\.total: '50%' of what\?"):
        await find_sizes(bare.requests, half)


async def test_the_room_of_the_store_is_told_and_sizes_come_from_it(
    bare: Connection, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "block").write_bytes(b"x" * MIB)
    async with watched(settings, tmp_path / "store"):

        async def is_measured() -> bool:
            room = await store_room(bare.requests)
            return room is not None and room.used_bytes >= MIB and room.share_bytes == ROOM.share_bytes

        await until(is_measured)
        await provision(settings, ours=True)
        assert await sizes_there(bare.requests) == share_out(3 * GIB, None, 64 * GIB)
        level = await read_disk_level(bare.requests)
        assert level is not None
        assert (level.name, level.used_bytes >= MIB, level.percent < 50) == ("disk", True, True)
        sizes = await find_sizes(bare.requests, with_storage(settings, 'total = "50%"').configuration)
        assert sizes.total_bytes == 2 * GIB

    async def is_unknown() -> bool:
        try:
            return await store_room(bare.requests) is None
        except BrokerUnavailable:
            return False  # The broker has not seen yet that who answered is gone.

    await until(is_unknown)  # Nobody speaks for a broker that is somebody else's.


async def test_streams_grow_to_the_room_that_there_is_and_none_is_made_smaller(
    bare: Connection, settings: Settings, tmp_path: Path
) -> None:
    small, large = (with_storage(settings, f'total = "{total}"') for total in ("1GiB", "4GiB"))
    await provision(small, ours=True)
    await bare.requests.publish("dead.t.malformed", b"kept")
    await provision(large, ours=True)
    assert await sizes_there(bare.requests) == share_out(4 * GIB)

    await provision(small, ours=True)
    assert await sizes_there(bare.requests) == share_out(4 * GIB)
    wanted = declared(small, sizes=await find_sizes(bare.requests, small.configuration))
    differences = {difference.name: difference for difference in await compare(bare.requests, wanted)}
    dead_letters = differences["DEAD_LETTERS"]
    assert dead_letters.fields.keys() == dead_letters.obstacles.keys() == {"max_bytes"}
    # Of an empty stream nothing can be lost: a person who applies that has it as declared.
    assert not differences["EVENTS"].obstacles
    await apply(bare.requests, wanted, update=True)
    there, asked = await sizes_there(bare.requests), share_out(GIB)
    assert {name for name, size in there.items() if size != asked[name]} == {"DEAD_LETTERS"}


async def test_a_broker_of_ones_own_grows_by_apply_alone(bare: Connection, settings: Settings) -> None:
    await provision(with_storage(settings, 'total = "1GiB"'), ours=False)
    large = with_storage(settings, 'total = "4GiB"')
    await provision(large, ours=False)
    assert await sizes_there(bare.requests) == share_out(GIB)
    await apply(bare.requests, declared(large, sizes=await find_sizes(bare.requests, large.configuration)), update=True)
    assert await sizes_there(bare.requests) == share_out(4 * GIB)


async def test_a_mesh_of_fixed_sizes_stays_as_it_is_on_a_small_disk(
    bare: Connection, settings: Settings, tmp_path: Path
) -> None:
    """Those of version 0.1: 15 GiB in all."""
    old = {"EVENTS": 8 * GIB, "TASKS": GIB, "KV_tasks": 2 * GIB, "CONTROL": 256 * MIB, "OBJ_results": GIB}
    for stream in declared(settings).streams:
        if stream.name not in ("ARCHIVE", "KV_archive", "KV_walks", "KV_storage", "KV_keys"):
            size = old.get(stream.name, 256 * MIB)
            config = msgspec.structs.replace(stream, max_bytes=size).as_config()
            await bare.requests.api(f"STREAM.CREATE.{stream.name}", config)
    await bare.requests.publish("dead.t.malformed", b"kept")
    (tmp_path / "store").mkdir()
    async with watched(settings, tmp_path / "store", msgspec.structs.replace(ROOM, share_bytes=2 * GIB)):
        await provision(settings, ours=True)
        there = await sizes_there(bare.requests)
        assert {name: there[name] for name in old} == old
        assert there["ARCHIVE"] == share_out(2 * GIB * 3 // 4, None, 64 * GIB)["ARCHIVE"]
        wanted = declared(settings, sizes=await find_sizes(bare.requests, settings.configuration))
        assert await compare(bare.requests, wanted) == []
        asked = with_storage(settings, 'total = "1GiB"')
        wanted = declared(asked, sizes=await find_sizes(bare.requests, asked.configuration))
        assert {"EVENTS", "DEAD_LETTERS"} <= {difference.name for difference in await compare(bare.requests, wanted)}


async def test_an_account_with_a_limit_is_shared_out_and_what_it_has_not_is_told(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "nats.conf").write_text(
        f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {tmp_path}/jetstream, max_file_store: 64GB }}\n"
        "accounts { MESH { jetstream: { max_file: 2147483648 }, users: [{ user: mesh, password: mesh }] } }\n"
        "no_auth_user: mesh\n"
    )
    settings = replace(Settings(), nats_url=f"nats://127.0.0.1:{port}", home=tmp_path)
    with (tmp_path / "nats.log").open("wb") as log:
        server = children.start([PROGRAM, "-c", str(tmp_path / "nats.conf")], stdout=log, stderr=log)
    try:
        async with connect(settings, "test") as connection:
            await provision(settings, ours=False)
            assert await sizes_there(connection.requests) == share_out(2 * GIB * 9 // 10 // MIB * MIB)
            with pytest.raises(SettingsError, match=r"limit of 2GiB, of which streams have 1\.7GiB, and .* more are"):
                await apply(
                    connection.requests,
                    declared(
                        settings,
                        sizes=await find_sizes(
                            connection.requests, with_storage(settings, 'total = "3GiB"').configuration
                        ),
                    ),
                    update=True,
                )
            account = next(level for level in await read_levels(connection.requests) if level.name == "account")
            assert account.limit_bytes == 2 * GIB
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


async def test_one_of_many_stewards_takes_a_sample_an_hour(connection: Connection) -> None:
    requests = connection.requests
    await requests.publish("dead.t.malformed", b"kept")
    await asyncio.gather(*(StorageSampling(requests).look() for _ in range(5)))
    await StorageSampling(requests).look()
    entry = await key_value.get(requests, STORAGE_BUCKET.name, SAMPLES_KEY)
    assert entry is not None
    assert entry.revision == 1
    assert entry.value is not None
    [sample] = msgspec.json.decode(entry.value, type=StorageSamples).samples
    assert sample.bytes.keys() == {*SIZES, "account"}
    assert sample.bytes["DEAD_LETTERS"] > 0

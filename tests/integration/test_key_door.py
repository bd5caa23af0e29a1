"""The door of API keys before a real broker: when a record is read, and read again."""

from __future__ import annotations

import asyncio

import pytest

from contracts.access import Key, new_key
from contracts.errors import TaskmeshError
from contracts.streams import KEYS_BUCKET
from contracts.subjects import KEYS_PREFIX
from mesh.access.key_door import ABSENT_MAX, LOOKS_BURST, UNHEARD_FRESH_SECONDS, KeyDoor
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now
from tests.support.broker import Broker
from tests.support.keys import change_key, write_key
from tests.support.waiting import until

HOUR = 3600.0


async def door_of(connection: Connection, *, fresh_seconds: float | None = None) -> KeyDoor:
    """An open door. With `fresh_seconds` nothing is read again for as long, unless it is heard of."""
    door = KeyDoor(connection)
    if fresh_seconds is not None:
        door._fresh_seconds = fresh_seconds
    await door.open()
    return door


async def code(door: KeyDoor, key: Key) -> str:
    """What a key gets: `ok`, or the code of the refusal."""
    try:
        await door.identity(str(key))
    except TaskmeshError as error:
        return error.code
    return "ok"


async def until_it_gets(door: KeyDoor, key: Key, wanted: str) -> None:
    async def gets() -> bool:
        return await code(door, key) == wanted

    await until(gets)


async def settled(door: KeyDoor, key: Key) -> None:
    """Ask until the record counts as known for the whole time: it was heard of as it was written."""
    await until_it_gets(door, key, "ok")

    async def is_fresh() -> bool:
        await code(door, key)
        return door._known[key.id].fresh_until > asyncio.get_running_loop().time() + HOUR / 2

    await until(is_fresh)


async def test_what_is_written_is_heard_of_and_read_again(connection: Connection) -> None:
    door = await door_of(connection, fresh_seconds=HOUR)
    key = await write_key(connection.requests)
    await settled(door, key)
    await change_key(connection.requests, key, revoked_at=now())
    await until_it_gets(door, key, "unauthorized")
    await change_key(connection.requests, key, revoked_at=None, tenant="acme")
    await until_it_gets(door, key, "ok")
    assert (await door.identity(str(key))).tenant == "acme"
    await key_value.delete(connection.requests, KEYS_BUCKET.name, key.id)
    await until_it_gets(door, key, "unauthorized")


async def test_an_id_that_was_nobodys_is_known_once_it_is_somebodys(connection: Connection) -> None:
    door = await door_of(connection, fresh_seconds=HOUR)
    key = await write_key(connection.requests, revoked_at=now())
    entry = await key_value.get_from_leader(connection.requests, KEYS_BUCKET.name, key.id)
    assert entry is not None
    assert entry.value is not None
    await key_value.delete(connection.requests, KEYS_BUCKET.name, key.id)
    await until_it_gets(door, key, "unauthorized")
    assert key.id in door._absent
    await key_value.put(connection.requests, KEYS_BUCKET.name, key.id, entry.value)
    await change_key(connection.requests, key, revoked_at=None)
    await until_it_gets(door, key, "ok")
    assert key.id not in door._absent


async def test_a_record_that_is_heard_of_before_it_is_stored_is_read_more_than_once(connection: Connection) -> None:
    door = KeyDoor(connection)
    door._fresh_seconds = HOUR
    key = await write_key(connection.requests)
    assert await code(door, key) == "ok"
    # Of what is published the door hears first, and the stream stores it then.
    door._on_heard(f"{KEYS_PREFIX}{key.id}")
    assert await code(door, key) == "ok"
    await change_key(connection.requests, key, revoked_at=now())
    await until_it_gets(door, key, "unauthorized")


async def test_all_is_read_again_after_a_reconnect(connection: Connection, broker: Broker) -> None:
    door = KeyDoor(connection)
    door._fresh_seconds = HOUR
    key = await write_key(connection.requests)
    assert await code(door, key) == "ok"
    # It has not begun to listen: as if the line had been away.
    await change_key(connection.requests, key, revoked_at=now())
    assert await code(door, key) == "ok"
    await door.open()
    await broker.stop()
    await until(lambda: not connection.is_connected)
    assert await code(door, key) == "ok", "while the broker is away it counts"
    await broker.start()
    await until_it_gets(door, key, "unauthorized")


async def test_where_nothing_is_heard_records_are_read_again_soon(connection: Connection) -> None:
    door = KeyDoor(connection, is_heard=False)
    assert door._fresh_seconds == UNHEARD_FRESH_SECONDS < 1
    key = await write_key(connection.requests)
    assert await code(door, key) == "ok"
    await change_key(connection.requests, key, revoked_at=now())
    await until_it_gets(door, key, "unauthorized")


async def test_a_flood_of_strangers_is_no_flood_of_reads_and_pushes_nobody_out(connection: Connection) -> None:
    door = await door_of(connection, fresh_seconds=HOUR)
    key = await write_key(connection.requests)
    await settled(door, key)
    strangers = [new_key() for _ in range(3 * LOOKS_BURST)]
    codes = await asyncio.gather(*(code(door, stranger) for stranger in strangers))
    assert {*codes} == {"unauthorized", "rate-limited"}
    assert len(door._absent) < 2 * LOOKS_BURST <= ABSENT_MAX
    assert await code(door, key) == "ok"
    # One who is remembered costs no look.
    known = next(stranger for stranger, each in zip(strangers, codes, strict=True) if each == "unauthorized")
    assert {await code(door, known) for _ in range(3 * LOOKS_BURST)} == {"unauthorized"}


async def test_many_who_come_at_once_share_one_look(connection: Connection) -> None:
    door = await door_of(connection)
    key = await write_key(connection.requests)
    asking = [asyncio.create_task(code(door, key)) for _ in range(100)]
    await asyncio.sleep(0)
    assert len(door._looks) == 1
    # Whoever gives up leaves it to the others.
    asking[0].cancel()
    assert {*await asyncio.gather(*asking[1:])} == {"ok"}


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"id":"x"}', b"\xff"])
async def test_a_record_that_cannot_be_read_lets_nobody_in(value: bytes, connection: Connection) -> None:
    door = await door_of(connection)
    key = await write_key(connection.requests)
    await key_value.put(connection.requests, KEYS_BUCKET.name, key.id, value)
    await until_it_gets(door, key, "unauthorized")


async def test_a_record_under_the_id_of_another_key_lets_nobody_in(connection: Connection) -> None:
    door = await door_of(connection)
    key, other = await write_key(connection.requests), new_key()
    entry = await key_value.get_from_leader(connection.requests, KEYS_BUCKET.name, key.id)
    assert entry is not None
    assert entry.value is not None
    await key_value.put(connection.requests, KEYS_BUCKET.name, other.id, entry.value)
    assert await code(door, Key(other.id, key.secret)) == "unauthorized"

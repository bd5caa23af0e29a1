"""Export and import against real brokers: what leaves a mesh arrives in another as it was, and is taken once."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.codec import encode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id
from contracts.records.archive import PackedTask
from mesh.archive import lookup
from mesh.archive.contents import Unreadable
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.task.records import record
from meshctl.transfer.exporting import Wanted, exported
from meshctl.transfer.importing import Imported, import_tasks, read_line
from tests.support.broker import Broker
from tests.support.packed import pack_all
from tests.support.past import PastTask, store, stored_messages

pytestmark = pytest.mark.integration


async def lines_of(connection: Connection, wanted: Wanted | None = None) -> dict[str, bytes]:
    """What is exported, by task."""
    lines: dict[str, bytes] = {}
    async with aclosing(exported(connection.requests, wanted or Wanted())) as tasks:
        async for task in tasks:
            assert isinstance(task, PackedTask)
            assert task.task not in lines, "each comes once"
            lines[task.task] = encode(task)
    return lines


async def test_hot_and_packed_tasks_leave_alike_and_arrive_as_they_were(
    connection: Connection, settings: Settings, tmp_path: Path
) -> None:
    packed = await store(connection.requests, [PastTask(ended=True)] * 20)
    hot_before = await lines_of(connection)
    await pack_all(connection, settings)
    assert await lines_of(connection) == hot_before, "packing changes nothing of them"
    hot = await store(connection.requests, [PastTask(ended=True), PastTask(ended=False)])
    lines = await lines_of(connection)
    assert set(lines) == {*packed, *hot}
    assert set(await lines_of(connection, Wanted(statuses=frozenset({"waiting"})))) == {hot[1]}
    assert set(await lines_of(connection, Wanted(tasks=frozenset({packed[3], hot[0]})))) == {packed[3], hot[0]}
    assert await lines_of(connection, Wanted(tenant="other")) == {}
    assert await lines_of(connection, Wanted(since=now() + timedelta(hours=1))) == {}
    other = Broker(tmp_path / "other")
    await other.start()
    try:
        async with connect(replace(settings, nats_url=other.url), "test") as there:
            await apply(there.requests, declared(settings), update=False)
            done = Imported()
            taken = [read_line(lines[task]) for task in (*packed, hot[0])]
            await import_tasks(there.requests, taken, done)
            assert (done.taken, done.there) == (21, 0)
            await import_tasks(there.requests, taken, done)
            assert (done.taken, done.there) == (21, 21), "again is the same as once"
            assert len(await stored_messages(there.requests, "ARCHIVE")) == 1
            for task in (packed[0], hot[0]):
                here, arrived = [await Journal.load(each.requests, "default", task) for each in (connection, there)]
                assert record(arrived.state) == record(here.state)
            assert await lines_of(there) == {task: lines[task] for task in (*packed, hot[0])}
    finally:
        await other.stop()


async def test_what_no_mesh_has_written_or_has_not_ended_is_refused(connection: Connection, settings: Settings) -> None:
    ended, waiting = await store(connection.requests, [PastTask(ended=True), PastTask(ended=False)])
    lines = await lines_of(connection)
    with pytest.raises(InvalidPayload, match="has ended"):
        read_line(lines[waiting])
    for wrong in (
        b"{",
        b"[]",
        lines[ended].replace(b'"tenant":"default"', b'"tenant":"acme"', 1),
        lines[ended].replace(ended.encode(), new_id().encode(), 1),
        lines[ended].replace(b'"sequence":', b'"sequence":-', 1),
        lines[ended].replace(b"task.queued", b"step.claimed"),
    ):
        with pytest.raises(InvalidPayload):
            read_line(wrong)
    assert read_line(lines[ended]).record.id == ended


async def test_a_pack_that_cannot_be_read_is_said_and_keeps_no_other(
    connection: Connection, settings: Settings
) -> None:
    await connection.requests.publish("archive.1", b"nonsense", {"Mesh-Pack-Directory": "0"})
    await connection.requests.publish("archive.2", b"nonsense", {"Mesh-Pack-Directory": "x"})
    ids = await store(connection.requests, [PastTask(ended=True)] * 3)
    await pack_all(connection, settings)
    found: list[PackedTask | Unreadable] = []
    async with aclosing(exported(connection.requests, Wanted())) as tasks:
        found += [task async for task in tasks]
    assert [each.sequence for each in found if isinstance(each, Unreadable)] == [1, 2]
    assert {each.task for each in found if isinstance(each, PackedTask)} == set(ids)
    for task in ids:
        assert await lookup.find(connection.requests, "default", task) is not None

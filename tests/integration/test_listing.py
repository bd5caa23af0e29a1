"""Listing tasks against a real broker: filters, pages, tenants, packed tasks, and what the index makes of changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.codec import encode
from contracts.errors import InvalidPayload
from contracts.records.status import STATUSES, OpenApproval, OpenQuestion, TaskRecord
from contracts.streams import TASKS_BUCKET
from ingress.listing import following, tasks, tidying, walking
from ingress.listing import index as index_module
from ingress.listing.errors import ListUnavailable
from ingress.listing.filters import TaskFilter
from ingress.listing.lists import Lists
from ingress.listing.sources import SOURCES
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from tests.support.lists import (
    listed_ids,
    listed_tasks,
    open_lists,
    pack_tasks,
    purge_record,
    put,
    task_record,
)
from tests.support.waiting import until

pytestmark = pytest.mark.integration

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


async def put_many(connection: Connection, tenant: str, count: int) -> list[str]:
    """Records of as many tasks, in the order in which they were written."""
    ids: list[str] = []
    for _ in range(count):
        record = task_record(tenant)
        await put(connection, record)
        ids.append(record.id)
    return ids


async def test_records_are_listed_once_each_from_the_newest_whatever_lies_between(connection: Connection) -> None:
    old = await put_many(connection, "few", 3)
    await asyncio.gather(*(put_many(connection, "many", 100) for _ in range(10)))
    new = await put_many(connection, "few", 2)
    async with open_lists(connection) as lists:
        assert await listed_ids(lists, "few", 2) == [*reversed(new), *reversed(old)]
        assert len(set(await listed_ids(lists, "many"))) == 1000
        assert (await lists.counts("many")).counts["completed"] == 1000


async def test_a_tenant_without_tasks_has_an_empty_list(connection: Connection) -> None:
    await put_many(connection, "other", 5)
    async with open_lists(connection) as lists:
        page = await lists.tasks("nobody", TaskFilter(), limit=10, cursor=None)
        assert msgspec.to_builtins(page) == {"tasks": [], "cursor": None}
        assert (await lists.counts("nobody")).counts == dict.fromkeys(STATUSES, 0)


async def test_what_was_stored_before_is_listed_at_once(connection: Connection) -> None:
    async with open_lists(connection) as lists:
        record = task_record(status="queued")
        for number, status in enumerate(("queued", "running", "completed")):
            record = msgspec.structs.replace(record, status=status, updated_at=START + timedelta(seconds=number))
            await put(connection, record)
            assert [each.status for each in await listed_tasks(lists)] == [status]
            found = (await lists.counts("default")).counts
            assert {each: number for each, number in found.items() if number} == {status: 1}
        assert await listed_ids(lists, status="running") == []


async def test_tasks_of_one_moment_are_each_on_one_page(connection: Connection) -> None:
    ids = []
    for number in range(12):
        record = task_record(updated_at=START + timedelta(microseconds=number // 5))
        await put(connection, record)
        ids.append((number // 5, record.id))
    async with open_lists(connection) as lists, open_lists(connection) as others:
        for limit in (1, 4, 5, 12):
            assert await listed_ids(lists, limit=limit) == [task for _, task in sorted(ids, reverse=True)]
        # Any ingress goes on from another's cursor.
        first = await lists.tasks("default", TaskFilter(), limit=7, cursor=None)
        rest = await others.tasks("default", TaskFilter(), limit=7, cursor=first.cursor)
        assert [task.id for task in [*first.tasks, *rest.tasks]] == [task for _, task in sorted(ids, reverse=True)]


@pytest.mark.parametrize("cursor", ["", "x", "17", "1.2", "1." + "u" * 26, "9" * 19 + "." + "0" * 26, "1.5\n"])
async def test_what_is_no_cursor_is_refused(connection: Connection, cursor: str) -> None:
    async with open_lists(connection) as lists:
        with pytest.raises(InvalidPayload, match="cursor: not a cursor"):
            await lists.tasks("default", TaskFilter(), limit=7, cursor=cursor)


async def test_filters_are_joined(connection: Connection) -> None:
    async def task(seconds: int, status: str, **metadata: str | int | bool) -> str:
        moment = START + timedelta(seconds=seconds)
        record = task_record(status=status, updated_at=moment, metadata=metadata or None)
        await put(connection, record)
        return record.id

    a = await task(1, "completed", order=42, user="ann")
    b = await task(2, "failed", order="42", user="bob")
    c = await task(3, "completed", order=7, user="ann", vip=True)
    d = await task(4, "running")
    e = await task(5, "failed", user="ann")
    async with open_lists(connection) as lists:
        for wanted, found in (
            ({}, [e, d, c, b, a]),
            ({"status": "failed"}, [e, b]),
            ({"status": "cancelled"}, []),
            # A number is compared as its JSON, a text as it is.
            ({"metadata": (("order", "42"),)}, [b, a]),
            ({"metadata": (("order", '"42"'),)}, []),
            ({"metadata": (("vip", "true"),)}, [c]),
            ({"metadata": (("vip", "True"),)}, []),
            ({"metadata": (("user", "ann"),)}, [e, c, a]),
            ({"metadata": (("user", "ann"), ("order", "42"))}, [a]),
            ({"metadata": (("user", "ann"), ("user", "bob"))}, []),
            ({"metadata": (("user", "ann"),), "status": "completed"}, [c, a]),
            ({"since": START + timedelta(seconds=3)}, [e, d, c]),
            ({"until": START + timedelta(seconds=3)}, [b, a]),
            ({"since": START + timedelta(seconds=2), "until": START + timedelta(seconds=4)}, [c, b]),
            ({"since": START + timedelta(seconds=2), "metadata": (("user", "ann"),), "status": "failed"}, [e]),
            ({"until": START + timedelta(seconds=5), "metadata": (("user", "ann"),)}, [c, a]),
            ({"since": START + timedelta(days=1)}, []),
        ):
            for limit in (1, 2, 100):
                assert await listed_ids(lists, limit=limit, **wanted) == found, wanted


@pytest.mark.parametrize("text", ["it's", '"', "100%", "_", "ünï\u2028cödé", "", "a.b=c&d", "😀", "' OR 1=1 --"])
async def test_any_text_is_found_by_itself_alone_and_by_its_tenant_alone(connection: Connection, text: str) -> None:
    mine = task_record("mine", metadata={text or "k": text, "x": "other"})
    theirs = task_record("theirs", metadata={text or "k": text})
    for record in (mine, theirs, task_record("mine", metadata={"k": "another"})):
        await put(connection, record)
    async with open_lists(connection) as lists:
        wanted = ((text or "k", text),)
        assert await listed_ids(lists, "mine", metadata=wanted) == [mine.id]
        assert await listed_ids(lists, "theirs", metadata=wanted) == [theirs.id]
        assert await listed_ids(lists, "nobody", metadata=wanted) == []


async def test_a_page_that_looks_in_vain_ends_early_and_the_next_goes_on(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two values that take turns, and are together once: each look goes on by one task.
    records = [task_record(updated_at=START + timedelta(seconds=n), metadata={"ab"[n % 2]: 1}) for n in range(60)]
    both = task_record(updated_at=START - timedelta(seconds=1), metadata={"a": 1, "b": 1})
    for record in [*records, both]:
        await put(connection, record)
    monkeypatch.setattr(walking, "SEEKS_MAX", 10)
    async with open_lists(connection) as lists:
        wanted = TaskFilter(metadata=(("a", "1"), ("b", "1")))
        first = await lists.tasks("default", wanted, limit=10, cursor=None)
        assert first.tasks == []
        assert first.cursor is not None
        assert await listed_ids(lists, metadata=wanted.metadata) == [both.id]
        assert await listed_ids(lists) == [record.id for record in [*reversed(records), both]]


async def test_a_page_is_bounded_in_bytes(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {f"k{number}": "m" * 500 for number in range(16)}
    ids = []
    for number in range(9):
        record = task_record(updated_at=START + timedelta(seconds=number), metadata=large)
        await put(connection, record)
        ids.append(record.id)
    async with open_lists(connection) as lists:
        one = len(encode((await listed_tasks(lists))[0]))
        monkeypatch.setattr(index_module, "PAGE_BYTES_MAX", 3 * one + 100)
        page = await lists.tasks("default", TaskFilter(), limit=100, cursor=None)
        assert [task.id for task in page.tasks] == ids[:-4:-1]
        assert await listed_ids(lists) == ids[::-1]
        monkeypatch.setattr(index_module, "PAGE_BYTES_MAX", 1)
        assert await listed_ids(lists) == ids[::-1], "one is shown, however large"


async def test_what_is_long_is_left_out_and_what_waits_is_shown(connection: Connection) -> None:
    def approval(call: str, text: str) -> OpenApproval:
        return OpenApproval(call=call, tool="add", arguments={"text": text}, expires_at=START)

    approvals = [approval("1-0", "small"), approval("1-1", "x" * 5_000), approval("1-2", "small too")]
    question = OpenQuestion(question="which one?", call="1-3")
    waiting = task_record(status="waiting", approvals=approvals, questions=[question], output="o" * 300_000)
    await put(connection, waiting)
    async with open_lists(connection) as lists:
        [found] = await listed_tasks(lists)
        assert (found.status, found.output) == ("waiting", None)
        assert [each.call for each in found.approvals or []] == ["1-0", "1-2"]
        assert found.questions == [question]


async def test_a_record_that_cannot_be_read_hides_no_others(connection: Connection) -> None:
    requests = connection.requests
    good, bad = task_record(), task_record()
    await put(connection, good)
    await key_value.put(requests, TASKS_BUCKET.name, f"default.{bad.id}", b"rubbish")
    await key_value.put(requests, TASKS_BUCKET.name, "default.nonsense", encode(bad))
    await key_value.put(requests, TASKS_BUCKET.name, f"theirs.{bad.id}", encode(bad))
    async with open_lists(connection) as lists:
        assert await listed_ids(lists) == [good.id]
        assert await listed_ids(lists, "theirs") == []


# What goes


async def test_a_deleted_record_goes_at_once(connection: Connection) -> None:
    kept, gone = task_record(), task_record()
    async with open_lists(connection) as lists:
        for record in (kept, gone):
            await put(connection, record)
        assert len(await listed_ids(lists)) == 2
        await key_value.delete(connection.requests, TASKS_BUCKET.name, f"default.{gone.id}")
        assert await listed_ids(lists) == [kept.id]
        assert (await lists.counts("default")).counts["completed"] == 1


@pytest.mark.parametrize("which", [0, 1, 2, 3])
async def test_a_record_that_was_purged_without_a_pack_goes_soon(connection: Connection, which: int) -> None:
    records = [task_record() for _ in range(4)]
    async with open_lists(connection) as lists:
        for record in records:
            await put(connection, record)
        assert len(await listed_ids(lists)) == 4
        await purge_record(connection, records[which])
        left = [record.id for record in reversed(records) if record is not records[which]]
        await until(lambda: _lists(lists, left))
        assert (await lists.counts("default")).counts["completed"] == 3


async def test_the_walk_goes_on_where_it_was(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "WALK_ROWS_MAX", 3)
    records = [task_record() for _ in range(20)]
    async with open_lists(connection) as lists:
        for record in records:
            await put(connection, record)
        assert len(await listed_ids(lists)) == 20
        for record in records[5:20:3]:
            await purge_record(connection, record)
        left = [record.id for number, record in enumerate(records) if number < 5 or (number - 5) % 3]
        await until(lambda: _lists(lists, left[::-1]))


async def _lists(lists: Lists, ids: list[str]) -> bool:
    return await listed_ids(lists) == ids


# Packed tasks


async def test_packed_tasks_are_listed_among_the_others(connection: Connection) -> None:
    records = [task_record(updated_at=START + timedelta(seconds=n), metadata={"n": n % 3}) for n in range(9)]
    async with open_lists(connection) as before:
        for record in records:
            await put(connection, record)
        expected = [record.id for record in reversed(records)]
        assert await listed_ids(before) == expected
        await pack_tasks(connection, records[:6])
        assert await listed_ids(before) == expected, "for a moment they are in both"
        for record in records[:6]:
            await purge_record(connection, record)
        # One that saw them before, and one that comes now.
        async with open_lists(connection) as after:
            for lists in (before, after):
                assert await listed_ids(lists, limit=4) == expected
                assert await listed_ids(lists, metadata=(("n", "1"),)) == expected[1::3]
                assert (await lists.counts("default")).counts["completed"] == 9
        # A record that is written late says nothing new.
        await put(connection, records[0])
        assert await listed_ids(before) == expected
        await purge_record(connection, records[0])
        assert await listed_ids(before) == expected


async def test_the_tasks_of_a_pack_go_with_it(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "TRANSACTION_ROWS_MAX", 2)
    records = [task_record(updated_at=START + timedelta(seconds=n)) for n in range(20)]
    packs = [await pack_tasks(connection, records[n : n + 5], piece=n + 1) for n in range(0, 20, 5)]
    await connection.requests.publish("archive.1", b"a part of a large task")
    async with open_lists(connection) as lists:
        assert len(await listed_ids(lists)) == 20
        await connection.requests.delete_message("ARCHIVE", packs[0])
        await until(lambda: _lists(lists, [record.id for record in reversed(records[5:])]))
        # Also one that is not the first.
        await connection.requests.delete_message("ARCHIVE", packs[2])
        left = [*records[5:10], *records[15:]]
        await until(lambda: _lists(lists, [record.id for record in reversed(left)]))
        assert (await lists.counts("default")).counts["completed"] == 10


async def test_a_task_that_is_packed_twice_goes_with_the_later_pack(connection: Connection) -> None:
    record = task_record()
    first = await pack_tasks(connection, [record])
    await pack_tasks(connection, [record], piece=2)
    async with open_lists(connection) as lists:
        assert await listed_ids(lists) == [record.id]
        await connection.requests.delete_message("ARCHIVE", first)
        later = task_record()
        await put(connection, later)
        assert await listed_ids(lists) == [later.id, record.id]


async def test_an_id_that_is_free_again_is_listed_as_the_new_task(connection: Connection) -> None:
    old = task_record(sequence=10)
    async with open_lists(connection) as lists:
        pack = await pack_tasks(connection, [old])
        assert await listed_ids(lists) == [old.id]
        await connection.requests.delete_message("ARCHIVE", pack)
        await put(connection, task_record(id=old.id, sequence=20, status="running"))
        assert [task.status for task in await listed_tasks(lists)] == ["running"]


# The file


async def test_an_index_goes_on_from_its_file_and_is_built_anew_without_it(
    connection: Connection, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    first, second = task_record(), task_record()
    await put(connection, first)
    async with open_lists(connection, folder) as lists:
        assert await listed_ids(lists) == [first.id]
        # Two processes have a file each.
        async with open_lists(connection, folder) as others:
            assert await listed_ids(others) == [first.id]
        assert {path.name for path in folder.glob("*.sqlite")} == {"lists-1.sqlite", "lists-2.sqlite"}
    await put(connection, second)
    async with open_lists(connection, folder) as lists:
        assert await listed_ids(lists) == [second.id, first.id]
    for path in folder.iterdir():
        path.unlink()
    async with open_lists(connection, folder) as lists:
        assert await listed_ids(lists) == [second.id, first.id]
        assert (await lists.counts("default")).counts["completed"] == 2


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b""])
async def test_a_file_that_is_no_index_is_thrown_away(connection: Connection, tmp_path: Path, content: bytes) -> None:
    record = task_record()
    await put(connection, record)
    (tmp_path / "lists-1.sqlite").write_bytes(content)
    async with open_lists(connection, tmp_path) as lists:
        await until(lambda: _lists_at_last(lists, [record.id]))


async def test_a_file_of_another_format_or_with_broken_pages_is_built_anew(
    connection: Connection, tmp_path: Path
) -> None:
    records = [task_record() for _ in range(300)]
    for record in records:
        await put(connection, record)
    expected = [record.id for record in reversed(records)]
    async with open_lists(connection, tmp_path) as lists:
        assert await listed_ids(lists) == expected
    path = tmp_path / "lists-1.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"\0\0\0\7" + whole[64:])
    async with open_lists(connection, tmp_path) as lists:
        assert await listed_ids(lists) == expected
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    async with open_lists(connection, tmp_path) as lists:
        await until(lambda: _lists_at_last(lists, expected))


async def _lists_at_last(lists: Lists, ids: list[str]) -> bool:
    try:
        return await _lists(lists, ids)
    except ListUnavailable:
        return False


async def test_an_index_without_room_says_so_and_goes_on_once_there_is_some(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    folder.write_text("a file where the folder should be")
    record = task_record()
    await put(connection, record)
    async with open_lists(connection, folder) as lists:
        with pytest.raises(ListUnavailable, match="the index of the lists can't be kept"):
            await listed_ids(lists)
        folder.unlink()
        assert await listed_ids(lists) == [record.id]


async def test_a_list_says_how_far_an_index_is_that_is_being_built(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await put_many(connection, "default", 40)
    monkeypatch.setattr(following, "SOURCES", [replace(source, page_messages_max=1) for source in SOURCES])
    async with open_lists(connection) as lists:
        with monkeypatch.context() as patient:
            patient.setattr(following, "CATCH_UP_SECONDS_MAX", 0.0)
            with pytest.raises(ListUnavailable, match=r"is being built: [0-9]+ % of it are there"):
                await listed_ids(lists)
        await until(lambda: _lists_at_last(lists, ids[::-1]))


async def test_a_fault_of_the_index_costs_the_index_alone(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = task_record()
    await put(connection, record)
    async with open_lists(connection, tmp_path) as lists:
        assert await listed_ids(lists) == [record.id]
        with monkeypatch.context() as broken:
            broken.setattr(tasks.Tasks, "read", lambda *_: next(iter(())))
            with pytest.raises(ListUnavailable, match="was broken, and is built anew: StopIteration"):
                await listed_ids(lists)
        await until(lambda: _lists_at_last(lists, [record.id]))


@pytest.mark.parametrize("stream", ["KV_tasks", "ARCHIVE"])
async def test_a_stream_that_was_made_again_begins_the_index_anew(
    connection: Connection, settings: Settings, stream: str
) -> None:
    packed_record, hot = task_record(), task_record()
    await put(connection, hot)
    await pack_tasks(connection, [packed_record])
    async with open_lists(connection) as lists:
        assert set(await listed_ids(lists)) == {packed_record.id, hot.id}
        await connection.requests.api(f"STREAM.DELETE.{stream}")
        left = hot if stream == "ARCHIVE" else packed_record
        assert await listed_ids(lists) == [left.id], "a stream that is not there is empty"
        await apply(connection.requests, declared(settings), update=False)
        assert await listed_ids(lists) == [left.id]
        more: TaskRecord = task_record()
        await (put(connection, more) if stream == "KV_tasks" else pack_tasks(connection, [more]))
        assert set(await listed_ids(lists)) == {left.id, more.id}

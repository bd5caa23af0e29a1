"""The pure parts of lists: keys and cursors, labels, rows, filters, and the walk through several lists at once."""

from __future__ import annotations

import os
import random
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codec import encode
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.identifiers import derived_id, new_id
from contracts.records.status import STATUSES, OpenApproval
from ingress.listing import schema, walking
from ingress.listing.filters import LetterFilter, TaskFilter
from ingress.listing.keys import (
    EVERY,
    OPEN,
    Key,
    hashed_label,
    id_bytes,
    id_text,
    letter_cursor,
    microseconds,
    parse_letter_cursor,
    parse_task_cursor,
    scalar_text,
    status_label,
    task_cursor,
)
from ingress.listing.rows import packed, shown, task_labels, unpacked
from ingress.listing.schema import TABLES, IndexFile
from ingress.listing.walking import Walk
from ingress.parsing import parse_task_filter
from tests.support.lists import task_record

AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ids = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26)


# Keys


@given(ids, ids)
def test_ids_keep_their_order_as_bytes(one: str, other: str) -> None:
    assert (id_bytes(one) < id_bytes(other)) == (one < other)
    assert id_text(id_bytes(one)) == one


@given(st.integers(0, 10**18 - 1), ids)
def test_a_cursor_is_the_key_that_it_was_made_of(time: int, task: str) -> None:
    assert parse_task_cursor(task_cursor(Key(time, id_bytes(task)))) == Key(time, id_bytes(task))
    assert parse_letter_cursor(letter_cursor(Key(time, 17))) == Key(time, 17)


def test_a_cursor_of_another_list_is_none() -> None:
    with pytest.raises(InvalidPayload, match="not a cursor of this list"):
        parse_task_cursor(letter_cursor(Key(1, 17)))
    with pytest.raises(InvalidPayload, match="not a cursor of this list"):
        parse_letter_cursor(task_cursor(Key(1, id_bytes(new_id()))))


def test_times_are_exact_and_of_any_zone() -> None:
    assert microseconds(AT + timedelta(microseconds=1)) == microseconds(AT) + 1
    assert microseconds(AT.astimezone(timezone(timedelta(hours=5)))) == microseconds(AT)
    assert microseconds(datetime(1, 1, 1, tzinfo=UTC)) == 0
    assert 0 < microseconds(datetime.max.replace(tzinfo=UTC)) < 10**18


def test_labels_by_hash_meet_none_that_is_counted() -> None:
    labels = {hashed_label("tool", str(number)) for number in range(1000)}
    assert len(labels) == 1000
    assert labels.isdisjoint([EVERY, OPEN, *map(status_label, STATUSES)])
    assert max(labels) < 2**63
    assert hashed_label("ab", "c") != hashed_label("a", "bc")


@pytest.mark.parametrize(
    ("value", "text"),
    [("42", "42"), (42, "42"), (-7, "-7"), (True, "true"), (False, "false"), ("True", "True"), ("", "")],
)
def test_a_value_is_compared_as_the_text_of_its_json(value: str | int | bool, text: str) -> None:
    assert scalar_text(value) == text


# Rows


def test_a_row_comes_back_as_it_was_and_is_small() -> None:
    record = task_record(metadata={"order": 42, "ü": "ä" * 300}, error=ErrorInfo("timeout", "x" * 400))
    assert unpacked(packed(record), type(record)) == record
    small = task_record(turn=1, model="scripted/default", sequence=4711)
    assert len(packed(small)) < 0.5 * len(encode(small))
    with pytest.raises(InvalidPayload):
        unpacked(b"\xff\xff rubbish", type(record))


def test_a_list_shows_what_waits_as_far_as_it_fits() -> None:
    def approval(call: str, length: int) -> OpenApproval:
        return OpenApproval(call=call, tool="add", arguments={"a": "x" * length}, expires_at=AT)

    record = task_record(approvals=[approval("1-0", 900), approval("1-1", 4_000), approval("1-2", 900)], output="long")
    kept = shown(record)
    assert ([each.call for each in kept.approvals or []], kept.output) == (["1-0", "1-2"], None)
    assert shown(task_record(approvals=[approval("1-0", 9_000)])).approvals is None


def test_a_task_is_found_by_its_status_and_each_value_of_its_metadata() -> None:
    labels = task_labels(task_record(status="failed", metadata={"order": 42, "vip": True}))
    assert labels == {
        *TaskFilter(status="failed").labels,
        *TaskFilter(metadata=(("order", "42"), ("vip", "true"))).labels,
    }
    assert task_labels(task_record()) == {status_label("completed")}


def test_a_label_that_two_values_share_finds_only_the_value() -> None:
    wanted = TaskFilter(metadata=(("order", "42"),))
    assert wanted.takes(task_record(metadata={"order": "42", "more": 1}))
    assert not wanted.takes(task_record(metadata={"order": 43}))
    assert not wanted.takes(task_record(metadata={"other": 42}))
    assert not wanted.takes(task_record())


def test_letters_are_all_or_those_that_have_each_label() -> None:
    assert LetterFilter(only_open=False).labels == [EVERY]
    assert LetterFilter().labels == [OPEN]
    assert len(LetterFilter(tool="add", code="tool-error").labels) == 3


# Queries


def test_a_query_becomes_a_filter() -> None:
    query = [
        ("status", "failed"),
        ("metadata.order", "42"),
        ("metadata.a.b", ""),
        ("metadatax", "no"),
        ("since", "2026-01-31T09:30:00Z"),
        ("limit", "7"),
    ]
    assert parse_task_filter(query) == TaskFilter(status="failed", metadata=(("order", "42"), ("a.b", "")), since=AT)
    assert parse_task_filter([]) == TaskFilter()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ([("metadata.", "1")], "metadata.<key>: has no key"),
        ([(f"metadata.k{number}", "1") for number in range(9)], "9 are too many; 8"),
        ([("status", "done")], "status: must be one of"),
        ([("until", "now")], "until: must be a time"),
    ],
)
def test_a_query_that_makes_no_sense_says_which_key(query: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(InvalidPayload, match=said):
        parse_task_filter(query)


# The walk


@pytest.fixture
def database() -> sqlite3.Connection:
    opened = sqlite3.connect(":memory:")
    opened.executescript(TABLES)
    return opened


def fill(database: sqlite3.Connection, labels: dict[int, set[int]]) -> None:
    """Tasks of tenant 1, by their times, under labels; and one of another tenant under each of them."""
    task = id_bytes("0" * 26)
    for label, times in labels.items():
        rows = [(1, label, time, task) for time in times] + [(2, label, 10**6, task)]
        database.executemany("INSERT INTO tasks_labels VALUES (?, ?, ?, ?)", rows)


def walked(database: sqlite3.Connection, labels: list[int], since: int = 0) -> tuple[list[int], int]:
    """The times that the walk finds over all pages, and how many pages it took."""
    found: list[int] = []
    position: Key | None = Key(10**9, b"")
    pages = 0
    while position is not None:
        walk = Walk(database, 1, "tasks", labels, position, since)
        while (key := walk.next()) is not None:
            found.append(key.time)
            walk.go_on()
        assert position != walk.position, "each page gets on"
        position = walk.position
        pages += 1
    return found, pages


@pytest.mark.parametrize("seeks", [3, 5, 1_000])
def test_a_walk_finds_what_is_in_all_lists(
    database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, seeks: int
) -> None:
    monkeypatch.setattr(walking, "SEEKS_MAX", seeks)
    chance = random.Random(7)
    lists = {label: set(chance.sample(range(300), size)) for label, size in ((1, 250), (2, 40), (3, 120))}
    fill(database, lists)
    for labels in ([1], [2], [1, 2], [3, 2, 1], [2, 2], [1, 9]):
        expected = set.intersection(*(lists.get(label, set()) for label in labels))
        assert walked(database, labels)[0] == sorted(expected, reverse=True)
        assert walked(database, labels, since=100)[0] == sorted((n for n in expected if n >= 100), reverse=True)


def test_a_rare_value_carries_past_what_only_a_common_one_has(database: sqlite3.Connection) -> None:
    fill(database, {1: set(range(20_000)), 2: {5, 19_000}})
    assert walked(database, [1, 2]) == ([19_000, 5], 1)
    assert walked(database, [2, 1]) == ([19_000, 5], 1)


def test_each_look_of_a_walk_is_one_search_in_an_index(database: sqlite3.Connection) -> None:
    looks = (
        "SELECT time, id FROM tasks WHERE tenant = ? AND (time, id) <= (?, ?) ORDER BY time DESC, id DESC LIMIT 1",
        "SELECT time, id FROM tasks_labels WHERE tenant = ? AND label = ? AND (time, id) < (?, ?)"
        " ORDER BY time DESC, id DESC LIMIT 1",
    )
    for look in looks:
        plan = database.execute(f"EXPLAIN QUERY PLAN {look}", (1,) * look.count("?")).fetchall()
        assert len(plan) == 1, "nothing is sorted"
        assert "SEARCH" in plan[0][3], plan
        assert "(time,id)<" in plan[0][3], plan


# The file


def test_a_file_is_kept_if_it_was_closed_or_if_the_machine_was_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> bool:
        file = IndexFile(tmp_path)
        database = file.open()
        found = bool(database.execute("SELECT * FROM tenants").fetchall())
        database.execute("INSERT OR IGNORE INTO tenants (name) VALUES ('default')")
        database.close()
        if closes:
            file.close(is_kept=True)
        elif file._lock is not None:  # As if the process was killed.
            os.close(file._lock)
        return found

    boot = tmp_path / "boot"
    boot.write_text("one\n")
    monkeypatch.setattr(schema, "_BOOT", boot)
    closes = False
    assert [written(), written()] == [False, True], "a process that was killed leaves it whole"
    boot.write_text("two\n")
    assert not written(), "a machine that was cut off may not"
    closes = True
    assert written()
    boot.write_text("three\n")
    assert written(), "it was closed"
    boot.unlink()
    assert written()
    closes = False
    assert [written(), written()] == [True, False], "nobody knows whether it was started again"


def test_ids_that_are_derived_are_kept_as_well() -> None:
    record = task_record(id=derived_id("a", "b"))
    assert msgspec.structs.replace(record, id=id_text(id_bytes(record.id))) == record

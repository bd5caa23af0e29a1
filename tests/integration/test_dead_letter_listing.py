"""Listing dead letters against a real broker: the bounds of a page, of a window, and of a batch of status records."""

from __future__ import annotations

import pytest

from contracts.api.dead_letters import ListedDeadLetter
from contracts.journal.events import TaskReplayed
from contracts.journal.parts import StepGen
from ingress import dead_letter_listing
from ingress.dead_letter_listing import Filter, list_dead_letters, read_dead_letters
from mesh.broker import key_value, reverse_scan
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_sequence
from mesh.journal.projection import project
from mesh.task.records import record
from tests.support.letters import Letters

pytestmark = pytest.mark.integration


async def list_all(connection: Connection, wanted: Filter, limit: int) -> tuple[list[ListedDeadLetter], int]:
    """Every dead letter of a tenant, and how many pages they took."""
    found: list[ListedDeadLetter] = []
    cursor: str | None = None
    pages = 0
    while True:
        page = await list_dead_letters(connection.requests, "default", wanted, limit=limit, cursor=cursor)
        assert len(page.dead_letters) <= limit
        found += page.dead_letters
        pages += 1
        cursor = page.cursor
        if cursor is None:
            return found, pages


@pytest.mark.parametrize("bound", ["SCAN_MAX", "SCAN_BYTES_MAX"])
async def test_a_page_ends_early_and_the_next_goes_on(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    letters = Letters(connection)
    tasks = [(await letters.of_turn()).state.task for _ in range(12)]
    monkeypatch.setattr(dead_letter_listing, bound, 3)
    monkeypatch.setattr(reverse_scan, "WINDOW_FIRST", 2)
    found, pages = await list_all(connection, Filter(), 100)
    assert [letter.task for letter in found] == tasks[::-1]
    assert pages > 1
    assert (await list_all(connection, Filter(tool="none"), 100))[0] == []


async def test_a_window_of_large_records_is_made_smaller(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(connection)
    tasks = [(await letters.of_turn(instructions="i" * 100_000)).state.task for _ in range(8)]
    # Below one record: each has a window of its own.
    monkeypatch.setattr(reverse_scan, "WINDOW_BYTES_MAX", 50_000)
    found, _ = await list_all(connection, Filter(), 3)
    assert [letter.task for letter in found] == tasks[::-1]


async def test_a_record_that_was_written_twice_is_listed_once(connection: Connection) -> None:
    journal = await Letters(connection).of_turn()
    [letter], _ = await list_all(connection, Filter(), 10)
    subject = f"dead.default.{journal.state.task}"
    again = await read_sequence(connection.requests, "DEAD_LETTERS", letter.record_sequence)
    assert again is not None
    await connection.requests.publish(subject, again.payload)
    found, _ = await list_all(connection, Filter(), 10)
    assert [each.record_sequence for each in found] == [letter.record_sequence + 1]


async def test_a_task_with_many_records_shows_the_newest(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Letters(connection).of_calls("add", *({"a": number} for number in range(5)))
    monkeypatch.setattr(dead_letter_listing, "RECORDS_SHOWN_MAX", 3)
    shown, more = await read_dead_letters(connection.requests, "default", journal.state.task, [])
    assert ([letter.step for letter in shown], more) == (["1-4", "1-3", "1-2"], True)
    monkeypatch.setattr(dead_letter_listing, "RECORDS_SHOWN_BYTES_MAX", 1)
    shown, more = await read_dead_letters(connection.requests, "default", journal.state.task, [])
    assert ([letter.step for letter in shown], more) == (["1-4"], True), "one is shown, however large"


async def test_one_of_several_steps_that_goes_on_is_listed_no_more(connection: Connection) -> None:
    journal = await Letters(connection).of_calls("add", {"a": 1}, {"a": 2})
    await journal.append(lambda stamp: TaskReplayed(*stamp, steps=[StepGen("1-0", 0)], by="test"), lambda _: True)
    await project(connection.requests, record(journal.state))
    found, _ = await list_all(connection, Filter(), 10)
    assert [letter.step for letter in found] == ["1-1"]
    every, _ = await list_all(connection, Filter(only_open=False), 10)
    assert [(letter.step, letter.open) for letter in every] == [("1-1", True), ("1-0", False)]


# Many values of a bucket


async def test_many_values_are_read_whatever_their_size(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {f"default.k{number}": b"%d" % number * 20_000 for number in range(9)}
    for key, value in values.items():
        await key_value.put(connection.requests, "tasks", key, value)
    await key_value.delete(connection.requests, "tasks", "default.k0")
    # Each answer has but a few of them.
    monkeypatch.setattr(key_value, "MANY_BYTES_MAX", 50_000)
    found = await key_value.get_many(connection.requests, "tasks", [*values, "default.absent"])
    assert {key: entry.value for key, entry in found.items()} == {**values, "default.k0": None}
    assert await key_value.get_many(connection.requests, "tasks", ["default.absent"]) == {}
    assert await key_value.get_many(connection.requests, "tasks", []) == {}

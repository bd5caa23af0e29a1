"""Listing dead letters against a real broker: filters, pages, what opens and closes them, and what is deleted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from contracts.journal.events import TaskReplayed
from contracts.journal.parts import StepGen
from contracts.streams import DEAD_LETTERS
from ingress import dead_letter_reading
from ingress.dead_letter_reading import read_dead_letters, read_malformed
from ingress.listing import tidying, walking
from ingress.listing.filters import LetterFilter
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_sequence
from mesh.journal.projection import project
from mesh.task.records import record
from tests.support.letters import Letters
from tests.support.lists import listed_letters, open_lists

pytestmark = pytest.mark.integration


async def test_pages_join(connection: Connection) -> None:
    letters = Letters(connection)
    tasks = [(await letters.of_turn()).state.task for _ in range(12)]
    await letters.of_turn("theirs")
    async with open_lists(connection) as lists:
        for limit in (1, 5, 12, 100):
            assert [letter.task for letter in await listed_letters(lists, limit=limit)] == tasks[::-1]
        assert await listed_letters(lists, tool="none") == []
        assert len(await listed_letters(lists, "theirs")) == 1


async def test_filters_are_joined(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = Letters(connection)
    for _ in range(8):
        await letters.of_turn(code="provider-error")
        await letters.of_calls("add", {"a": 1})
    last = await letters.of_calls("add", {"a": 1}, code="tool-timeout")
    await letters.of_calls("multiply", {"a": 1}, code="tool-timeout")
    monkeypatch.setattr(walking, "SEEKS_MAX", 6)
    async with open_lists(connection) as lists:
        assert len(await listed_letters(lists)) == 18
        assert len(await listed_letters(lists, tool="add")) == 9
        assert len(await listed_letters(lists, code="provider-error")) == 8
        assert [each.task for each in await listed_letters(lists, tool="add", code="tool-timeout")] == [last.state.task]
        assert await listed_letters(lists, tool="add", code="provider-error", only_open=False) == []
        [one] = await listed_letters(lists, tool="multiply")
        assert len(await listed_letters(lists, until=one.time)) == 17
        assert [each.id for each in await listed_letters(lists, since=one.time)] == [one.id]
        assert await listed_letters(lists, since=one.time + timedelta(microseconds=1)) == []
        # More looks than one page has: it ends early, and the next goes on.
        page = await lists.dead_letters(
            "default", LetterFilter(tool="add", code="provider-error"), limit=9, cursor=None
        )
        assert (page.dead_letters, page.cursor is None) == ([], False)


async def test_a_record_that_was_written_twice_is_listed_once(connection: Connection) -> None:
    journal = await Letters(connection).of_turn()
    async with open_lists(connection) as lists:
        [letter] = await listed_letters(lists)
        subject = f"dead.default.{journal.state.task}"
        again = await read_sequence(connection.requests, "DEAD_LETTERS", letter.record_sequence)
        assert again is not None
        await connection.requests.publish(subject, again.payload)
        for found in (await listed_letters(lists), await listed_letters(lists, only_open=False)):
            assert [each.record_sequence for each in found] == [letter.record_sequence + 1]


async def test_a_task_with_many_records_shows_the_newest(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(connection)
    journal = await letters.of_calls("add", *({"a": number} for number in range(5)))
    await letters.of_turn()
    requests, task = connection.requests, journal.state.task
    shown, more = await read_dead_letters(requests, "default", task, [])
    assert ([letter.step for letter in shown], more) == (["1-4", "1-3", "1-2", "1-1", "1-0"], False)
    monkeypatch.setattr(dead_letter_reading, "PAGE_EVENTS_MAX", 2)
    monkeypatch.setattr(dead_letter_reading, "RECORDS_SHOWN_MAX", 3)
    shown, more = await read_dead_letters(requests, "default", task, [])
    assert ([letter.step for letter in shown], more) == (["1-4", "1-3", "1-2"], True)
    monkeypatch.setattr(dead_letter_reading, "RECORDS_SHOWN_BYTES_MAX", 1)
    shown, more = await read_dead_letters(requests, "default", task, [])
    assert ([letter.step for letter in shown], more) == (["1-4"], True), "one is shown, however large"


async def test_one_of_several_steps_that_goes_on_is_listed_no_more(connection: Connection) -> None:
    async with open_lists(connection) as before:
        journal = await Letters(connection).of_calls("add", {"a": 1}, {"a": 2})
        assert [letter.step for letter in await listed_letters(before)] == ["1-1", "1-0"]
        await journal.append(lambda stamp: TaskReplayed(*stamp, steps=[StepGen("1-0", 0)], by="test"), lambda _: True)
        await project(connection.requests, record(journal.state))
        # One that saw it open, and one that never did.
        async with open_lists(connection) as after:
            for lists in (before, after):
                assert [letter.step for letter in await listed_letters(lists)] == ["1-1"]
                every = await listed_letters(lists, only_open=False)
                assert [(letter.step, letter.open) for letter in every] == [("1-1", True), ("1-0", False)]


async def test_records_that_are_deleted_or_purged_are_listed_no_more(connection: Connection) -> None:
    letters = Letters(connection)
    requests = connection.requests
    await letters.of_turn()
    for _ in range(3):
        await letters.of_rubbish()
    purged = await letters.of_turn()
    await letters.of_rubbish("theirs")
    async with open_lists(connection) as lists:
        found = await listed_letters(lists)
        assert [letter.task is None for letter in found] == [False, True, True, True, False]
        await requests.delete_message(DEAD_LETTERS.name, found[2].record_sequence)
        left = await listed_letters(lists, only_open=False)
        assert left == [*found[:2], *found[3:]]
        await requests.api("STREAM.PURGE.DEAD_LETTERS", {"filter": f"dead.default.{purged.state.task}"})
        assert await listed_letters(lists, only_open=False) == left[1:]
        await requests.api("STREAM.PURGE.DEAD_LETTERS", {"seq": left[-2].record_sequence})
        assert await listed_letters(lists, only_open=False) == left[1:-1]
        assert await read_malformed(requests, "default", left[1].record_sequence) is not None
        await requests.api("STREAM.PURGE.DEAD_LETTERS")
        assert await listed_letters(lists, only_open=False) == []


async def test_many_deleted_records_are_listed_by_the_broker_now_and_then(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(connection)
    for _ in range(4):
        await letters.of_rubbish()
    monkeypatch.setattr(tidying, "LISTED_AT_ONCE_MAX", 0)
    async with open_lists(connection) as lists:
        found = await listed_letters(lists)
        await connection.requests.delete_message(DEAD_LETTERS.name, found[1].record_sequence)
        assert await listed_letters(lists) == [found[0], *found[2:]]
        await connection.requests.delete_message(DEAD_LETTERS.name, found[2].record_sequence)
        assert await listed_letters(lists) == [found[0], *found[2:]], "it was asked just now"
        monkeypatch.setattr(tidying, "LISTED_PAUSE_SECONDS", 0.0)
        assert await listed_letters(lists) == [found[0], found[3]]


async def test_what_is_no_record_is_passed_over(connection: Connection) -> None:
    letters = Letters(connection)
    task = (await letters.of_turn()).state.task
    await connection.requests.publish(f"dead.default.{task}", b"rubbish")
    await connection.requests.publish("dead._.malformed", b"rubbish")
    async with open_lists(connection) as lists:
        assert [letter.task for letter in await listed_letters(lists)] == [task]


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

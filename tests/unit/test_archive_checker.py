"""What the checker says of an archive, and of who follows a task that loses its deltas."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from contracts.identifiers import new_id
from contracts.records.archive import PackDirectory, PackedEvent, PackedTask, PackEntry, PackLocation
from contracts.records.status import TaskRecord
from tests.support.archive import Archive, check_archive
from tests.support.checker import ClientHistory, Frame, StoredEvent, check_followed, check_journal

TASK = new_id()
NAME = f"default.{TASK}"
AT = datetime(2026, 1, 1, tzinfo=UTC)
RECORD = TaskRecord(
    id=TASK,
    tenant="default",
    status="completed",
    pool="default",
    priority="normal",
    created_at=AT,
    updated_at=AT,
    sequence=7,
)
"""Of a task whose end has sequence 7."""


def entry(size: int = 10) -> PackEntry:
    return PackEntry(record=RECORD, ended_at=AT, offset=0, size=size)


def directory(*entries: PackEntry) -> PackDirectory:
    return PackDirectory(ended_from=AT, ended_until=AT, tasks=list(entries))


def packed(end: str = "task.completed", sequence: int = 7) -> PackedTask:
    event = PackedEvent(sequence=sequence, stored_at=AT, event=msgspec.Raw(json.dumps({"type": end}).encode()))
    return PackedTask(tenant="default", task=TASK, record=RECORD, events=[event])


def archive(**changes: object) -> Archive:
    whole = Archive({3: directory(entry())}, {NAME: PackLocation(3, 0, 10)}, {NAME: packed()})
    for name, value in changes.items():
        setattr(whole, name, value)
    return whole


def test_a_task_that_is_packed_once_and_found_there_is_fine() -> None:
    assert check_archive(archive()) == []


@pytest.mark.parametrize(
    ("found", "journals", "records", "complaint"),
    [
        (archive(directories={3: directory(entry()), 4: directory(entry())}), [], [], "is packed 2 times"),
        (archive(places={}, tasks={}), [], [], "the archive says nothing"),
        (archive(places={NAME: PackLocation(3, 0, 11)}), [], [], "the archive says 3, 0 and 11 bytes"),
        (archive(directories={3: directory()}), [], [], "which knows nothing of it"),
        (archive(), [NAME], [], "left in EVENTS"),
        (archive(), [], [NAME], "its record is left"),
        (archive(tasks={NAME: packed("turn.completed")}), [], [], "packed with the end turn.completed"),
        (archive(tasks={NAME: packed(sequence=8)}), [], [], "its record says completed at 7"),
    ],
)
def test_the_checker_finds_what_is_wrong_in_an_archive(
    found: Archive, journals: list[str], records: list[str], complaint: str
) -> None:
    problems = check_archive(found, journals, records)
    assert [problem for problem in problems if complaint in problem], problems


def stored(*kinds: str) -> list[StoredEvent]:
    return [
        StoredEvent(sequence, TASK, kind.encode(), {"type": kind, "n": sequence - 1, "id": str(sequence)})
        for sequence, kind in enumerate(kinds, 1)
    ]


JOURNAL = stored("task.queued", "output.delta", "output.delta", "turn.completed", "task.completed")
MILESTONES = [each for each in JOURNAL if each.event["type"] != "output.delta"]


def seen(*frames: int | str, after: int = 0) -> ClientHistory:
    """A client's frames: sequences of the journal; `gap`, and `snapshot <sequence>`."""
    received = []
    for each in frames:
        if isinstance(each, int):
            received.append(Frame(each, JOURNAL[each - 1].event["type"], JOURNAL[each - 1].data))
        elif each == "gap":
            received.append(Frame(None, "stream.gap", b"{}"))
        else:
            received.append(Frame(int(each.split()[1]), "snapshot", b"{}"))
    return ClientHistory(TASK, received, after)


@pytest.mark.parametrize(
    "history",
    [
        seen(1, 2, 3, 4, 5),
        seen(1, "gap", "snapshot 4", 5),
        seen("gap", "snapshot 4", 5, after=2),
        seen(5, after=4),
        seen(after=5),
    ],
)
def test_who_is_told_of_each_gap_has_followed(history: ClientHistory) -> None:
    assert check_followed(history, JOURNAL) == []
    assert check_followed(history, MILESTONES) == []


@pytest.mark.parametrize(
    ("history", "complaint"),
    [
        (seen(1, 4, 5), "was told nothing of [2, 3], before 4"),
        (seen(1, "gap", "snapshot 3", 5), "was told nothing of [4]"),
        (seen(1, "snapshot 4", 5), "snapshot without a gap"),
        (seen(1, "gap", 5), "behind a gap"),
        (seen(1, 2, 2, 3, 4, 5), "output.delta 2 behind 2"),
        (seen(1, 2, 3, 4), "ended at 4, the task at 5"),
    ],
)
def test_the_checker_finds_a_silent_jump(history: ClientHistory, complaint: str) -> None:
    (problem,) = check_followed(history, JOURNAL)
    assert complaint in problem


def test_a_journal_without_its_deltas_ascends_and_begins_at_0() -> None:
    kinds = ("task.queued", "reasoning.delta", "context.compacted", "task.completed")
    journal = stored(*kinds)
    milestones = [journal[0], *journal[2:]]
    assert check_journal(milestones, milestones_only=True) == []
    (problem,) = check_journal(milestones)
    assert "n is not dense" in problem
    (problem,) = check_journal(milestones[1:], milestones_only=True)
    assert "n does not ascend from 0" in problem

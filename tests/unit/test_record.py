"""The record of a task: what a list, a client and a snapshot are told of a journal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.journal import edge_events, events
from contracts.journal.parts import Timings, Usage
from contracts.records.status import OpenDeadLetter
from contracts.tasks import TaskRequest
from mesh.task.records import record, snapshot_turns
from tests.unit.journals import START, TASK, TENANT, HandMadeJournal
from tests.unit.tellings import CLAIMED, COMPLETED, DEAD, QUEUED, Step, cancel, expire, fail, journal_of, replay


def fields(journal: HandMadeJournal) -> dict[str, Any]:
    """Fields of a task's record that are not their defaults, as they are stored; times as seconds since the start."""
    status = record(journal.state)
    default_free = {name: getattr(status, name) for name in status.__struct_fields__}
    for name in ("created_at", "updated_at", "deadline"):
        if default_free[name] is not None:
            default_free[name] = (default_free[name] - START).total_seconds()
    always = {"id": TASK, "tenant": TENANT, "pool": "default", "priority": "normal", "created_at": 0.0}
    assert always.items() <= default_free.items()
    return {name: value for name, value in default_free.items() if value is not None and name not in always}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([QUEUED], {"status": "queued", "updated_at": 0.0, "sequence": 3}),
        (
            [QUEUED, CLAIMED],
            {"status": "running", "updated_at": 1.0, "sequence": 6, "turn": 1, "model": "scripted"},
        ),
        (
            [QUEUED, CLAIMED, COMPLETED],
            {
                "status": "completed",
                "updated_at": 2.0,
                "sequence": 9,
                "turn": 1,
                "model": "scripted",
                "output": "done",
                "usage": Usage(1, 2),
                "timings": Timings(total_seconds=1.0),
            },
        ),
        (
            [QUEUED, CLAIMED, fail],
            {
                "status": "failed",
                "updated_at": 2.0,
                "sequence": 9,
                "turn": 1,
                "model": "scripted",
                "error": ErrorInfo("invalid-script", "no such directive"),
            },
        ),
        (
            [QUEUED, CLAIMED, cancel],
            {
                "status": "cancelled",
                "updated_at": 2.0,
                "sequence": 9,
                "turn": 1,
                "model": "scripted",
                "output": "Hel",
            },
        ),
        ([QUEUED, expire], {"status": "expired", "updated_at": 1.0, "sequence": 6}),
        (
            [QUEUED, DEAD],
            {
                "status": "dead_lettered",
                "updated_at": 1.0,
                "sequence": 6,
                "error": ErrorInfo("provider-error", "1 gave up"),
                "dead_letters": [OpenDeadLetter(step="1", gen=0, code="provider-error")],
            },
        ),
        ([QUEUED, DEAD, replay], {"status": "queued", "updated_at": 2.0, "sequence": 9}),
        ([QUEUED, DEAD, cancel], {"status": "cancelled", "updated_at": 2.0, "sequence": 9, "output": "Hel"}),
    ],
)
def test_the_record_of_a_task(steps: list[Step], expected: dict[str, object]) -> None:
    assert fields(journal_of(*steps)) == expected


def test_the_record_repeats_what_the_request_says() -> None:
    journal = HandMadeJournal()
    request = TaskRequest(input="hi", pool="gpu", priority="high", metadata={"order": 7, "vip": True})
    journal.queued(request, deadline=START + timedelta(seconds=60))
    status = record(journal.state)
    assert (status.pool, status.priority, status.metadata) == ("gpu", "high", {"order": 7, "vip": True})
    assert status.deadline == START + timedelta(seconds=60)


def test_the_record_of_an_incomplete_task_says_why() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.add(
        events.TaskCompleted, output="Hel", incomplete="deadline", usage=Usage(), timings=Timings(total_seconds=1.0)
    )
    assert record(journal.state).incomplete == "deadline"


def test_the_record_has_the_newest_turn() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=1)
    journal.claimed("2", message=8)
    assert record(journal.state).turn == 2


def test_a_snapshot_holds_the_turns_in_order() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed("first", calls=1)
    journal.claimed("2", message=8)
    journal.reasoning("Hm", turn=2)
    journal.delta("sec", turn=2)
    assert snapshot_turns(journal.state) == [
        edge_events.SnapshotTurn(turn=1, text="first", completed=True),
        edge_events.SnapshotTurn(turn=2, text="sec", reasoning="Hm", completed=False),
    ]

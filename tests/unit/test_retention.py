"""What retention may purge of a journal: the pure parts."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from contracts import headers, subjects
from contracts.codec import encode
from contracts.journal import events
from mesh.broker.direct_get import Stored
from steward.archiving.deltas import DeltasDue, add_due
from steward.retention import REST_SECONDS_MAX, ROUND_SECONDS, pause_seconds
from steward.walks.ages import Ages
from tests.unit.journals import START, TASK, TENANT, HandMadeJournal

HOUR = timedelta(hours=1)
WRONG = {"right": timedelta(), "a year ahead": timedelta(days=365), "40 days behind": timedelta(days=-40)}
"""How far off the clock of those is who wrote the events."""


def log_of(journal: HandMadeJournal, wrong: timedelta = timedelta()) -> list[Stored]:
    """The milestones, stored when they say, or said so by a clock that is wrong; 10 for n = 1, 20 for n = 2."""
    subject = subjects.journal_log(TENANT, TASK)
    return [
        Stored(event.n * 10, subject, encode(replace(event, time=event.time + wrong)), stamped(event.time))
        for event in journal.events
        if not events.is_delta(event)
    ]


def stamped(time: datetime) -> dict[str, str]:
    """What the broker says of a message that it has stored then."""
    return {headers.TIME_STAMP: time.strftime("%Y-%m-%dT%H:%M:%S.%f123Z")}


def deltas_due(milestones: list[Stored], cursor: int, cutoff: datetime, *, of_ended: bool = True) -> DeltasDue:
    """What may go of milestones that lie behind a cursor, on the day after their last."""
    due = DeltasDue(cursor)
    add_due(due, milestones, Ages(START + 24 * HOUR, cutoff), of_ended=of_ended)
    return due


DELTA_SUBJECT = subjects.journal_delta(TENANT, TASK)


def two_turns(wrong: timedelta = timedelta()) -> list[Stored]:
    """The first turn was completed after an hour, at sequence 30, the second after five, at sequence 60."""
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("a")
    journal.turn_completed("a", time=START + HOUR)
    journal.claimed("2", time=START + HOUR)
    journal.delta("b", turn=2)
    journal.turn_completed("b", turn=2, time=START + 5 * HOUR)
    journal.delta("c", turn=3)
    return log_of(journal, wrong)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    ("cutoff", "below", "cursor"),
    [
        pytest.param(START - HOUR, {}, 7, id="nothing is old enough: the cursor stays"),
        pytest.param(START + HOUR / 2, {}, 10, id="old, but no turn is completed"),
        pytest.param(START + HOUR, {DELTA_SUBJECT: 30}, 40, id="the first turn, however young the second is"),
        pytest.param(START + 9 * HOUR, {DELTA_SUBJECT: 60}, 60, id="both, in one purge"),
    ],
)
def test_a_turns_deltas_go_once_it_was_completed_long_enough_ago(
    cutoff: datetime, below: dict[str, int], cursor: int, wrong: timedelta
) -> None:
    due = deltas_due(two_turns(wrong), 7, cutoff)
    assert (due.below, due.cursor, due.unreadable) == (below, cursor, [])
    assert due.met_young == (cursor < 60)


def test_what_cannot_be_read_is_said_and_passed_over() -> None:
    milestones = two_turns()
    broken = [
        Stored(1, subjects.journal_log(TENANT, TASK), b"{", stamped(START)),
        Stored(2, "events.NOBODY.nothing.log", milestones[0].payload, stamped(START)),
        milestones[0]._replace(sequence=3, payload=milestones[0].payload.replace(b"task.queued", b"task.news")),
    ]
    due = deltas_due([*broken, *milestones], 0, START + HOUR)
    assert (due.below, due.cursor) == ({DELTA_SUBJECT: 30}, 40)
    assert [subject for subject, _ in due.unreadable] == [message.subject for message in broken[:2]]
    assert deltas_due(broken, 0, START).cursor == 3


def test_deltas_of_a_task_that_is_about_to_be_packed_are_left_to_that() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("a")
    journal.turn_completed("a", time=START + HOUR)
    journal.add(events.TaskCancelled, time=START + HOUR)
    milestones = log_of(journal)
    assert deltas_due(milestones, 0, START + HOUR).below == {DELTA_SUBJECT: 30}
    assert deltas_due(milestones, 0, START + HOUR, of_ended=False).below == {}


def test_what_is_stamped_far_ahead_is_passed_over() -> None:
    milestones = two_turns()
    ahead = milestones[0]._replace(sequence=5, headers=stamped(START + 365 * 24 * HOUR))
    due = deltas_due([ahead, *milestones], 0, START + HOUR)
    assert (due.below, due.cursor, due.met_young) == ({DELTA_SUBJECT: 30}, 40, True)


def test_rounds_follow_sooner_while_more_is_due_but_rest_nine_times_as_long_as_they_work() -> None:
    assert pause_seconds(0.05, more=False) == ROUND_SECONDS
    assert pause_seconds(0.05, more=True) == pytest.approx(0.45)
    assert pause_seconds(2.0, more=True) == pause_seconds(2.0, more=False) == pytest.approx(18.0)
    assert pause_seconds(100.0, more=True) == REST_SECONDS_MAX

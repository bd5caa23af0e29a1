"""What retention may purge of a journal: the pure parts."""

from __future__ import annotations

from datetime import timedelta

from contracts import events, subjects
from contracts.codec import encode
from mesh.reading import Stored
from steward.retention import deltas_end, task_may_go
from tests.unit.journals import START, TASK, TENANT, HandMadeJournal


def log_of(journal: HandMadeJournal) -> list[Stored]:
    """The milestones, with made-up sequences: 10 for n = 1, 20 for n = 2."""
    subject = subjects.journal_log(TENANT, TASK)
    return [Stored(event.n * 10, subject, encode(event)) for event in journal.events if not events.is_delta(event)]


def test_deltas_go_up_to_the_last_completed_turn_that_is_old_enough_and_never_beyond() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.delta("a")
    assert deltas_end(log_of(journal), START + timedelta(days=9)) == 0
    journal.turn_completed("a", time=START + timedelta(hours=1))
    journal.claimed("2")
    journal.delta("b", turn=2)
    journal.turn_completed("b", turn=2, time=START + timedelta(hours=5))
    journal.delta("c", turn=3)
    assert deltas_end(log_of(journal), START) == 0
    assert deltas_end(log_of(journal), START + timedelta(hours=2)) == 30
    assert deltas_end(log_of(journal), START + timedelta(hours=9)) == 60


def test_a_task_goes_once_it_has_ended_long_enough_or_its_journal_is_gone() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    late = START + timedelta(days=40)
    assert task_may_go(None, late)
    assert not task_may_go(log_of(journal)[-1], late), "a living task never expires"
    journal.add(events.TaskCancelled, time=START + timedelta(days=5))
    assert not task_may_go(log_of(journal)[-1], START + timedelta(days=4))
    assert task_may_go(log_of(journal)[-1], START + timedelta(days=5))

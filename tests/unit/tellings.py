"""Journals told in a few words, for the tables of several tests."""

from __future__ import annotations

from collections.abc import Callable

from contracts.errors import ErrorInfo
from contracts.journal import events
from tests.unit.journals import START, HandMadeJournal

Step = Callable[[HandMadeJournal], object]


def journal_of(*steps: Step) -> HandMadeJournal:
    journal = HandMadeJournal()
    for step in steps:
        step(journal)
    return journal


def ask(journal: HandMadeJournal) -> object:
    return journal.add(events.InputRequested, question="Which quarter?")


def answer(journal: HandMadeJournal) -> object:
    return journal.add(events.InputReceived, text="The third", by="ana", mode="append")


def request_approval(journal: HandMadeJournal) -> object:
    return journal.add(events.ApprovalRequested, call="1-0", tool="add", arguments={}, expires_at=START)


def resolve_approval(journal: HandMadeJournal) -> object:
    return journal.add(events.ApprovalResolved, call="1-0", decision="approved", by="ana")


def fail(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskFailed, error=ErrorInfo("invalid-script", "no such directive"))


def cancel(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskCancelled, output="Hel", by="ana")


def expire(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskExpired)


def say(journal: HandMadeJournal) -> object:
    return journal.delta("Hel")


def replay(journal: HandMadeJournal) -> object:
    return journal.replayed(("1", 0))


QUEUED: Step = HandMadeJournal.queued
CLAIMED: Step = HandMadeJournal.claimed
COMPLETED: Step = HandMadeJournal.completed
DEAD: Step = HandMadeJournal.dead_lettered

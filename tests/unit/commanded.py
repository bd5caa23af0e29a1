"""Journals that the tests of commands begin with, and what carries a command out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts.journal.events import Event, event_type
from contracts.journal.parts import ToolCall
from contracts.messages import control
from contracts.messages.control import AnyCommand
from steward.command_decisions import Outcome, ToAppend, decide_command
from tests.unit.journals import CHILD, TASK, TENANT, HandMadeJournal

Telling = Callable[[HandMadeJournal], object]

PLAIN = ToolCall("1-0", "add", {"a": 1})
PLAIN_1 = ToolCall("1-1", "add", {"a": 1})
GUARDED = ToolCall("1-0", "wipe", {"path": "/"}, approval=True)
QUESTION = ToolCall("1-0", "ask_user", {"question": "Which one?"})
QUESTION_1 = ToolCall("1-1", "ask_user", {"question": "How many?"})
SPAWN = ToolCall("1-0", "spawn_task", {"input": "hi"})

CANCEL = control.CancelCommand(task=TASK, tenant=TENANT, by="user", reason="enough")


def child_done(call: str = "1-0", child: str = CHILD, **fields: Any) -> control.ChildDoneCommand:
    fields = {"status": "completed", "output": "42"} | fields
    return control.ChildDoneCommand(task=TASK, tenant=TENANT, by="taskmesh", call=call, child=child, **fields)


def journal_of(*tellings: Telling) -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    for telling in tellings:
        telling(journal)
    return journal


def asks(*asked: ToolCall) -> Telling:
    return lambda journal: journal.asks(*asked)


def approval_asked(journal: HandMadeJournal) -> object:
    return journal.approval_requested()


def approved(journal: HandMadeJournal) -> object:
    return journal.resolved("approved")


def denied(journal: HandMadeJournal) -> object:
    return journal.resolved("denied")


def asked_user(journal: HandMadeJournal) -> object:
    return journal.input_requested()


def answered(journal: HandMadeJournal) -> object:
    return journal.told(call="1-0", command="earlier")


def child_started(journal: HandMadeJournal) -> object:
    return journal.child_started()


def child_ended(journal: HandMadeJournal) -> object:
    return journal.child_ended()


def ended(journal: HandMadeJournal) -> object:
    return journal.completed()


def carried_out(journal: HandMadeJournal, command: AnyCommand) -> tuple[list[Event], Outcome]:
    """What a steward appends for a command, one after the other, and what it ends with."""
    appended: list[Event] = []
    while isinstance(outcome := decide_command(journal.state, command), ToAppend):
        event = outcome.build(journal.stamp())
        assert outcome.what == (event_type(event), getattr(event, "call", None) or "")
        journal.fold(event)
        appended.append(event)
    return appended, outcome

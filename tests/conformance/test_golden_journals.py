"""Journals and messages that earlier versions have written are read, and mean to this version what they meant then."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.journal.events import UnknownEvent, decode_event
from contracts.messages.control import decode_control
from contracts.messages.work import decode_work
from tests.golden import reading
from tests.golden.reading import as_stored

pytestmark = pytest.mark.conformance

FILES = [
    pytest.param(file, id=f"{folder.name} {file.stem}")
    for folder in reading.folders()
    for file in sorted(folder.glob("*.json"))
]
BYTES_MAX = 300_000


@pytest.mark.parametrize("file", FILES)
def test_a_journal_folds_to_the_record_that_its_version_had_and_calls_for_the_same_messages(file: Path) -> None:
    for task in reading.read(file).tasks:
        state, milestones = reading.told(task.tenant, task.task, task.events)
        assert milestones == [list(each) for each in task.milestones]
        assert reading.record_in(state) == task.record
        due = [reading.message_of(each) for each in reading.due_in(state)]
        assert [each["message_id"] for each in due] == [each["message_id"] for each in task.due]
        assert all(reading.keeps(now, then) for now, then in zip(due, task.due, strict=True))


@pytest.mark.parametrize("file", FILES)
def test_every_event_and_message_of_an_earlier_version_is_understood(file: Path) -> None:
    golden = reading.read(file)
    for task in golden.tasks:
        assert not any(isinstance(decode_event(as_stored(event)), UnknownEvent) for _, event in task.events)
    for message in golden.messages:
        subject, payload = message["subject"], as_stored(message["payload"])
        if subject.startswith("timers.at."):
            subject = subject.replace("timers.at.", "timers.fired.", 1)
        decode = decode_control if subject.startswith(("control.", "timers.")) else decode_work
        assert decode(payload, subject).task == message["payload"]["task"]


def test_every_message_that_a_journal_called_for_was_published() -> None:
    """So the milestones say what a version did, and not only what it would have done."""
    for param in FILES:
        golden = reading.read(param.values[0])  # type: ignore[arg-type]  # a path, as above
        published = {message["headers"]["Nats-Msg-Id"] for message in golden.messages}
        for task in golden.tasks:
            assert {each["message_id"] for each in task.due} <= published


def test_a_version_keeps_its_journals_short() -> None:
    for folder in reading.folders():
        assert sum(file.stat().st_size for file in folder.glob("*.json")) <= BYTES_MAX

"""What becomes of what a client says to a task: a command, or a refusal. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from contracts.api.inputs import ApprovalInput, MessageInput, TaskInput, input_request
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.identifiers import derived_id, new_id
from contracts.journal import events
from contracts.journal.events import Stamp
from contracts.journal.parts import Timings, Usage
from contracts.messages.control import (
    ApprovalCommand,
    InputCommand,
    approval_message_id,
    decode_control,
    input_message_id,
)
from contracts.tasks import BODY_BYTES_MAX, TaskRequest
from ingress.input_decisions import command_for, message_id, shows, was_carried_out
from ingress.parsing import parse_task_input
from mesh.errors import IdempotencyMismatch
from mesh.serving.http import RequestRefused
from mesh.task.fold import fold
from mesh.task.state import TaskState

TASK = new_id()
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
APPROVE = ApprovalInput(call="1-0", decision="approved")
MESSAGE = MessageInput(text="Q3")
COMMAND = input_message_id(TASK, "r")


class Story:
    """A journal that is told event by event."""

    def __init__(self) -> None:
        self.state = TaskState("acme", TASK)

    def _stamp(self) -> Stamp:
        return Stamp(new_id(), TASK, "acme", self.state.next_n, TIME)

    def _tell(self, event: events.JournalEvent) -> Story:
        fold(self.state, self.state.revision + 1, event)
        return self

    def begun(self) -> Story:
        request = TaskRequest(input="a")
        return self._tell(
            events.TaskQueued(
                *self._stamp(), request=request, pool="p", priority="normal", fingerprint="f", accepted_at=TIME
            )
        )

    def asked(self, call: str) -> Story:
        expires_at = TIME + timedelta(hours=1)
        return self._tell(
            events.ApprovalRequested(*self._stamp(), call=call, tool="shell", arguments={}, expires_at=expires_at)
        )

    def resolved(self, call: str) -> Story:
        return self._tell(events.ApprovalResolved(*self._stamp(), call=call, decision="denied", by="Ada"))

    def question(self, call: str) -> Story:
        return self._tell(events.InputRequested(*self._stamp(), question="Which?", call=call))

    def received(self, command: str, text: str = "Q3", call: str | None = None) -> Story:
        return self._tell(
            events.InputReceived(*self._stamp(), text=text, by="http", mode="append", call=call, command=command)
        )

    def ended(self) -> Story:
        return self._tell(events.TaskCompleted(*self._stamp(), output="", usage=Usage(), timings=Timings()))


def test_a_message_becomes_a_command_that_names_its_request() -> None:
    command = command_for(Story().begun().state, MessageInput(text="faster", mode="redirect"), COMMAND, "http")
    assert command == InputCommand(task=TASK, tenant="acme", by="http", text="faster", mode="redirect", command=COMMAND)


def test_a_decision_on_a_call_that_waits_becomes_a_command() -> None:
    said = ApprovalInput(call="1-0", decision="denied", reason="too much")
    command = command_for(Story().begun().asked("1-0").state, said, "", "http")
    assert command == ApprovalCommand(
        task=TASK, tenant="acme", by="http", call="1-0", decision="denied", reason="too much"
    )


@pytest.mark.parametrize(
    ("story", "said", "code"),
    [
        (Story().begun(), APPROVE, "not-found"),
        (Story().begun().asked("1-1"), APPROVE, "not-found"),
        (Story().begun().question("1-0"), APPROVE, "not-found"),
        (Story().begun().asked("1-0").resolved("1-0"), APPROVE, "conflict"),
        (Story().begun().asked("1-0").ended(), APPROVE, "conflict"),
        (Story().begun().ended(), APPROVE, "conflict"),
        (Story().begun().ended(), MESSAGE, "conflict"),
    ],
)
def test_what_comes_too_late_or_for_no_call_is_refused(story: Story, said: TaskInput, code: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        command_for(story.state, said, COMMAND, "http")
    assert caught.value.code == code


def test_only_what_the_journal_may_still_get_sends_a_reader_to_the_leader() -> None:
    assert not shows(Story().state, MESSAGE)
    assert shows(Story().begun().state, MESSAGE)
    assert not shows(Story().begun().state, APPROVE)
    assert shows(Story().begun().asked("1-0").state, APPROVE)
    assert shows(Story().begun().ended().state, APPROVE)


@pytest.mark.parametrize("call", [None, "1-0"])
def test_a_message_that_was_carried_out_is_known_again_also_after_the_end(call: str | None) -> None:
    story = Story().begun().question("1-0").received(COMMAND, call=call).ended()
    assert was_carried_out(story.state, MESSAGE, COMMAND)
    assert not was_carried_out(story.state, MESSAGE, input_message_id(TASK, "other"))
    for other in (MessageInput(text="Q4"), MessageInput(text="Q3", mode="redirect")):
        with pytest.raises(IdempotencyMismatch):
            was_carried_out(story.state, other, COMMAND)


def test_one_key_is_one_message_and_without_one_each_request_is_another() -> None:
    first, again, other = (message_id("acme", TASK, MESSAGE, key) for key in ("k", "k", "l"))
    assert first == again == input_message_id(TASK, derived_id("input", "acme", "k"))
    assert other != first
    assert message_id("globex", TASK, MESSAGE, "k") != first
    assert message_id("acme", TASK, MESSAGE, None) != message_id("acme", TASK, MESSAGE, None)
    assert input_request("acme", "k") == derived_id("input", "acme", "k")


def test_a_decision_is_one_for_each_call_whatever_its_key() -> None:
    for key in (None, "k"):
        assert message_id("acme", TASK, APPROVE, key) == approval_message_id(TASK, "1-0", "approved")


def test_the_longest_message_is_a_command_that_the_steward_takes() -> None:
    said = MessageInput(text="\N{GRINNING FACE}" * 100_000)
    command = command_for(Story().begun().state, said, COMMAND, "http")
    payload = encode(command)
    assert len(payload) < BODY_BYTES_MAX
    assert decode_control(payload, "control.input.acme") == command
    with pytest.raises(InvalidPayload):
        parse_task_input(encode(MessageInput(text="a" * 100_001)))
    assert decode(encode(said), MessageInput) == said

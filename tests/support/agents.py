"""Agent runs in tests: submitting them, and carrying out a person's part."""

from __future__ import annotations

from typing import Any

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.messages.control import (
    AnyCommand,
    ApprovalCommand,
    Decision,
    InputCommand,
    InputMode,
    approval_message_id,
    input_message_id,
)
from contracts.tasks import TaskRequest
from mesh.broker.connection import Connection
from mesh.journal.journal import Journal
from mesh.journal.submission import Submission
from mesh.task.state import TaskState
from tests.support.waiting import until

TENANT = "default"


class Agents:
    """Agent runs of one tenant, over a connection of the test's own."""

    def __init__(self, connection: Connection) -> None:
        self._requests = connection.requests
        self._submission = Submission(connection.requests)

    async def close(self) -> None:
        """Let what goes on in the background end."""
        await self._submission.close()

    async def submit(self, script: str, by: str | None = None, **request: Any) -> str:
        """A task of the scripted model, of whom `by` says; its id."""
        submitted = await self._submission.submit(TaskRequest(input=script, **request), TENANT, None, None, by=by)
        return submitted.task

    async def state(self, task: str) -> TaskState:
        """The task's journal as it is now, folded."""
        return (await Journal.load(self._requests, TENANT, task)).state

    async def until_status(self, task: str, status: str, seconds: float = 30) -> TaskState:
        """Wait until the task has a status; its state then."""

        async def reached() -> bool:
            return (await self.state(task)).status == status

        await until(reached, seconds)
        return await self.state(task)

    async def until_asked(self, task: str, *calls: str) -> TaskState:
        """Wait until the task waits for a person with each of these calls, one after the other asked for."""

        async def asked() -> bool:
            state = await self.state(task)
            open_now = {each.call for each in state.open_approvals} | {each.call for each in state.open_questions}
            return open_now >= set(calls)

        await until(asked)
        return await self.state(task)

    async def decide(self, task: str, call: str, decision: Decision, reason: str | None = None) -> None:
        """A person's decision on a call."""
        command = ApprovalCommand(task=task, tenant=TENANT, by="test", call=call, decision=decision, reason=reason)
        await self._command("approval", command, approval_message_id(task, call, decision))

    async def say(self, task: str, text: str, mode: InputMode = "append") -> None:
        """A message of the user."""
        message_id = input_message_id(task, new_id())
        command = InputCommand(task=task, tenant=TENANT, by="test", text=text, mode=mode, command=message_id)
        await self._command("input", command, message_id)

    async def _command(self, kind: str, command: AnyCommand, message_id: str) -> None:
        message_headers = {headers.MESSAGE_ID: message_id}
        await self._requests.publish(subjects.control(kind, TENANT), encode(command), message_headers)

"""Dead letters without anybody who gives up: journals that have them open, their records, and those of rubbish."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal.events import TaskDeadLettered, TurnCompleted
from contracts.journal.parts import StepGen, Timings, ToolCall, Usage
from contracts.messages.work import ToolWork, Work
from contracts.tasks import TaskRequest
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.journal import dead_letter_records
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.task.records import record
from tests.support.tasks import begin_journal, turn_work


@dataclass(frozen=True)
class Message:
    """A message of a work queue that is given up."""

    stream: str
    subject: str
    payload: bytes
    sequence: int = 1
    deliveries: int = 1
    stored_at: datetime = field(default_factory=now)
    headers: dict[str, str] = field(default_factory=dict)


class Letters:
    """Writes dead letters as their workers would."""

    def __init__(self, connection: Connection) -> None:
        self._requests = connection.requests

    async def of_turn(self, tenant: str = "default", code: str = "provider-overloaded", **request: Any) -> Journal:
        """A task whose first turn gave up."""
        work = replace(turn_work(tenant=tenant), request=TaskRequest(**{"input": "hello", **request}))
        journal = await begin_journal(self._requests, work)
        message = Message("TASKS", subjects.tasks(work.pool, work.priority, tenant), encode(work))
        await self._give_up(journal, work, message, code)
        return journal

    async def of_calls(
        self, tool: str, *arguments: dict[str, Any], tenant: str = "default", code: str = "tool-error"
    ) -> Journal:
        """A task whose first turn called a tool, and each of the calls gave up."""
        journal = await begin_journal(self._requests, turn_work(tenant=tenant))
        calls = [ToolCall(f"1-{index}", tool, each) for index, each in enumerate(arguments)]
        await journal.append(
            lambda stamp: TurnCompleted(
                *stamp, turn=1, text="", calls=calls, finish_reason="tool_calls", usage=Usage(), timings=Timings()
            ),
            lambda _: True,
        )
        for asked in calls:
            work = ToolWork(
                task=journal.state.task,
                tenant=tenant,
                turn=1,
                call=asked.call,
                tool=tool,
                arguments=asked.arguments,
            )
            await self._give_up(journal, work, Message("TOOLS", subjects.tools(tool), encode(work)), code)
        return journal

    async def of_rubbish(self, tenant: str = "default") -> None:
        """A message that is no work."""
        message = Message("TASKS", subjects.tasks("default", "normal", tenant), b"rubbish")
        await dead_letter_records.write_message(
            self._requests, message, ErrorInfo("malformed-message", "not JSON"), "test"
        )

    async def _give_up(self, journal: Journal, work: Work, message: Message, code: str) -> None:
        error = ErrorInfo(code, "it broke", "in its own words")
        await journal.append(
            lambda stamp: TaskDeadLettered(*stamp, step=work.step, gen=work.gen, error=error, deliveries=1),
            lambda _: True,
        )
        await project(self._requests, record(journal.state))
        await dead_letter_records.write_step(
            self._requests, message, StepGen(work.step, work.gen), journal.state, error, "test"
        )

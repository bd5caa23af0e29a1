"""Calls without a model: journals that ask for them, and their messages in TOOLS."""

from __future__ import annotations

from typing import Any

from contracts import subjects
from contracts.codec import encode
from contracts.journal.events import TurnCompleted
from contracts.journal.parts import Timings, ToolCall, Usage
from contracts.messages.work import ToolWork
from mesh.broker.connection import Connection
from mesh.journal.journal import Journal
from mesh.task.state import CallResult
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until


class Calls:
    """Calls over a connection of the test's own."""

    def __init__(self, connection: Connection, tenant: str = "default") -> None:
        self._requests = connection.requests
        self._tenant = tenant

    async def ask(self, tool: str, *arguments: dict[str, Any], approval: bool = False) -> Journal:
        """A journal whose first turn asks for calls of a tool."""
        journal = await begin_journal(self._requests, turn_work(tenant=self._tenant))
        calls = [ToolCall(f"1-{index}", tool, each, approval) for index, each in enumerate(arguments)]
        await journal.append(
            lambda stamp: TurnCompleted(
                *stamp, turn=1, text="", calls=calls, finish_reason="tool_calls", usage=Usage(), timings=Timings()
            ),
            lambda _: True,
        )
        return journal

    async def publish(self, journal: Journal, tool: str, call: str = "1-0") -> None:
        """Put a call into TOOLS. Its arguments are the journal's to say."""
        work = ToolWork(task=journal.state.task, tenant=self._tenant, turn=1, call=call, tool=tool, arguments={})
        await self._requests.publish(subjects.tools(tool), encode(work))

    async def journal(self, journal: Journal) -> Journal:
        """A journal as it is now."""
        return await Journal.load(self._requests, self._tenant, journal.state.task)

    async def run(self, tool: str, arguments: dict[str, Any], seconds: float = 30) -> CallResult:
        """Have a call run; what it ended with."""
        asked = await self.ask(tool, arguments)
        await self.publish(asked, tool)

        async def ended() -> bool:
            return "1-0" in (await self.journal(asked)).state.call_results

        await until(ended, seconds)
        return (await self.journal(asked)).state.call_results["1-0"]

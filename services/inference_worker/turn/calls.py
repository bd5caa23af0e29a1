"""Calls that a model asks for: what is decided on each when its turn is completed. Pure.

It is recorded in `turn.completed`, so that everybody who reads the journal later goes by the same decision, whatever
the settings are then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from contracts import subjects
from contracts.errors import ErrorInfo, InvalidName
from contracts.identifiers import call_id
from contracts.journal.parts import ToolCall
from contracts.records.tools import ASK_USER, CALLS_PER_TURN_MAX, ToolDeclaration, needs_approval
from contracts.tasks import ApprovalMode, TaskRequest
from inference_worker.models.chunks import RequestedCall
from mesh.task.conversation import ConversationItem
from mesh.task.state import TaskState

NO_TOOL = "invalid"
"""Stands for the name of a tool that can't be one: it would not fit into an event."""
ARGUMENTS_SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that a model may call, and the operator's own word on its approval."""

    declaration: ToolDeclaration
    approval: ApprovalMode | None = None


class Offers(Protocol):
    """Where declarations of tools are found."""

    async def offered(self, names: Sequence[str]) -> dict[str, OfferedTool]:
        """Those of the names that are declared now. Raises `BrokerUnavailable`."""
        ...


class ConversationSource(Protocol):
    """Where the conversation is found that a task goes on with."""

    async def before(self, state: TaskState) -> list[ConversationItem]:
        """The conversation of the task that this one continues; empty if it continues none."""
        ...


def decided_calls(
    turn: int, requested: Sequence[RequestedCall], tools: Mapping[str, OfferedTool], request: TaskRequest
) -> list[ToolCall]:
    """The calls as they are recorded: which need a person's approval, and which can't be carried out at all."""
    return [_decided(call_id(turn, index), call, tools, request) for index, call in enumerate(requested)]


def _decided(call: str, asked: RequestedCall, tools: Mapping[str, OfferedTool], request: TaskRequest) -> ToolCall:
    try:
        name = subjects.check_tool(asked.name)
    except InvalidName as invalid:
        return ToolCall(call, NO_TOOL, {}, error=ErrorInfo("tool-unknown", str(invalid)))
    if int(call.partition("-")[2]) >= CALLS_PER_TURN_MAX:
        message = f"a turn may ask for {CALLS_PER_TURN_MAX} calls"
        return ToolCall(call, name, {}, error=ErrorInfo("too-many-calls", message))
    if asked.arguments is None:
        message = f"not a JSON object: {asked.error or ''}"[:ARGUMENTS_SHOWN_MAX]
        return ToolCall(call, name, {}, error=ErrorInfo("tool-arguments-invalid", message))
    if name == ASK_USER:
        return _question(call, asked)
    offered = tools.get(name)
    if offered is None:
        there = ", ".join(sorted(tools)) or "none"
        why = "nobody serves the tool" if name in (request.tools or ()) else "the task has no tool"
        error = ErrorInfo("tool-unknown", f"{why} {name}; there are: {there}")
        return ToolCall(call, name, asked.arguments, error=error)
    approval = needs_approval(offered.declaration, request.approval, offered.approval)
    return ToolCall(call, name, asked.arguments, approval=approval)


def _question(call: str, asked: RequestedCall) -> ToolCall:
    arguments = asked.arguments or {}
    question = arguments.get("question")
    if not isinstance(question, str) or not question.strip():
        error = ErrorInfo("tool-arguments-invalid", "question: required, a text")
        return ToolCall(call, ASK_USER, arguments, error=error)
    return ToolCall(call, ASK_USER, arguments)

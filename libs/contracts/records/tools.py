"""Tools as the mesh knows them: what a runner declares, in the bucket `tools` under the tool's name."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contracts.fields import LaneName
from contracts.tasks import ApprovalMode

ASK_USER = "ask_user"
"""The tool by which a model asks the user. Nobody runs it: the worker asks, and the steward brings the answer."""
SPAWN_TASK = "spawn_task"
"""The tool that starts a sub-task, and whose result is the sub-task's."""
SEND_SIGNAL = "send_signal"
"""The tool that sends a signal, which may set rules off."""
PROPOSE_REPLAY = "propose_replay"
"""The tool that replays a task's dead letters, once a person has agreed."""
TOOL_TIMEOUT_SECONDS = 60.0
CALLS_PER_TURN_MAX = 64
RESULTS_BUCKET = "results"
"""The object store bucket of results that are too large for an event."""
RESULT_BYTES_MAX = 256 * 1024
"""Largest result in an event, as JSON: it must fit beside the event's other fields, and into a model's next turn."""
OBJECT_BYTES_MAX = 16 * 1024 * 1024
"""Largest result at all."""
DEPTH_MAX = 8
"""How deep sub-tasks may start sub-tasks."""


class SpawnArguments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Arguments of `spawn_task`: the sub-task's request, as far as a model may say. The rest is its parent's."""

    input: Annotated[str, Meta(min_length=1)]
    instructions: Annotated[str, Meta(min_length=1)] | None = None
    tools: Annotated[list[LaneName], Meta(max_length=64)] | None = None
    pool: LaneName | None = None
    model: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class ToolDeclaration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool. `parameters` is the JSON Schema of its arguments, `description` what a model reads.

    `idempotent`: a call may be run twice. `destructive`: it changes what can't be changed back; with the approval mode
    `destructive` a person has to agree first. `approval`: when a person has to agree, whatever the task says less.
    """

    name: LaneName
    description: Annotated[str, Meta(max_length=8_000)]
    parameters: dict[str, Any]
    timeout_seconds: Annotated[float, Meta(gt=0, le=24 * 3600)] = TOOL_TIMEOUT_SECONDS
    idempotent: bool = False
    destructive: bool = True
    approval: ApprovalMode = "destructive"


class ToolList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the tools that are served at present, by name, the operator's settings applied.

    `cursor` is null on the last page.
    """

    tools: list[ToolDeclaration]
    cursor: str | None


ASK_USER_DECLARATION = ToolDeclaration(
    name=ASK_USER,
    description="Asks the user a question, and waits for the answer, which may take long. Use it only for what you "
    "need to go on and can't find out otherwise.",
    parameters={
        "type": "object",
        "properties": {
            "question": {"type": "string", "minLength": 1, "description": "The question, as the user reads it."}
        },
        "required": ["question"],
        "additionalProperties": False,
    },
    idempotent=True,
    destructive=False,
    approval="never",
)
"""How `ask_user` is offered to a model. It is in no bucket: the mesh itself serves it."""


def needs_approval(tool: ToolDeclaration, task: ApprovalMode | None, operator: ApprovalMode | None) -> bool:
    """Whether a person has to agree to a call.

    The operator's setting for the tool outranks all; else the stricter of what the task asks for and what the tool
    declares holds. A task can so ask for more, and never for less.
    """
    modes = [operator] if operator is not None else [tool.approval, task or "never"]
    return "always" in modes or ("destructive" in modes and tool.destructive)

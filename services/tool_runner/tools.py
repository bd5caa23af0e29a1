"""The tools of this runner: one explicit registry."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from contracts.errors import TaskmeshError
from contracts.tasks import ApprovalMode

Arguments = TypeVar("Arguments", bound=msgspec.Struct)


class ToolRefused(TaskmeshError):
    """A tool's own refusal: this call can't succeed, however often it is tried, and had no effect."""

    code = "tool-refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[Arguments]):
    """A tool, and how its calls are to be treated."""

    name: str
    description: str
    """What a model reads."""
    arguments: type[Arguments]
    """What its arguments must be."""
    timeout_seconds: float
    idempotent: bool
    """Whether a call may be run twice."""
    approval: ApprovalMode
    """Whether a person has to agree first."""
    run: Callable[[Arguments], Awaitable[object]]
    """Runs one call; what it returns is encoded as JSON. Raises `ToolRefused`; anything else is tried again."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        whole = msgspec.json.schema(self.arguments)
        definitions: dict[str, Any] = whole["$defs"]
        schema: dict[str, Any] = definitions.pop(whole["$ref"].rpartition("/")[2])
        return schema | {"$defs": definitions} if definitions else schema


class AddArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two numbers."""

    a: int | float
    b: int | float


async def add(arguments: AddArguments) -> int | float:
    """The sum of two numbers; of whole numbers exactly."""
    try:
        total = arguments.a + arguments.b
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ToolRefused("the sum is too large for a number")
    return total


TOOLS: dict[str, Tool[Any]] = {
    tool.name: tool
    for tool in (
        Tool(
            name="add",
            description="Adds two numbers.",
            arguments=AddArguments,
            timeout_seconds=5.0,
            idempotent=True,
            approval="never",
            run=add,
        ),
    )
}
"""Tool name → tool. A name is part of a subject: `tools.<name>`."""

"""What a tool is to this runner: its declaration, how its arguments are read, and what runs a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from contracts.errors import TaskmeshError
from contracts.generation.schemas import components
from contracts.records.tools import TOOL_TIMEOUT_SECONDS, ToolDeclaration
from contracts.tasks import ApprovalMode
from mesh.steps.claimed_step import ClaimedStep
from mesh.tools.arguments import REASON_CHARACTERS_MAX, checker_of

Arguments = TypeVar("Arguments")
ArgumentsStruct = TypeVar("ArgumentsStruct", bound=msgspec.Struct)


class ToolRefused(TaskmeshError):
    """This call can't succeed, however often it is tried, and had no effect."""

    code = "tool-refused"


class ToolBroke(TaskmeshError):
    """This call ended without a result, and may have had its effect."""

    code = "tool-error"


class ArgumentsInvalid(ToolRefused):
    """The arguments are not what the tool's schema says."""

    code = "tool-arguments-invalid"


class _Awaited:
    """The type of `AWAITED`."""


AWAITED: Final = _Awaited()
"""What a tool returns whose call goes on elsewhere: its result is somebody else's to record."""


class Shortened(NamedTuple):
    """A result of which the event tells less than there is: `whole` is kept in the object store, however small."""

    told: Any
    whole: Any


class Report(Protocol):
    """How a tool says how far it is. It never waits, and what comes too fast is left out."""

    def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say it."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """What a tool may know of the call that it runs."""

    step: ClaimedStep
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[Arguments]):
    """A tool that this runner serves."""

    declaration: ToolDeclaration
    """What is in the bucket `tools`, the operator's settings applied."""
    read: Callable[[dict[str, Any]], Arguments]
    """Checks arguments. Raises `ArgumentsInvalid`."""
    run: Callable[[Arguments, Call], Awaitable[object]]
    """Runs one call; what it returns is encoded as JSON. Raises `ToolRefused` or `ToolBroke`; anything else counts as
    a fault of the runner, and is tried again."""


def built_in(
    name: str,
    description: str,
    arguments: type[ArgumentsStruct],
    run: Callable[[ArgumentsStruct, Call], Awaitable[object]],
    *,
    timeout_seconds: float = TOOL_TIMEOUT_SECONDS,
    approval: ApprovalMode = "never",
) -> Tool[ArgumentsStruct]:
    """A tool whose arguments are a type. Those that the runner brings along can be run twice, and destroy nothing."""

    def read(given: dict[str, Any]) -> ArgumentsStruct:
        try:
            return msgspec.convert(given, arguments)
        except msgspec.ValidationError as error:
            raise ArgumentsInvalid(str(error)[:REASON_CHARACTERS_MAX]) from None

    declaration = ToolDeclaration(
        name=name,
        description=description,
        parameters=schema_of(arguments),
        timeout_seconds=timeout_seconds,
        idempotent=True,
        destructive=False,
        approval=approval,
    )
    return Tool(declaration=declaration, read=read, run=run)


def schema_of(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a type, as one document."""
    definitions = components([arguments], "#/$defs/{name}")
    schema: dict[str, Any] = definitions.pop(arguments.__name__)
    return schema | {"$defs": definitions} if definitions else schema


def reader_of(schema: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Checks arguments against any JSON Schema. Raises `ValueError` for what is none, or needs a document from afar."""
    check = checker_of(schema)

    def read(given: dict[str, Any]) -> dict[str, Any]:
        reason = check(given)
        if reason is not None:
            raise ArgumentsInvalid(reason)
        return given

    return read

"""One tool call: from the claim to `tool.completed` or `tool.failed`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import structlog

from contracts import events
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.events import Timings
from contracts.work import ToolWork, Work
from mesh.decisions import StepFailed
from mesh.fold import TaskState
from mesh.work import ClaimedStep
from tool_runner.tools import Tool, ToolRefused

log = structlog.get_logger("tool_runner.handler")

RESULT_BYTES_MAX = 256 * 1024
"""Largest result as encoded JSON: it must fit into an event, and into the next turn of a model."""

Outcome = Literal["failed", "unknown"]


class CallFailed(Exception):
    """A call that ends without a result. No crash: the model, or a person, decides what follows."""

    def __init__(self, code: str, message: str, outcome: Outcome = "failed") -> None:
        super().__init__(message)
        self.error = ErrorInfo(code, message)
        self.outcome: Outcome = outcome


class CallHandler:
    """Runs calls of the tools that it is given."""

    def __init__(self, tools: Mapping[str, Tool[Any]]) -> None:
        self._tools = tools

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Nothing: the call and its tool are in every claim."""
        return {}

    async def perform(self, step: ClaimedStep) -> None:
        """Run the call, and append its result. Raises `StepFailed`."""
        work = step.work
        if not isinstance(work, ToolWork):
            raise TypeError("not a claimed call")
        started_at = asyncio.get_running_loop().time()
        try:
            result = await self._run(step, work)
        except CallFailed as failure:
            error, outcome = failure.error, failure.outcome
            await step.append(
                lambda stamp: events.ToolFailed(
                    *stamp, turn=work.turn, call=work.call, tool=work.tool, error=error, outcome=outcome
                )
            )
            return
        timings = Timings(
            queued_seconds=queued_seconds(step.state, step.claim),
            total_seconds=asyncio.get_running_loop().time() - started_at,
        )
        await step.append(
            lambda stamp: events.ToolCompleted(
                *stamp, turn=work.turn, call=work.call, tool=work.tool, result=result, timings=timings
            )
        )

    async def _run(self, step: ClaimedStep, work: ToolWork) -> object:
        tool = self._tools.get(work.tool)
        if tool is None:
            raise CallFailed("tool-unknown", f"this runner has no tool {work.tool}")
        try:
            arguments = msgspec.convert(work.arguments, tool.arguments)
        except msgspec.ValidationError as error:
            raise CallFailed("tool-arguments-invalid", str(error)) from None
        if not tool.idempotent and claimed_before(step):
            message = "an earlier attempt may have had its effect, and the tool must not run twice"
            raise CallFailed("tool-outcome-unknown", message, "unknown")
        # From here on a tool may have had its effect even if it gave no result.
        outcome: Outcome = "failed" if tool.idempotent else "unknown"
        return _as_json(await _call(tool, arguments, outcome), outcome)


async def _call(tool: Tool[Any], arguments: msgspec.Struct, outcome: Outcome) -> object:
    limit = asyncio.timeout(tool.timeout_seconds)
    try:
        async with limit:
            return await tool.run(arguments)
    except ToolRefused as error:
        raise CallFailed(error.code, str(error)) from None
    except StepFailed:
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise CallFailed("tool-timeout", f"no result within {tool.timeout_seconds:g} s", outcome) from None
        log.exception("tool.broke", tool=tool.name)
        raise StepFailed("tool-error", f"{type(error).__name__}: {error}", retryable=True) from error


def _as_json(result: object, outcome: Outcome) -> object:
    """The result as whoever reads the event will see it."""
    try:
        payload = encode(result)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise CallFailed("result-invalid", f"not representable as JSON: {error}", outcome) from None
    if len(payload) > RESULT_BYTES_MAX:
        message = f"{len(payload)} bytes as JSON are more than {RESULT_BYTES_MAX}"
        raise CallFailed("result-too-large", message, outcome)
    return msgspec.json.decode(payload)


def claimed_before(step: ClaimedStep) -> bool:
    """Whether an earlier claim of the same (step, gen) is in the journal: the call may have been run then."""
    return step.state.claim_counts.get((step.work.step, step.work.gen), 0) > 1


def queued_seconds(state: TaskState, claim: events.StepClaimed) -> float | None:
    """Seconds from the turn that asked for the call to its claim."""
    completed = state.turn(claim.turn).completed
    return max(0.0, (claim.time - completed.time).total_seconds()) if completed else None

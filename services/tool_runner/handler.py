"""One tool call: from the claim to `tool.completed` or `tool.failed`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import structlog

from contracts.errors import ErrorInfo, TaskmeshError
from contracts.journal import events
from contracts.journal.parts import Timings, ToolCall
from contracts.messages.work import ToolWork, Work
from mesh.errors import StepLost
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.failures import StepFailed
from mesh.task.state import TaskState
from mesh.tools.arguments import REASON_CHARACTERS_MAX
from tool_runner.progress import Progress, Reported
from tool_runner.results import Recorded, Store, recorded
from tool_runner.tools.tool import AWAITED, Call, Tool, ToolBroke, ToolRefused

log = structlog.get_logger("tool_runner.handler")

Outcome = Literal["failed", "unknown"]


class CallFailed(Exception):
    """A call that ends without a result. No crash: the model, or a person, decides what follows."""

    def __init__(self, code: str, message: str, outcome: Outcome = "failed") -> None:
        super().__init__(message)
        self.error = ErrorInfo(code, message[:REASON_CHARACTERS_MAX].encode("utf-8", "replace").decode())
        self.outcome: Outcome = outcome


class CallHandler:
    """Runs calls of the tools that it is given; others may be added to the mapping later."""

    def __init__(self, tools: Mapping[str, Tool[Any]], store: Store) -> None:
        self._tools = tools
        self._store = store

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Nothing: the call and its tool are in every claim."""
        return {}

    async def perform(self, step: ClaimedStep) -> None:
        """Run the call, and append its result, if it is not somebody else's to append. Raises `StepFailed`."""
        work = step.work
        if not isinstance(work, ToolWork):
            raise TypeError("not a claimed call")
        started_at = asyncio.get_running_loop().time()
        try:
            async with Progress(_appending(step, work)) as progress:
                result = await self._run(step, work, progress)
        except CallFailed as failure:
            error, outcome = failure.error, failure.outcome
            await step.append(
                lambda stamp: events.ToolFailed(
                    *stamp, turn=work.turn, call=work.call, tool=work.tool, error=error, outcome=outcome
                )
            )
            return
        if result is None:
            return
        timings = Timings(
            queued_seconds=queued_seconds(step.state, step.claim),
            total_seconds=asyncio.get_running_loop().time() - started_at,
        )
        await step.append(
            lambda stamp: events.ToolCompleted(
                *stamp,
                turn=work.turn,
                call=work.call,
                tool=work.tool,
                result=result.result,
                object=result.object,
                timings=timings,
            )
        )

    async def _run(self, step: ClaimedStep, work: ToolWork, progress: Progress) -> Recorded | None:
        """The result; None if it is somebody else's to record."""
        asked = permitted(step.state, work)
        tool = self._tools.get(work.tool)
        if tool is None:
            raise CallFailed("tool-unknown", f"this runner has no tool {work.tool}")
        try:
            # The journal's arguments: the message is anybody's who may publish.
            arguments = tool.read(asked.arguments)
        except ToolRefused as error:
            raise CallFailed(error.code, str(error)) from None
        idempotent = tool.declaration.idempotent
        if not idempotent and claimed_before(step):
            message = "an earlier attempt may have had its effect, and the tool must not run twice"
            raise CallFailed("tool-outcome-unknown", message, "unknown")
        # From here on a tool may have had its effect even if it gave no result.
        outcome: Outcome = "failed" if idempotent else "unknown"
        try:
            returned = await _run_in_time(tool, arguments, Call(step, progress.report), outcome)
            return None if returned is AWAITED else await recorded(returned, step.claim, self._store, step.fitting)
        except ToolRefused as error:
            raise CallFailed(error.code, str(error)) from None
        except ToolBroke as error:
            raise CallFailed(error.code, str(error), outcome) from None


def permitted(state: TaskState, work: ToolWork) -> ToolCall:
    """What the journal asks for under the message's call. Raises `CallFailed` if it is not to be run."""
    asked = state.asked_for(work.call)
    if asked is None or asked.tool != work.tool:
        raise CallFailed("call-unknown", f"the journal asks for no call {work.call} of {work.tool}")
    resolution = state.resolutions.get(work.call)
    if asked.approval and (resolution is None or resolution.decision != "approved"):
        raise CallFailed("approval-missing", "nobody has agreed to this call")
    return asked


async def _run_in_time(tool: Tool[Any], arguments: Any, call: Call, outcome: Outcome) -> object:
    timeout_seconds = tool.declaration.timeout_seconds
    limit = asyncio.timeout(timeout_seconds)
    try:
        async with limit:
            return await tool.run(arguments, call)
    except (ToolRefused, ToolBroke, StepFailed, StepLost):
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise CallFailed("tool-timeout", f"no result within {timeout_seconds:g} s", outcome) from None
        if isinstance(error, TaskmeshError) and error.retryable:
            raise
        log.exception("tool.broke", tool=tool.declaration.name)
        raise StepFailed("tool-error", f"{type(error).__name__}: {error}", retryable=True) from error


def _appending(step: ClaimedStep, work: ToolWork) -> Any:
    async def append(said: Reported) -> None:
        await step.append(
            lambda stamp: events.ToolProgress(*stamp, turn=work.turn, call=work.call, tool=work.tool, **said._asdict())
        )

    return append


def claimed_before(step: ClaimedStep) -> bool:
    """Whether an earlier claim of the same (step, gen) is in the journal: the call may have been run then."""
    return step.state.claim_counts.get((step.work.step, step.work.gen), 0) > 1


def queued_seconds(state: TaskState, claim: events.StepClaimed) -> float | None:
    """Seconds from the turn that asked for the call to its claim."""
    completed = state.turn(claim.turn).completed
    return max(0.0, (claim.time - completed.time).total_seconds()) if completed else None

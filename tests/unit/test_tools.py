"""Tools, and one call of a tool: the event that each way it can end leaves in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from contracts import events, subjects
from contracts.codec import encode
from contracts.streams import BUILT_IN_TOOLS
from mesh.decisions import StepFailed
from mesh.errors import StepLost
from tests.unit.journals import FoldedStep, HandMadeJournal, tool_work
from tool_runner.handler import RESULT_BYTES_MAX, CallHandler
from tool_runner.tools import TOOLS, AddArguments, Tool, ToolRefused, add

# The registry


def test_what_is_declared_to_come_along_is_what_the_registry_holds() -> None:
    assert set(TOOLS) == set(BUILT_IN_TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_a_name_that_fits_a_subject_and_a_schema(name: str) -> None:
    tool = TOOLS[name]
    assert tool.name == name
    assert subjects.tools(name) == f"tools.{name}"
    assert tool.description
    assert tool.timeout_seconds > 0
    assert tool.schema["type"] == "object"
    assert encode(tool.schema)


def test_the_schema_is_one_document() -> None:
    assert TOOLS["add"].schema == {
        "title": "AddArguments",
        "description": "Two numbers.",
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
            "b": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [(1, 2, 3), (1.5, 2, 3.5), (-1, 1, 0), (2**70, 1, 2**70 + 1), (0.1, 0.2, 0.1 + 0.2)],
)
async def test_add(a: float, b: float, total: float) -> None:
    result = await add(AddArguments(a, b))
    assert result == total
    assert type(result) is type(total)


@pytest.mark.parametrize(("a", "b"), [(1e308, 1e308), (-1e308, -1e308), (10**400, 0.5)])
async def test_add_refuses_what_is_no_number(a: float, b: float) -> None:
    with pytest.raises(ToolRefused):
        await add(AddArguments(a, b))


# Calls


def claimed_call(
    journal: HandMadeJournal | None = None,
    *,
    delivery: int = 1,
    tool: str = "add",
    arguments: dict[str, Any] | None = None,
) -> FoldedStep:
    """Call 1-0, claimed: in a new journal, or anew in one that is there."""
    if journal is None:
        journal = HandMadeJournal()
        journal.queued()
        journal.claimed()
        journal.turn_completed(calls=1)
    return FoldedStep(journal, tool_work(tool=tool, arguments=arguments), journal.claimed("1-0", delivery=delivery))


def tools_with(
    run: Callable[[AddArguments], Awaitable[object]], *, idempotent: bool = True, timeout_seconds: float = 60.0
) -> dict[str, Tool[Any]]:
    """The tool `add`, but it does this."""
    return {"add": replace(TOOLS["add"], run=run, idempotent=idempotent, timeout_seconds=timeout_seconds)}


def last_event(step: FoldedStep) -> Any:
    return step.journal.events[-1]


async def returns_three(_: AddArguments) -> object:
    return 3


async def hangs(_: AddArguments) -> object:
    return await asyncio.Event().wait()


async def test_a_call_is_completed_with_its_result() -> None:
    step = claimed_call()
    handler = CallHandler(TOOLS)
    assert handler.describe_claim(step.state, step.work) == {}
    await handler.perform(step)
    completed = last_event(step)
    assert isinstance(completed, events.ToolCompleted)
    assert (completed.turn, completed.call, completed.tool, completed.result) == (1, "1-0", "add", 3)
    assert completed.timings.queued_seconds == 1.0
    assert completed.timings.total_seconds is not None
    assert step.state.has_result("1-0")


class Point(msgspec.Struct):
    x: int


@pytest.mark.parametrize(
    ("returned", "result"), [(None, None), ([1, "ü"], [1, "ü"]), (Point(1), {"x": 1}), ({1: 2}, {"1": 2})]
)
async def test_the_recorded_result_is_what_a_reader_reads(returned: object, result: object) -> None:
    async def run(_: AddArguments) -> object:
        return returned

    step = claimed_call()
    await CallHandler(tools_with(run)).perform(step)
    assert last_event(step).result == result


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("subtract", {"a": 1, "b": 2}, "tool-unknown"),
        ("add", {}, "tool-arguments-invalid"),
        ("add", {"a": 1, "b": "2"}, "tool-arguments-invalid"),
        ("add", {"a": 1, "b": True}, "tool-arguments-invalid"),
        ("add", {"a": 1, "b": 2, "c": 3}, "tool-arguments-invalid"),
        ("add", {"a": 1e308, "b": 1e308}, "tool-refused"),
    ],
)
async def test_a_call_that_cannot_succeed_is_failed_and_no_crash(
    tool: str, arguments: dict[str, Any], code: str
) -> None:
    step = claimed_call(tool=tool, arguments=arguments)
    await CallHandler(TOOLS).perform(step)
    failed = last_event(step)
    assert isinstance(failed, events.ToolFailed)
    assert (failed.turn, failed.call, failed.tool) == (1, "1-0", tool)
    assert (failed.error.code, failed.outcome) == (code, "failed")
    assert step.state.terminal is None


def big_text(size: int) -> Callable[[AddArguments], Awaitable[object]]:
    async def run(_: AddArguments) -> object:
        return "x" * (size - 2)

    return run


async def gives_an_object(_: AddArguments) -> object:
    return object()


async def gives_half_a_surrogate_pair(_: AddArguments) -> object:
    return "\ud800"


@pytest.mark.parametrize(
    ("run", "timeout_seconds", "code"),
    [
        (hangs, 0.01, "tool-timeout"),
        (big_text(RESULT_BYTES_MAX + 1), 60, "result-too-large"),
        (gives_an_object, 60, "result-invalid"),
        (gives_half_a_surrogate_pair, 60, "result-invalid"),
    ],
)
@pytest.mark.parametrize(("idempotent", "outcome"), [(True, "failed"), (False, "unknown")])
async def test_a_call_that_ran_without_a_result_may_have_had_its_effect(
    run: Callable[[AddArguments], Awaitable[object]], timeout_seconds: float, code: str, idempotent: bool, outcome: str
) -> None:
    step = claimed_call()
    await CallHandler(tools_with(run, idempotent=idempotent, timeout_seconds=timeout_seconds)).perform(step)
    failed = last_event(step)
    assert isinstance(failed, events.ToolFailed)
    assert (failed.error.code, failed.outcome) == (code, outcome)


async def test_a_result_that_just_fits_is_recorded() -> None:
    step = claimed_call()
    await CallHandler(tools_with(big_text(RESULT_BYTES_MAX))).perform(step)
    assert len(encode(last_event(step).result)) == RESULT_BYTES_MAX


@pytest.mark.parametrize("error", [RuntimeError("no network"), TimeoutError("the other side's")])
async def test_a_tool_that_raises_is_tried_again(error: Exception) -> None:
    async def run(_: AddArguments) -> object:
        raise error

    step = claimed_call()
    with pytest.raises(StepFailed) as caught:
        await CallHandler(tools_with(run)).perform(step)
    assert (caught.value.code, caught.value.retryable, caught.value.terminal) == ("tool-error", True, False)
    assert step.journal.types()[-1] == "step.claimed"


async def test_a_tool_may_say_itself_how_its_failure_counts() -> None:
    failure = StepFailed("rate-limited", "later", retryable=True, retry_after_seconds=3)

    async def run(_: AddArguments) -> object:
        raise failure

    with pytest.raises(StepFailed) as caught:
        await CallHandler(tools_with(run)).perform(claimed_call())
    assert caught.value is failure


@pytest.mark.parametrize(("idempotent", "runs"), [(True, 1), (False, 0)])
async def test_a_tool_that_is_not_idempotent_is_not_run_again(idempotent: bool, runs: int) -> None:
    ran = 0

    async def run(_: AddArguments) -> object:
        nonlocal ran
        ran += 1
        return 3

    earlier = claimed_call()
    step = claimed_call(earlier.journal, delivery=2)
    await CallHandler(tools_with(run, idempotent=idempotent)).perform(step)
    assert ran == runs
    if not idempotent:
        failed = last_event(step)
        assert isinstance(failed, events.ToolFailed)
        assert (failed.error.code, failed.outcome) == ("tool-outcome-unknown", "unknown")


async def test_a_failed_try_of_a_tool_that_is_not_idempotent_was_its_only_one() -> None:
    journal = claimed_call().journal
    journal.retrying(1, step="1-0")
    step = claimed_call(journal)
    await CallHandler(tools_with(returns_three, idempotent=False)).perform(step)
    assert last_event(step).outcome == "unknown"


async def test_a_tool_that_is_not_idempotent_runs_the_first_time() -> None:
    step = claimed_call()
    await CallHandler(tools_with(returns_three, idempotent=False)).perform(step)
    assert last_event(step).result == 3


async def test_a_call_that_is_lost_records_nothing() -> None:
    step = claimed_call()
    step.journal.claimed("1-0", delivery=2)
    with pytest.raises(StepLost):
        await CallHandler(TOOLS).perform(step)
    assert step.journal.types()[-1] == "step.claimed"

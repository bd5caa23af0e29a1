"""Calls of tools: the event that each way a call can end leaves in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from contracts.codec import encode
from contracts.journal import events
from contracts.journal.parts import ObjectReference, Timings, ToolCall, Usage
from contracts.records.tools import OBJECT_BYTES_MAX, RESULT_BYTES_MAX
from contracts.result_objects import ResultName
from mesh.errors import BrokerError, StepLost
from mesh.task.failures import StepFailed
from tests.unit.journals import FoldedStep, HandMadeJournal, tool_work
from tool_runner.handler import CallHandler
from tool_runner.result_store import OverQuota
from tool_runner.results import BEGINNING_BYTES
from tool_runner.tools.arithmetic import ADD, AddArguments
from tool_runner.tools.tool import AWAITED, Call, Tool, ToolBroke, built_in

Run = Callable[[AddArguments, Call], Awaitable[object]]
TOOLS: dict[str, Tool[Any]] = {"add": ADD}


class Stored:
    """An object store of a test's own."""

    def __init__(self, error: Exception | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self._error = error

    async def __call__(self, name: ResultName, payload: bytes) -> ObjectReference:
        if self._error is not None:
            raise self._error
        self.objects[str(name)] = payload
        return ObjectReference("results", str(name), len(payload), "SHA-256=")


def handler(tools: dict[str, Tool[Any]] | None = None, store: Stored | None = None) -> CallHandler:
    return CallHandler(TOOLS if tools is None else tools, store or Stored())


def claimed_call(
    journal: HandMadeJournal | None = None,
    *,
    delivery: int = 1,
    tool: str = "add",
    arguments: dict[str, Any] | None = None,
    approval: bool = False,
) -> FoldedStep:
    """Call 1-0, claimed: in a new journal that asks for it, or anew in one that is there."""
    if journal is None:
        journal = HandMadeJournal()
        journal.queued()
        journal.claimed()
        asked = ToolCall("1-0", tool, {"a": 1, "b": 2} if arguments is None else arguments, approval)
        journal.add(
            events.TurnCompleted,
            turn=1,
            text="",
            calls=[asked],
            finish_reason="tool_calls",
            usage=Usage(),
            timings=Timings(),
        )
    return FoldedStep(journal, tool_work(tool=tool), journal.claimed("1-0", delivery=delivery))


def tools_with(run: Run, *, idempotent: bool = True, timeout_seconds: float = 60.0) -> dict[str, Tool[Any]]:
    """The tool `add`, but it does this."""
    tool = built_in("add", "Does it.", AddArguments, run, timeout_seconds=timeout_seconds)
    declared = msgspec.structs.replace(tool.declaration, idempotent=idempotent)
    return {"add": Tool(declaration=declared, read=tool.read, run=tool.run)}


def last_event(step: FoldedStep) -> Any:
    return step.journal.events[-1]


async def returns_three(_: AddArguments, call: Call) -> object:
    return 3


async def hangs(_: AddArguments, call: Call) -> object:
    return await asyncio.Event().wait()


async def test_a_call_is_completed_with_its_result() -> None:
    step = claimed_call()
    assert handler().describe_claim(step.state, step.work) == {}
    await handler().perform(step)
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
    async def run(_: AddArguments, call: Call) -> object:
        return returned

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
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
    await handler().perform(step)
    failed = last_event(step)
    assert isinstance(failed, events.ToolFailed)
    assert (failed.turn, failed.call, failed.tool) == (1, "1-0", tool)
    assert (failed.error.code, failed.outcome) == (code, "failed")
    assert step.state.terminal is None


def big_text(size: int) -> Run:
    async def run(_: AddArguments, call: Call) -> object:
        return "x" * (size - 2)

    return run


async def breaks(_: AddArguments, call: Call) -> object:
    raise ToolBroke("half way")


async def gives_an_object(_: AddArguments, call: Call) -> object:
    return object()


async def gives_half_a_surrogate_pair(_: AddArguments, call: Call) -> object:
    return "\ud800"


@pytest.mark.parametrize(
    ("run", "timeout_seconds", "code"),
    [
        (hangs, 0.01, "tool-timeout"),
        (big_text(OBJECT_BYTES_MAX + 1), 60, "result-too-large"),
        (breaks, 60, "tool-error"),
        (gives_an_object, 60, "result-invalid"),
        (gives_half_a_surrogate_pair, 60, "result-invalid"),
    ],
)
@pytest.mark.parametrize(("idempotent", "outcome"), [(True, "failed"), (False, "unknown")])
async def test_a_call_that_ran_without_a_result_may_have_had_its_effect(
    run: Run, timeout_seconds: float, code: str, idempotent: bool, outcome: str
) -> None:
    step = claimed_call()
    await handler(tools_with(run, idempotent=idempotent, timeout_seconds=timeout_seconds)).perform(step)
    failed = last_event(step)
    assert isinstance(failed, events.ToolFailed)
    assert (failed.error.code, failed.outcome) == (code, outcome)


async def test_a_result_that_just_fits_is_recorded() -> None:
    step = claimed_call()
    await handler(tools_with(big_text(RESULT_BYTES_MAX))).perform(step)
    assert len(encode(last_event(step).result)) == RESULT_BYTES_MAX


@pytest.mark.parametrize("error", [RuntimeError("no network"), TimeoutError("the other side's")])
async def test_a_tool_that_raises_is_tried_again(error: Exception) -> None:
    async def run(_: AddArguments, call: Call) -> object:
        raise error

    step = claimed_call()
    with pytest.raises(StepFailed) as caught:
        await handler(tools_with(run)).perform(step)
    assert (caught.value.code, caught.value.retryable, caught.value.terminal) == ("tool-error", True, False)
    assert step.journal.types()[-1] == "step.claimed"


async def test_a_tool_may_say_itself_how_its_failure_counts() -> None:
    failure = StepFailed("rate-limited", "later", retryable=True, retry_after_seconds=3)

    async def run(_: AddArguments, call: Call) -> object:
        raise failure

    with pytest.raises(StepFailed) as caught:
        await handler(tools_with(run)).perform(claimed_call())
    assert caught.value is failure


@pytest.mark.parametrize(("idempotent", "runs"), [(True, 1), (False, 0)])
async def test_a_tool_that_is_not_idempotent_is_not_run_again(idempotent: bool, runs: int) -> None:
    ran = 0

    async def run(_: AddArguments, call: Call) -> object:
        nonlocal ran
        ran += 1
        return 3

    earlier = claimed_call()
    step = claimed_call(earlier.journal, delivery=2)
    await handler(tools_with(run, idempotent=idempotent)).perform(step)
    assert ran == runs
    if not idempotent:
        failed = last_event(step)
        assert isinstance(failed, events.ToolFailed)
        assert (failed.error.code, failed.outcome) == ("tool-outcome-unknown", "unknown")


async def test_a_failed_try_of_a_tool_that_is_not_idempotent_was_its_only_one() -> None:
    journal = claimed_call().journal
    journal.retrying(1, step="1-0")
    step = claimed_call(journal)
    await handler(tools_with(returns_three, idempotent=False)).perform(step)
    assert last_event(step).outcome == "unknown"


async def test_a_tool_that_is_not_idempotent_runs_the_first_time() -> None:
    step = claimed_call()
    await handler(tools_with(returns_three, idempotent=False)).perform(step)
    assert last_event(step).result == 3


async def test_a_call_that_is_lost_records_nothing() -> None:
    step = claimed_call()
    step.journal.claimed("1-0", delivery=2)
    with pytest.raises(StepLost):
        await handler().perform(step)
    assert step.journal.types()[-1] == "step.claimed"


# What the journal says, whatever the message says


async def test_the_journals_arguments_count_and_not_the_messages() -> None:
    step = claimed_call(arguments={"a": 20, "b": 22})
    assert step.work.arguments == {"a": 1, "b": 2}  # type: ignore[union-attr]
    await handler().perform(step)
    assert last_event(step).result == 42


async def test_a_message_that_names_another_tool_than_the_journal_runs_nothing() -> None:
    step = claimed_call()
    step.work = tool_work(tool="subtract")
    await handler({**TOOLS, "subtract": ADD}).perform(step)
    failed = last_event(step)
    assert isinstance(failed, events.ToolFailed)
    assert failed.error.code == "call-unknown"


@pytest.mark.parametrize("decision", [None, "denied", "expired", "approved"])
async def test_a_call_that_needs_an_approval_is_run_only_with_one(decision: str | None) -> None:
    step = claimed_call(approval=True)
    if decision is not None:
        step.journal.add(events.ApprovalResolved, call="1-0", decision=decision, by="ops")
    await handler().perform(step)
    ended = last_event(step)
    if decision == "approved":
        assert ended.result == 3
    else:
        assert isinstance(ended, events.ToolFailed)
        assert (ended.error.code, ended.outcome) == ("approval-missing", "failed")


async def test_a_call_that_goes_on_elsewhere_leaves_no_result() -> None:
    async def run(_: AddArguments, call: Call) -> object:
        await call.step.append(lambda stamp: events.SubtaskStarted(*stamp, call="1-0", child="0" * 26))
        return AWAITED

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
    assert step.journal.types()[-1] == "subtask.started"
    assert not step.state.has_result("1-0")


# Large results


async def test_a_large_result_lies_in_the_object_store_and_its_beginning_in_the_event() -> None:
    store = Stored()
    step = claimed_call()
    await handler(tools_with(big_text(RESULT_BYTES_MAX + 1)), store).perform(step)
    completed = last_event(step)
    ((name, payload),) = store.objects.items()
    assert name == f"acme.{step.state.task}.1-0.{step.claim.id}"
    assert completed.object == ObjectReference("results", name, RESULT_BYTES_MAX + 1, "SHA-256=")
    assert len(payload) == RESULT_BYTES_MAX + 1
    assert payload.startswith(completed.result.encode())
    assert len(completed.result) == BEGINNING_BYTES


async def test_the_beginning_ends_between_two_characters() -> None:
    async def run(_: AddArguments, call: Call) -> object:
        return "€" * RESULT_BYTES_MAX

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
    beginning = last_event(step).result
    assert set(beginning[1:]) == {"€"}
    assert BEGINNING_BYTES - 3 < len(beginning.encode()) <= BEGINNING_BYTES


async def test_a_result_that_the_object_store_does_not_take_is_a_failed_call() -> None:
    step = claimed_call()
    store = Stored(BrokerError(10047, "insufficient storage"))
    await handler(tools_with(big_text(RESULT_BYTES_MAX + 1)), store).perform(step)
    assert last_event(step).error.code == "result-not-stored"


async def test_a_result_beyond_its_tenants_share_is_a_failed_call_that_says_so() -> None:
    step = claimed_call()
    store = Stored(OverQuota("the results of tenant acme take 9 of the 10 bytes that they may"))
    await handler(tools_with(big_text(RESULT_BYTES_MAX + 1)), store).perform(step)
    error = last_event(step).error
    assert (error.code, error.message) == (
        "result-quota",
        "the results of tenant acme take 9 of the 10 bytes that they may",
    )


# Progress


async def test_progress_is_an_event_before_the_result() -> None:
    async def run(_: AddArguments, call: Call) -> object:
        call.report(1, 3, "a third")
        while call.step.state.next_n < 5:  # noqa: ASYNC110 - until it is written
            await asyncio.sleep(0)
        return 3

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
    assert step.journal.types()[-2:] == ["tool.progress", "tool.completed"]
    said = step.journal.events[-2]
    assert isinstance(said, events.ToolProgress)
    assert (said.call, said.tool, said.progress, said.total, said.message) == ("1-0", "add", 1, 3, "a third")


async def test_a_storm_of_reports_is_few_events_and_never_two_appends_at_once() -> None:
    async def run(_: AddArguments, call: Call) -> object:
        for number in range(1000):
            call.report(number)
            await asyncio.sleep(0)
        return 3

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
    assert step.journal.types().count("tool.progress") < 100
    assert step.journal.types()[-1] == "tool.completed"


@pytest.mark.parametrize("progress", [float("nan"), float("inf")])
async def test_what_is_no_number_is_not_reported(progress: float) -> None:
    async def run(_: AddArguments, call: Call) -> object:
        call.report(progress)
        await asyncio.sleep(0.01)
        return 3

    step = claimed_call()
    await handler(tools_with(run)).perform(step)
    assert "tool.progress" not in step.journal.types()


async def test_a_call_that_is_lost_while_it_reports_ends_as_lost() -> None:
    async def run(_: AddArguments, call: Call) -> object:
        step.journal.claimed("1-0", delivery=2)
        call.report(1)
        await asyncio.sleep(0.01)
        return 3

    step = claimed_call()
    with pytest.raises(StepLost):
        await handler(tools_with(run)).perform(step)
    assert "tool.progress" not in step.journal.types()

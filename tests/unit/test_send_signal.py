"""The tool `send_signal`: what a task may send, and what goes with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from contracts import headers
from contracts.codec import decode
from contracts.journal.events import TaskQueued, ToolCompleted, ToolFailed, TurnCompleted
from contracts.journal.parts import Timings, ToolCall, Trigger, Usage
from contracts.tasks import TaskRequest
from contracts.triggers.rules import SIGNAL_BYTES_MAX
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.errors import BrokerError
from tests.unit.journals import START, FoldedStep, HandMadeJournal, tool_work
from tool_runner.handler import CallHandler
from tool_runner.tools.registry import built_in_tools

UNUSED: Any = None
SETTINGS = Settings(configuration=parse_configuration(b"[tools.send_signal]\nsubjects = ['stock.*', 'orders.>']"))


class PublishingStep(FoldedStep):
    """A step that keeps what it publishes."""

    published: list[tuple[str, Any, dict[str, str]]]
    refusal: BrokerError | None = None

    async def publish(self, subject: str, payload: bytes, message_headers: dict[str, str]) -> None:
        """Keep it."""
        if self.refusal is not None:
            raise self.refusal
        self.published.append((subject, decode(payload, dict), message_headers))


def step_of(arguments: dict[str, Any], trigger: Trigger | None = None) -> PublishingStep:
    """A claimed call of the tool, of a task that a rule has started, or nobody's."""
    journal = HandMadeJournal()
    request = TaskRequest(input="x", tools=["send_signal"])
    journal.add(
        TaskQueued,
        request=request,
        pool="default",
        priority="normal",
        fingerprint="",
        accepted_at=START,
        trigger=trigger,
    )
    journal.claimed()
    calls = [ToolCall("1-0", "send_signal", arguments)]
    journal.add(
        TurnCompleted, turn=1, text="", calls=calls, finish_reason="tool_calls", usage=Usage(), timings=Timings()
    )
    step = PublishingStep(journal, tool_work(tool="send_signal"), journal.claimed("1-0"))
    step.published = []
    return step


async def ended(step: PublishingStep, settings: Settings = SETTINGS) -> ToolCompleted | ToolFailed:
    """Run the call; how it ended."""
    await CallHandler(built_in_tools(settings, UNUSED), UNUSED).perform(step)
    event = step.journal.events[-1]
    assert isinstance(event, ToolCompleted | ToolFailed)
    return event


async def test_a_signal_goes_out_under_the_calls_message_id() -> None:
    step = step_of({"subject": "stock.low", "payload": {"sku": "a"}})
    end = await ended(step)
    assert isinstance(end, ToolCompleted)
    tenant, task = step.state.tenant, step.state.task
    assert msgspec.to_builtins(end.result) == {"subject": f"signals.{tenant}.stock.low"}
    assert step.published == [
        (f"signals.{tenant}.stock.low", {"sku": "a"}, {headers.MESSAGE_ID: f"{task}.1-0.g0.signal"})
    ]


async def test_a_rules_task_sends_its_chain_along() -> None:
    step = step_of({"subject": "orders.a.b"}, Trigger(rule="second", signal=5, chain=["first", "second"]))
    assert isinstance(await ended(step), ToolCompleted)
    [(_, payload, sent)] = step.published
    assert (payload, sent[headers.TRIGGER_CHAIN]) == ({}, "first,second")


@pytest.mark.parametrize(
    ("arguments", "sends", "settings", "code"),
    [
        ({"subject": "stock.a.b"}, None, SETTINGS, "tool-refused"),
        ({"subject": "stock.low"}, None, Settings(), "tool-refused"),
        ({"subject": "stock.low"}, ["orders.*"], SETTINGS, "tool-refused"),
        ({"subject": "stock.low"}, [], SETTINGS, "tool-refused"),
        ({"subject": "stock.low", "payload": {"x": "x" * SIGNAL_BYTES_MAX}}, None, SETTINGS, "tool-refused"),
        ({"subject": "stock.*"}, None, SETTINGS, "tool-arguments-invalid"),
        ({"subject": "$JS.API.x"}, None, SETTINGS, "tool-arguments-invalid"),
        ({"subject": "stock.low", "payload": 5}, None, SETTINGS, "tool-arguments-invalid"),
    ],
)
async def test_what_may_not_be_sent_is_not(
    arguments: dict[str, Any], sends: list[str] | None, settings: Settings, code: str
) -> None:
    step = step_of(arguments, Trigger(rule="r", signal=5, chain=["r"], sends=sends))
    end = await ended(step, settings)
    assert isinstance(end, ToolFailed)
    assert end.error.code == code
    assert step.published == []


async def test_a_full_stream_fails_the_call_alone() -> None:
    step = step_of({"subject": "stock.low"})
    step.refusal = BrokerError(10077, "maximum messages exceeded")
    end = await ended(step)
    assert isinstance(end, ToolFailed)
    assert (end.error.code, end.outcome) == ("tool-error", "failed")

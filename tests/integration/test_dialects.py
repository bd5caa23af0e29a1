"""What model servers send, as data: each file in `dialects` is a stream, and what the journal must hold of it.

The server is a real one on loopback, the provider and the turn's handler are the worker's own. See `dialects/README.md`
for what is in a file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.journal import events
from contracts.records.tools import ToolDeclaration
from contracts.tasks import TaskRequest
from inference_worker.dialects import exchange
from inference_worker.models.candidates import Source
from inference_worker.providers import PoolProvider
from mesh.task.failures import StepFailed
from tests.support import anthropic_provider, openai_provider
from tests.support.model_server import Behaviour, Exchange, ModelServer
from tests.support.patience import within
from tests.unit.journals import FoldedStep
from tests.unit.played import Declared, claimed_step, last, turn_handler

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).with_name("dialects")
CASES = sorted(FOLDER.glob("*/*.json"))
CONNECTED: dict[str, Callable[..., AbstractAsyncContextManager[tuple[Source, ModelServer]]]] = {
    "openai": openai_provider.connected,
    "anthropic": anthropic_provider.connected,
}
USAGE_SECONDS = 0.05
PAUSE_SECONDS = 4 * USAGE_SECONDS
TOOLS = ("add", "now")


def sending(sends: list[Any]) -> Behaviour:
    """A server that answers with these lines, pauses and breaks."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin()
        for each in sends:
            match each:
                case "pause":
                    await asyncio.sleep(PAUSE_SECONDS)
                case "break":
                    exchange.drop()
                    return
                case "hold":
                    await exchange.gone.wait()
                    return
                case {"data": chunk}:
                    await exchange.send(b"data: %b\n\n" % json.dumps(chunk).encode())
                case str(line):
                    await exchange.send(f"{line}\n\n".encode("utf-8", "surrogateescape"))
        await exchange.end()

    return behave


async def journal_of(kind: str, case: dict[str, Any]) -> dict[str, Any]:
    """What the journal holds of a turn, in the form of a case."""
    tools = Declared(*(ToolDeclaration(name=name, description="", parameters={}, destructive=False) for name in TOOLS))
    step = claimed_step(request=TaskRequest(input="hi", tools=list(TOOLS)))
    async with CONNECTED[kind](sending(case["sends"]), **case.get("settings", {})) as (provider, _):
        try:
            async with within(20):
                await turn_handler(PoolProvider(provider, "m", None), tools).perform(step)
        except StepFailed as error:
            return {**streamed(step), "error": {"code": error.code, "retryable": error.retryable}}
    turn: events.TurnCompleted = last(step, events.TurnCompleted)
    ends = [event for event in step.journal.events if isinstance(event, events.TaskCompleted)]
    assert turn.text == streamed(step)["text"]
    return {
        **streamed(step),
        "finish_reason": turn.finish_reason,
        "usage": {"input_tokens": turn.usage.input_tokens, "output_tokens": turn.usage.output_tokens},
        "incomplete": ends[0].incomplete if ends else None,
        "calls": [
            {"tool": call.tool, "error": call.error.code}
            if call.error is not None
            else {"tool": call.tool, "arguments": call.arguments}
            for call in turn.calls
        ],
    }


def streamed(step: FoldedStep) -> dict[str, str]:
    """The text and the reasoning that were streamed; they can be encoded."""
    for event in step.journal.events:
        msgspec.json.encode(event)
    said = step.journal.events
    return {
        "text": "".join(event.text for event in said if isinstance(event, events.OutputDelta)),
        "reasoning": "".join(event.text for event in said if isinstance(event, events.ReasoningDelta)),
    }


@pytest.mark.parametrize("path", CASES, ids=[f"{path.parent.name}-{path.stem}" for path in CASES])
async def test_a_stream_is_read_as_its_case_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "USAGE_SECONDS", USAGE_SECONDS)
    case = json.loads(path.read_text())
    found = await journal_of(path.parent.name, case)
    expected = case["journal"]
    for name, nothing in (("text", ""), ("reasoning", ""), ("calls", []), ("incomplete", None), ("error", None)):
        assert found.get(name, nothing) == expected.get(name, nothing), case["says"]
    for name in ("finish_reason", "usage"):
        if name in expected:
            assert found.get(name) == expected[name], case["says"]

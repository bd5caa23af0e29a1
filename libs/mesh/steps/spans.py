"""Spans of a step: its claim, the step itself, and its appends as one."""

from __future__ import annotations

from opentelemetry.trace import SpanKind

from contracts.messages.work import ToolWork, Work
from mesh.broker.deliveries import Delivery
from mesh.journal.journal import Appends
from mesh.telemetry import traces


def name_of(work: Work) -> str:
    """The name of a step's span."""
    return f"execute_tool {work.tool}" if isinstance(work, ToolWork) else "turn"


def kind_of(work: Work) -> SpanKind:
    """What a step's span is: a tool runs in here, by the conventions."""
    return SpanKind.INTERNAL if isinstance(work, ToolWork) else SpanKind.CONSUMER


def claim_of(work: Work) -> str:
    """The name of the span of a step's claim."""
    return f"claim call {work.tool}" if isinstance(work, ToolWork) else "claim turn"


def attributes_of(work: Work, delivery: Delivery) -> dict[str, str | int] | None:
    """The attributes of both of a step's spans; None while no spans are made."""
    if not traces.spans_enabled():
        return None
    attributes: dict[str, str | int] = {
        "messaging.system": "nats",
        "messaging.destination.name": delivery.stream,
        "taskmesh.task": work.task,
        "taskmesh.tenant": work.tenant,
        "taskmesh.turn": work.turn,
        "taskmesh.gen": work.gen,
        "taskmesh.delivery": delivery.deliveries,
    }
    if isinstance(work, ToolWork):
        attributes["taskmesh.call"] = work.call
        attributes |= {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": work.tool,
            "gen_ai.tool.call.id": work.call,
            "gen_ai.tool.type": "function",
            "gen_ai.conversation.id": work.task,
        }
    return attributes


def add_span_of_appends(appends: Appends) -> None:
    """Add the one span of all that a step has appended."""
    if appends.count:
        traces.add_past_span(
            "append events",
            appends.started_ns,
            {
                "taskmesh.append.count": appends.count,
                "taskmesh.append.bytes": appends.payload_bytes,
                "taskmesh.append.seconds_max": appends.seconds_max,
            },
        )

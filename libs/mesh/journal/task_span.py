"""The span of a whole task, `invoke_agent` by the conventions for generative AI.

It is made when the task has ended: whoever ends it is another process than the one that began it. So nothing hangs
under it; the spans of its steps lie beside it, under that of the submission.
"""

from __future__ import annotations

from contracts.journal.events import TERMINAL_TYPES, JournalEvent, TaskFailed, TaskQueued, event_type
from mesh.telemetry import traces

_NANOSECONDS = 10**9


def add_span_of_task(queued: TaskQueued, ended: JournalEvent) -> None:
    """Add it, from the task's acceptance to its terminal event."""
    kind = event_type(ended)
    if kind not in TERMINAL_TYPES:
        raise ValueError(f"{kind} ends no task")
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": queued.task,
        "taskmesh.task": queued.task,
        "taskmesh.tenant": queued.tenant,
        "taskmesh.pool": queued.pool,
        "taskmesh.status": kind.removeprefix("task."),
    }
    usage = getattr(ended, "usage", None)
    if usage is not None:
        attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
    traces.add_past_span(
        "invoke_agent",
        int(queued.accepted_at.timestamp() * _NANOSECONDS),
        attributes,
        traceparent=traces.current_traceparent(),
        ended_ns=int(ended.time.timestamp() * _NANOSECONDS),
        error=ended.error.code if isinstance(ended, TaskFailed) else None,
    )

"""Tasks and events as text for people. Pure: from wire types to strings."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from contracts.actors import BY_HTTP
from contracts.codec import decode
from contracts.headers import TENANT_DEFAULT
from contracts.journal import events, parts
from contracts.journal.edge_events import StreamGap
from contracts.journal.events import UnknownEvent, decode_event
from contracts.records.status import OpenApproval, OpenQuestion, TaskAccepted, TaskRecord
from meshctl.client import Received
from meshctl.display.output import printable
from meshctl.display.screen import DIM, PLAIN
from meshctl.display.transcript import decode_snapshot

MARK: Final = "· "
"""Begins every line that is not the model's text."""
_FIELD_CHARACTERS_MAX: Final = 120
_OUTPUT_CHARACTERS_IN_LIST: Final = 48
_COMMON = frozenset({"type", "id", "task", "tenant", "n", "time"})


class StreamText:
    """A stream as it is shown: the model's words run on, everything else gets a line of its own."""

    def __init__(self, *, in_colour: bool = False) -> None:
        self._at_line_start = True
        self._before, self._behind = (DIM, PLAIN) if in_colour else ("", "")

    def add(self, received: Received) -> str:
        """What to print for an event. Raises `InvalidPayload`."""
        if received.type == "stream.gap":
            gap = decode(received.payload, StreamGap)
            return self._line(f"events after {gap.from_sequence} up to {gap.to_sequence} are gone; what they came to:")
        if received.type == "snapshot":
            return self._snapshot(received.payload)
        event = decode_event(received.payload)
        if isinstance(event, events.OutputDelta):
            return self._words(event.text)
        return self._line(_milestone(event, received.payload))

    def _snapshot(self, payload: bytes) -> str:
        snapshot = decode_snapshot(payload)
        parts = [self._line(f"status {snapshot.status}")]
        for turn in snapshot.turns:
            parts += [self._line(f"turn {turn.turn}, {'completed' if turn.completed else 'so far'}:")]
            parts += [self._words(turn.text)]
        return "".join(parts)

    def _words(self, text: str) -> str:
        if text:
            self._at_line_start = text.endswith("\n")
        return printable(text)

    def _line(self, text: str) -> str:
        begin = "" if self._at_line_start else "\n"
        self._at_line_start = True
        return f"{begin}{self._before}{MARK}{printable(text)}{self._behind}\n"


def _milestone(event: events.JournalEvent | UnknownEvent, payload: bytes) -> str:
    match event:
        case events.TaskQueued():
            return f"queued in {event.pool}, {event.priority}"
        case events.StepClaimed():
            what = f"call {event.call} ({event.tool})" if event.call else f"turn {event.turn}"
            model = f" with {event.model}" if event.model else ""
            model += f" at {event.provider} ({event.reason})" if event.reason else ""
            again = f", delivery {event.delivery}" if event.delivery > 1 else ""
            return f"{what} claimed by {event.worker}{model}{again}"
        case events.StepReleased() | events.TurnRestarted():
            return _again(event)
        case events.TurnCompleted():
            calls = "".join(f"\n  {_call(call)}" for call in event.calls)
            return f"turn {event.turn} completed: {event.finish_reason}, {event.usage.output_tokens} tokens{calls}"
        case events.ModelSwitched() | events.ModelHedged() | events.ModelSpent() | events.ContextCompacted():
            return _degraded(event)
        case (
            events.ToolProgress()
            | events.ToolCompleted()
            | events.ToolFailed()
            | events.SubtaskStarted()
            | events.SubtaskCompleted()
        ):
            return _call_went_on(event)
        case events.ApprovalRequested() | events.ApprovalResolved() | events.InputRequested() | events.InputReceived():
            return _person(event)
        case events.TaskCompleted():
            over = f", {event.over_budget_tokens:,} tokens over its budget" if event.over_budget_tokens else ""
            return "completed" + (f", but incomplete: {event.incomplete}" if event.incomplete else "") + over
        case events.TaskFailed():
            return f"failed: {event.error.code}: {event.error.message}"
        case _:
            return _generic(payload)


def cost_text(usage: parts.Usage) -> str:
    """What usage has cost, as far as that is known, and what is not."""
    known = f"{usage.cost_micros / 1_000_000:,.6f}" if usage.cost_micros is not msgspec.UNSET else "unknown"
    unpriced = f", and {usage.unpriced_tokens:,} tokens without a price" if usage.unpriced_tokens else ""
    calls = usage.untold_calls or 0
    untold = f", and {calls} call{'s' * (calls > 1)} that told no usage" if calls else ""
    return f"{known}{unpriced}{untold}"


def _again(event: events.StepReleased | events.TurnRestarted) -> str:
    if isinstance(event, events.StepReleased):
        return f"step {event.step} given back ({event.reason}): another worker goes on"
    discarded = f", about {event.discarded_tokens} tokens" if event.discarded_tokens else ""
    return f"turn {event.turn} begins again ({event.reason}): what it has said so far does not count{discarded}"


def _degraded(
    event: events.ModelSwitched | events.ModelHedged | events.ModelSpent | events.ContextCompacted,
) -> str:
    match event:
        case events.ModelSwitched():
            turn = f"turn {event.turn}: " if event.turn else ""
            at = f" at {event.provider}" if event.provider else ""
            return f"{turn}{event.to_model}{at} goes on for {event.from_model} ({event.reason})"
        case events.ModelHedged():
            return f"turn {event.turn}: {event.model} at {event.provider} is asked too; the first that answers goes on"
        case events.ModelSpent():
            return f"turn {event.turn}: {_spent(f'{event.model} at {event.provider}', event.usage)} ({event.reason})"
        case events.ContextCompacted():
            return f"turn {event.turn}: compacted from {event.bytes_before:,} to {event.bytes_kept:,} bytes"


def _spent(who: str, usage: parts.Usage) -> str:
    if not usage.untold_calls:
        return f"{who} has used {usage.input_tokens} tokens in, {usage.output_tokens} out"
    if not usage.input_tokens + usage.output_tokens:
        return f"what {who} has used was not told"
    return f"{who} has used {usage.input_tokens} tokens in, {usage.output_tokens} out, and more that was not told"


def _call(call: parts.ToolCall) -> str:
    approval = "; waits for approval" if call.approval else ""
    error = f"; {call.error.code}: {call.error.message}" if call.error else ""
    return f"calls {call.tool} ({call.call}) {_short(call.arguments)}{approval}{error}"


def _call_went_on(
    event: events.ToolProgress
    | events.ToolCompleted
    | events.ToolFailed
    | events.SubtaskStarted
    | events.SubtaskCompleted,
) -> str:
    match event:
        case events.ToolProgress():
            of_total = f" of {event.total:g}" if event.total is not None else ""
            message = f": {event.message}" if event.message else ""
            return f"call {event.call} ({event.tool}) is at {event.progress:g}{of_total}{message}"
        case events.ToolCompleted():
            size = f" ({event.object.size:,} bytes in all)" if event.object else ""
            return f"call {event.call} ({event.tool}) completed: {_short(event.result)}{size}"
        case events.ToolFailed():
            unknown = "; it may have had its effect" if event.outcome == "unknown" else ""
            return f"call {event.call} ({event.tool}) failed: {event.error.code}: {event.error.message}{unknown}"
        case events.SubtaskStarted():
            share = f", with {event.budget_tokens:,} tokens" if event.budget_tokens else ""
            return f"call {event.call} is task {event.child}{share}"
        case events.SubtaskCompleted():
            said = event.error.message if event.error else event.output
            cut = f" (incomplete: {event.incomplete})" if event.incomplete else ""
            return f"call {event.call}: task {event.child} is {event.status}{cut}" + (
                f": {_short(said)}" if said else ""
            )


def _person(
    event: events.ApprovalRequested | events.ApprovalResolved | events.InputRequested | events.InputReceived,
) -> str:
    """What a person is asked, and has said; with the command that answers."""
    match event:
        case events.ApprovalRequested():
            asked = OpenApproval(
                call=event.call, tool=event.tool, arguments=event.arguments, expires_at=event.expires_at
            )
            return f"approval of call {approval_text(asked)}\n  {_command(event, 'approve')} {event.call}"
        case events.ApprovalResolved():
            reason = f": {event.reason}" if event.reason else ""
            return f"call {event.call} is {event.decision}, by {event.by}{reason}"
        case events.InputRequested():
            asks = OpenQuestion(question=event.question, call=event.call, expires_at=event.expires_at)
            return f"asks: {question_text(asks)}\n  {_command(event, 'say')} TEXT"
        case events.InputReceived():
            kind = "answer" if event.call else "redirect" if event.mode == "redirect" else "message"
            return f"{kind} by {event.by}: {event.text}"


def _command(event: events.Event, name: str) -> str:
    tenant = f" --tenant {event.tenant}" if event.tenant != TENANT_DEFAULT else ""
    return f"meshctl {name}{tenant} {event.task}"


def approval_text(approval: OpenApproval) -> str:
    """A call that waits for a person."""
    arguments = _short(approval.arguments)
    return f"{approval.call} ({approval.tool}) {arguments}, until {time_text(approval.expires_at)}"


def question_text(question: OpenQuestion) -> str:
    """A question that waits for its answer."""
    until = f", until {time_text(question.expires_at)}" if question.expires_at else ""
    call = f" ({question.call}{until})" if question.call else ""
    return f"{question.question}{call}"


def _generic(payload: bytes) -> str:
    """Any event, by its fields: also one of a type that is news."""
    fields: dict[str, Any] = msgspec.json.decode(payload)
    shown = [f"{name}={_short(value)}" for name, value in fields.items() if name not in _COMMON]
    return " ".join([str(fields["type"]), *shown])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _FIELD_CHARACTERS_MAX else text[: _FIELD_CHARACTERS_MAX - 1] + "…"


def accepted_text(accepted: TaskAccepted) -> str:
    """A submission's answer."""
    queue = accepted.queue
    ahead = "" if queue.depth is None else f", {queue.depth} waiting"
    if queue.position is not None and queue.basis != "free":
        ahead += f", number {queue.position:,} in line"
    begins = "" if not queue.eta_seconds else f", begins in about {queue.eta_seconds:,.0f} s"
    return f"{accepted.id}  {accepted.status} in {accepted.pool}, {accepted.priority}{ahead}{begins}"


def record_text(record: TaskRecord) -> str:
    """A task in full."""
    rows = [
        ("task", record.id),
        ("status", record.status + (f" (incomplete: {record.incomplete})" if record.incomplete else "")),
        ("lane", f"{record.pool}, {record.priority}"),
        ("created", time_text(record.created_at)),
        ("changed", time_text(record.updated_at)),
    ]
    if record.by not in (None, BY_HTTP):
        rows.append(("by", str(record.by)))
    if record.turn is not None:
        rows.append(("turn", str(record.turn)))
    if record.model is not None:
        rows.append(("model", record.model))
    if record.usage is not None:
        discarded = f", {record.usage.discarded_tokens} thrown away" if record.usage.discarded_tokens else ""
        rows.append(("tokens", f"{record.usage.input_tokens} in, {record.usage.output_tokens} out{discarded}"))
        if record.usage.cost_micros is not msgspec.UNSET or record.usage.untold_calls:
            rows.append(("cost", cost_text(record.usage)))
    if record.tree_usage is not None:
        of_all = f"{record.tree_usage.input_tokens} in, {record.tree_usage.output_tokens} out"
        rows.append(("in all", f"{of_all}, with its sub-tasks"))
    if record.over_budget_tokens is not None:
        rows.append(("over", f"{record.over_budget_tokens:,} tokens over its budget"))
    if record.timings is not None and record.timings.total_seconds is not None:
        rows.append(("took", f"{record.timings.total_seconds:.2f} s"))
    if record.deadline is not None:
        rows.append(("deadline", time_text(record.deadline)))
    if record.parent is not None:
        rows.append(("parent", f"{record.parent.task}, call {record.parent.call}"))
    rows += [("approve", approval_text(approval)) for approval in record.approvals or []]
    rows += [("asks", question_text(question)) for question in record.questions or []]
    for name, value in (record.metadata or {}).items():
        rows.append((f"· {name}", str(value)))
    if record.error is not None:
        rows.append(("error", f"{record.error.code}: {record.error.message}"))
    text = "\n".join(f"{name:<10}{printable(value)}" for name, value in rows)
    return text if record.output is None else f"{text}\noutput\n{printable(record.output)}"


def first_words(record: TaskRecord) -> str:
    """What went wrong with a task, what it waits for, or what its submitter calls it, on one line and cut."""
    asked = [f"asks: {question.question}" for question in record.questions or []]
    asked += [f"approve {approval.tool}?" for approval in record.approvals or []]
    named = ", ".join(f"{key}={value}" for key, value in (record.metadata or {}).items())
    told = (record.error.message if record.error else "; ".join(asked)) or named
    text = " ".join(told.split())
    return text if len(text) <= _OUTPUT_CHARACTERS_IN_LIST else text[: _OUTPUT_CHARACTERS_IN_LIST - 1] + "…"


def time_text(value: datetime) -> str:
    """A time, to the second."""
    return value.strftime("%Y-%m-%d %H:%M:%SZ")

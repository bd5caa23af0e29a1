"""Dead letters as text for people. Pure: from wire types to strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from contracts.api.dead_letters import ReplayAccepted, ReplayPlan, ShownDeadLetter, TaskDeadLetters
from contracts.journal.parts import StepGen
from contracts.tasks import TaskRequest
from meshctl.display.output import printable
from meshctl.display.rendering import time_text

_MESSAGE_CHARACTERS_MAX: Final = 4_000
"""Of a message, an input or arguments: a pipe has all of it."""


def task_text(shown: TaskDeadLetters) -> str:
    """The dead letters of a task: what is open, and each record."""
    opened = ", ".join(f"{letter.step} (gen {letter.gen}): {letter.code}" for letter in shown.open)
    head = _rows([("task", shown.id), ("status", shown.status), ("open", opened or "none")])
    records = [record_text(letter) for letter in shown.records]
    if shown.more:
        records.append("there are older ones")
    return "\n\n".join([head, *records])


def record_text(letter: ShownDeadLetter) -> str:
    """One record: what gave up, why, and where to look further."""
    step = "a message that was no work, or fits no journal"
    if letter.step is not None:
        step = f"{letter.step} (gen {letter.gen})" + (f", a call of {letter.tool}" if letter.tool else ", a turn")
    model = " ".join(filter(None, [letter.provider, letter.model]))
    trace = (letter.traceparent or "").split("-")
    journal = f"EVENTS {letter.journal_from} to {letter.journal_to}" if letter.journal_to is not None else ""
    rows = [
        ("step", step),
        ("state", "open" if letter.open else "not open any more"),
        ("record", f"DEAD_LETTERS {letter.record_sequence}"),
        ("time", time_text(letter.time)),
        ("message", f"{letter.stream} {letter.sequence}, {letter.subject}"),
        ("deliveries", str(letter.deliveries)),
        ("tries", "" if letter.tries is None else str(letter.tries)),
        ("worker", letter.worker or ""),
        ("provider", model),
        ("journal", journal),
        ("trace", trace[1] if len(trace) > 1 else ""),
    ]
    for number, error in enumerate(letter.errors, start=1):
        detail = f"\n{error.detail}" if error.detail else ""
        rows.append((f"error {number}", f"{error.code}: {error.message}{detail}"))
    if letter.request is not None:
        rows += _request_rows(letter.request)
    rows.append(("payload", letter.message))
    return _rows(rows)


def accepted_text(accepted: ReplayAccepted) -> str:
    """What goes on."""
    return f"{accepted.id} goes on: {_steps(accepted.steps)}"


def plan_text(plan: ReplayPlan) -> str:
    """What a replay would do, and change."""
    rows = [("task", plan.id), ("would go on", _steps(plan.steps))]
    before, after = _fields(plan.request.before), _fields(plan.request.after)
    rows += _changed(before, after)
    for call, arguments in plan.arguments.items():
        name = f"{call} ({arguments.tool})"
        rows += _changed({name: _short(arguments.before)}, {name: _short(arguments.after)})
    return _rows(rows, width=14)


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            rows += [(name, f"- {before.get(name, '')}"), ("", f"+ {after.get(name, '')}")]
    return rows


def _request_rows(request: TaskRequest) -> list[tuple[str, str]]:
    return [(f"· {name}", value) for name, value in _fields(request).items()]


def _fields(request: TaskRequest) -> dict[str, str]:
    return {name: _short(value) for name, value in msgspec.to_builtins(request).items()}


def _steps(steps: list[StepGen]) -> str:
    return ", ".join(f"{each.step} (gen {each.gen})" for each in steps)


def _rows(rows: list[tuple[str, str]], width: int = 12) -> str:
    """Names and values in two columns, without those that have no value; a value's other lines are under its first."""
    lines = []
    for name, value in rows:
        if value:
            indented = _short(value).replace("\n", "\n" + " " * width)
            lines.append(f"{name:<{width}}{printable(indented)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _MESSAGE_CHARACTERS_MAX else text[: _MESSAGE_CHARACTERS_MAX - 1] + "…"

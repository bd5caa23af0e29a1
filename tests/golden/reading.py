"""Golden journals as they lie beside the protocol, and what a version says of one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.codec import decode, encode
from contracts.journal.events import DELTA_TYPES, decode_event
from contracts.journal.parts import StepGen
from mesh.task.fold import fold
from mesh.task.outbox import OutboxMessage, deadline_timer, messages_after, messages_of_replayed
from mesh.task.records import record
from mesh.task.state import TaskState

_DEADLINE = re.compile(r'"deadline": ?"[^"]*"')
JOURNALS = Path(__file__).resolve().parents[2] / "libs" / "contracts" / "spec" / "vectors" / "journals"


@dataclass(frozen=True)
class GoldenTask:
    """One task: `events` are stream sequence and event, `milestones` n, status and message ids of what was due then."""

    tenant: str
    task: str
    events: list[tuple[int, dict[str, Any]]]
    milestones: list[tuple[int, str, list[str]]]
    record: dict[str, Any]
    due: list[dict[str, Any]]


@dataclass(frozen=True)
class Golden:
    """A file: a task and its sub-tasks, and every message that was published for them, in that order."""

    name: str
    tasks: list[GoldenTask]
    messages: list[dict[str, Any]]


def folders() -> list[Path]:
    """One for each version that has recorded."""
    return sorted(each for each in JOURNALS.iterdir() if each.is_dir())


def read(file: Path, deadline: datetime | None = None) -> Golden:
    """A golden file. `deadline`: what its tasks have in place of their own, which has long passed."""
    text = file.read_text(encoding="utf-8")
    if deadline is not None:
        text = _DEADLINE.sub(f'"deadline":"{deadline:%Y-%m-%dT%H:%M:%S.%fZ}"', text)
    document = json.loads(text)
    tasks = [
        GoldenTask(
            tenant=each["record"]["tenant"],
            task=each["record"]["id"],
            events=[(sequence, event) for sequence, event in each["events"]],
            milestones=[(n, status, ids) for n, status, ids in each["milestones"]],
            record=each["record"],
            due=each["due"],
        )
        for each in document["tasks"]
    ]
    return Golden(file.stem, tasks, document["messages"])


def subject_of(event: dict[str, Any]) -> str:
    """Where an event lies."""
    part = subjects.journal_delta if event["type"] in DELTA_TYPES else subjects.journal_log
    return part(event["tenant"], event["task"])


def as_stored(event: dict[str, Any]) -> bytes:
    """The bytes of an event, as its writer had them."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def told(tenant: str, task: str, journal: list[tuple[int, dict[str, Any]]]) -> tuple[TaskState, list[list[Any]]]:
    """Fold a journal: its state, and of each milestone n, the status and the message ids of what is due then."""
    state = TaskState(tenant, task)
    milestones: list[list[Any]] = []
    for sequence, event in journal:
        fold(state, sequence, decode_event(as_stored(event)))
        if subject_of(event).endswith(".log"):
            milestones.append([event["n"], state.status, [each.message_id for each in due_in(state)]])
    return state, milestones


def record_in(state: TaskState) -> dict[str, Any]:
    """The status record, as it is stored."""
    told: dict[str, Any] = decode(encode(record(state)), dict)
    return told


def due_in(state: TaskState) -> list[OutboxMessage]:
    """What the journal calls for by now: each message once, in the order in which they are published."""
    completed = state.last_completed
    if state.terminal is not None:
        found = messages_after(state, "1")
    else:
        going_on = messages_after(state, str(completed.turn)) if completed else messages_of_replayed(state, "1")
        retried = [each for step, gen in state.retry_at for each in _timer_of(state, StepGen(step, gen))]
        found = [*going_on, *retried, *deadline_timer(state)]
    return list({each.message_id: each for each in found}.values())


def _timer_of(state: TaskState, step: StepGen) -> list[OutboxMessage]:
    return messages_of_replayed(state, step.step) if state.gen(step.step) == step.gen else []


def keeps(now: Any, then: Any) -> bool:
    """Whether what is said now is what was said then; an object may have gained fields."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(name in now and keeps(now[name], value) for name, value in then.items())
    return bool(now == then)


def message_of(due: OutboxMessage) -> dict[str, Any]:
    """A message that is due, as JSON. `at` and `fires_on` are those of a timer."""
    more = {"at": due.at.isoformat(), "fires_on": due.fires_on} if due.at is not None else {}
    return {"subject": due.subject, "message_id": due.message_id, "payload": decode(encode(due.payload), dict), **more}

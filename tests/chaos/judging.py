"""What is held against a run: the checker's judgement, and what each of its tasks must have come to."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import msgspec

from contracts import subjects
from mesh.archive.lookup import find
from mesh.broker.direct_get import read_page
from tests.chaos.clients import BY, TENANT
from tests.chaos.points import Point
from tests.chaos.scenario import IDEMPOTENT, Asked, End, in_run
from tests.chaos.slot import Slot
from tests.support.checker import StoredEvent, check_calls, check_journal, children_of, is_result


class Judgement:
    """Of the run of that name, which was disturbed at `point`."""

    def __init__(self, slot: Slot, run: str, point: Point | None) -> None:
        self.unknown_calls = 0
        """Calls that must not run twice, and of which nobody knows whether they had their effect."""
        self._slot = slot
        self._requests = slot.connection.requests
        self._run = run
        self._point = point

    async def of_task(self, asked: Asked, task: str) -> list[str]:
        """What is wrong with a task and its sub-tasks."""
        journal = await read_journal(self._slot, task)
        problems = await self._of_journal(asked.name, task, journal)
        allowed = asked.ends if self._point is not None else asked.ends[:1]
        if not journal or end_of(journal) not in allowed:
            problems.append(f"I9: {asked.name} ended with {end_of(journal)}")
        outputs: list[str | None] = []
        for call, child in sorted(children_of(journal).items()):
            events = await read_journal(self._slot, child)
            problems += await self._of_journal(f"{asked.name}, the child of {call}", child, events)
            outputs.append(end_of(events).output)
        if outputs != [*asked.child_outputs]:
            problems.append(f"I9: the outputs of the children of {asked.name} are {outputs}")
        return problems + self._wrong_results(asked, journal) + wrong_repairs(asked, journal, self._run)

    async def of_dead_letters(self, tasks: dict[str, Asked], after: int) -> list[str]:
        """What is wrong in DEAD_LETTERS behind that sequence: each step that gave up is there, once, and no more."""
        page, _ = await read_page(self._requests, "DEAD_LETTERS", "dead.>", after)
        letters = [json.loads(letter.payload) for letter in page]
        stored = Counter((letter.get("task"), letter.get("step"), letter.get("gen", 0)) for letter in letters)
        problems: list[str] = []
        for task, asked in tasks.items():
            sure = asked.repaired_from_record or self._point is None
            for step, gen in asked.repairs:
                count = stored.pop((task, step, gen), 0)
                if self._slot.scenario.kept_seconds is not None:
                    sure = False  # It went with its pack.
                if count > 1 or (sure and count == 0):
                    problems.append(f"I10: {count} dead letters of step {step} (gen {gen}) of {asked.name}")
        strangers = [
            letter for letter in letters if (letter.get("task"), letter.get("step"), letter.get("gen", 0)) in stored
        ]
        return problems + [f"I10: a dead letter: {json.dumps(letter)[:300]}" for letter in strangers[:3]]

    async def _of_journal(self, name: str, task: str, journal: list[StoredEvent]) -> list[str]:
        witness = self._slot.witness
        found = check_journal(journal, milestones_only=witness is not None and task in witness.partial)
        if end_of(journal) == End("task.completed", end_of(journal).output):
            found += check_calls(journal, self._slot.executed(), IDEMPOTENT)
        found += await self._record_problems(task, journal)
        return [f"{problem} ({name}, {task})" for problem in found]

    async def _record_problems(self, task: str, journal: list[StoredEvent]) -> list[str]:
        page, _ = await read_page(self._requests, "KV_tasks", f"$KV.tasks.{subjects.task_key(TENANT, task)}", 0)
        record = json.loads(page[-1].payload) if page else await self._packed_record(task)
        end, status = end_of(journal).type, record.get("status")
        problems = [] if end == f"task.{status}" else [f"I10: it ended with {end}, its record says {status}"]
        return problems + ([f"I10: its record has {record['dead_letters']}"] if record.get("dead_letters") else [])

    async def _packed_record(self, task: str) -> dict[str, Any]:
        """Its record in the archive; what it ended with, where that is dropped."""
        packed = await find(self._requests, TENANT, task)
        if packed is None and self._slot.scenario.kept_seconds is not None:
            return {"status": end_of(await read_journal(self._slot, task)).type.removeprefix("task.")}
        return msgspec.to_builtins(packed.record) if packed is not None else {}

    def _wrong_results(self, asked: Asked, journal: list[StoredEvent]) -> list[str]:
        problems: list[str] = []
        results = {stored.event["call"]: stored.event for stored in journal if is_result(stored.event)}
        for call, (kind, value) in asked.results.items():
            event = results.get(call, {"type": "nothing"})
            if event["type"] == kind and value in _values(event):
                continue
            if self._may_be_unknown(event) and event["type"] == "tool.failed" and event["outcome"] == "unknown":
                self.unknown_calls += 1
                continue
            problems.append(f"I8: call {call} of {asked.name} came to {event}")
        return problems

    def _may_be_unknown(self, event: dict[str, Any]) -> bool:
        """Whether somebody died who may have been running a call that must not run twice."""
        point = self._point
        disturbed = point is not None and (point.service == "tool_runner" or point.fault == "broker")
        return disturbed and event.get("tool") not in IDEMPOTENT


def _values(event: dict[str, Any]) -> list[Any]:
    code = event["error"]["code"] if event.get("error") else None
    return [code, *(event.get(name) for name in ("result", "text", "output", "decision"))]


def wrong_repairs(asked: Asked, journal: list[StoredEvent], run: str) -> list[str]:
    """I8: each dead letter is replayed with its edits, and each late step tried again by its timer, and not before."""
    problems: list[str] = []
    events = [stored.event for stored in journal]
    replays = [
        (each["by"], [(step["step"], step["gen"]) for step in each["steps"]], each.get("edits"))
        for each in events
        if each["type"] == "task.replayed"
    ]
    wanted = [(BY, [place], in_run(edits, run)) for place, edits in asked.repairs.items()]
    if replays != wanted:
        problems.append(f"I8: the replays of {asked.name} are {replays}")
    dead = [(each["step"], each["gen"]) for each in events if each["type"] == "task.dead_lettered"]
    if dead != [*asked.repairs]:
        problems.append(f"I8: the dead letters of {asked.name} are {dead}")
    for step in sorted(asked.late_steps):
        waits = [each for each in events if each["type"] == "task.retrying" and each["step"] == step]
        if [bool(each.get("timer")) for each in waits] != [True]:
            problems.append(f"I8: step {step} of {asked.name} waits as {waits}")
            continue
        due_at = _time(waits[0]) + timedelta(seconds=waits[0]["delay_seconds"])
        later = [each for each in events if each["type"] == "step.claimed" and each["step"] == step]
        if any(waits[0]["n"] < each["n"] and _time(each) < due_at for each in later):
            problems.append(f"I8: step {step} of {asked.name} was tried again too early")
    return problems


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])


def end_of(journal: list[StoredEvent]) -> End:
    """What a journal ends with."""
    last = journal[-1].event if journal else {"type": "nothing"}
    return End(last["type"], last.get("output"), last.get("incomplete"))


async def read_journal(slot: Slot, task: str) -> list[StoredEvent]:
    """A task's journal as it is stored, or was before it was packed."""
    if slot.witness is not None:
        return await slot.witness.journal(task)
    requests = slot.connection.requests
    events: list[StoredEvent] = []
    more = True
    while more:
        after = events[-1].sequence if events else 0
        page, more = await read_page(requests, "EVENTS", subjects.journal(TENANT, task), after)
        events += [StoredEvent(each.sequence, task, each.payload, json.loads(each.payload)) for each in page]
    return events

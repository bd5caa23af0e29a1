"""The offline checker: judges what clients recorded and what is stored, after the fact.

It reads, and never takes part. Each violation names the invariant of PROTOCOL.md, "Promises", that it breaks:

I1 durability, I2 one end, I4 stream identity, I5 honest loss, I6 attempts never mix, I7 fence, I8 steps,
I10 conservation. A packed task is judged by what the archive has of it, which is all but its deltas.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from contracts import subjects
from contracts.journal.events import DELTA_TYPES, TERMINAL_TYPES
from mesh.broker.direct_get import read_page
from mesh.broker.requests import Requests
from tests.support.archive import Archive, check_archive, read_archive


class Frame(NamedTuple):
    """What a client received: cursor, type and the very bytes of the data."""

    sequence: int | None
    type: str
    data: bytes


@dataclass
class ClientHistory:
    """All that one client received of a task, over any number of connections. It began behind `after`."""

    task: str
    frames: list[Frame] = field(default_factory=list)
    after: int = 0
    saw_end: bool = True
    """Whether this client followed to the end, and must so have seen all."""


@dataclass
class Recorded:
    """What clients know of a run."""

    accepted: set[str] = field(default_factory=set)
    """Tasks whose client got 202."""
    uncertain: set[str] = field(default_factory=set)
    """Tasks whose client got no answer: they may exist, once."""
    refused: int = 0
    histories: list[ClientHistory] = field(default_factory=list)


class StoredEvent(NamedTuple):
    """An event as it lies in EVENTS."""

    sequence: int
    task: str
    data: bytes
    event: dict[str, Any]


@dataclass
class Stored:
    """What the broker holds after a run."""

    journals: dict[str, list[StoredEvent]]
    work: list[dict[str, Any]]
    """Messages left in TASKS, TURNS, TOOLS and CONTROL."""
    tasks_ever_stored: int
    """How many messages TASKS has ever taken."""
    ack_pending: int
    dead_letters: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]
    archive: Archive = field(default_factory=Archive)
    hot: frozenset[str] = frozenset()
    """Names of the tasks, `<tenant>.<task>`, of which EVENTS has something, packed or not."""
    packed: set[str] = field(default_factory=set)
    """Tasks whose journal is the archive's: their deltas are gone."""
    records_left: frozenset[str] = frozenset()
    """Keys of the bucket `tasks`."""


async def read_stored(requests: Requests) -> Stored:
    """Read everything that judgement needs."""
    journals: dict[str, list[StoredEvent]] = defaultdict(list)
    hot: set[str] = set()
    for sequence, subject, payload in await _read_all(requests, "EVENTS", "events.>"):
        task = subjects.parse_journal(subject).task
        journals[task].append(StoredEvent(sequence, task, payload, json.loads(payload)))
        hot.add(subjects.task_key(subjects.parse_journal(subject).tenant, task))
    # Behind EVENTS: what is packed meanwhile is in both.
    archive = await read_archive(requests)
    packed = {each.task for each in archive.tasks.values() if each.task not in journals}
    for name in archive.tasks.keys() - hot:
        journals[archive.tasks[name].task] = packed_events(archive, name)
    work: list[dict[str, Any]] = []
    ack_pending = 0
    for stream, subject_filter in (
        ("TASKS", "tasks.>"),
        ("TURNS", "turns.>"),
        ("TOOLS", "tools.>"),
        ("CONTROL", "control.>"),
    ):
        for _, _, payload in await _read_all(requests, stream, subject_filter):
            work.append(_work(payload))
        names = await requests.api(f"CONSUMER.NAMES.{stream}")
        for name in names["consumers"] or []:
            info = await requests.api(f"CONSUMER.INFO.{stream}.{name}")
            ack_pending += info["num_ack_pending"]
    tasks = await requests.api("STREAM.INFO.TASKS")
    dead = [json.loads(payload) for _, _, payload in await _read_all(requests, "DEAD_LETTERS", "dead.>")]
    projected = {
        subject.removeprefix("$KV.tasks."): json.loads(payload)
        for _, subject, payload in await _read_all(requests, "KV_tasks", "$KV.tasks.>")
        if payload
    }
    records = {each.task: msgspec.to_builtins(each.record) for each in archive.tasks.values()}
    records |= {name.rpartition(".")[2]: record for name, record in projected.items()}
    return Stored(
        journals=dict(journals),
        work=work,
        tasks_ever_stored=int(tasks["state"]["last_seq"]),
        ack_pending=ack_pending,
        dead_letters=dead,
        records=records,
        archive=archive,
        hot=frozenset(hot),
        packed=packed,
        records_left=frozenset(projected),
    )


def packed_events(archive: Archive, name: str) -> list[StoredEvent]:
    """The milestones of a packed task, `<tenant>.<task>`."""
    found = archive.tasks[name]
    return [
        StoredEvent(each.sequence, found.task, bytes(each.event), json.loads(bytes(each.event)))
        for each in found.events
    ]


def _work(payload: bytes) -> dict[str, Any]:
    """A message of a work queue, which may be rubbish."""
    try:
        work = json.loads(payload)
    except (ValueError, RecursionError):
        return {"rubbish": payload}
    return work if isinstance(work, dict) else {"rubbish": payload}


async def _read_all(requests: Requests, stream: str, subject_filter: str) -> list[tuple[int, str, bytes]]:
    messages: list[tuple[int, str, bytes]] = []
    more = True
    after = 0
    while more:
        page, more = await read_page(requests, stream, subject_filter, after)
        messages += [(message.sequence, message.subject, message.payload) for message in page]
        after = messages[-1][0] if messages else 0
    return messages


def check(recorded: Recorded, stored: Stored, *, quiet: bool = True) -> list[str]:
    """All violations; none is what everybody hopes for. `quiet`: nothing runs any more, so all must have ended."""
    violations: list[str] = []
    violations += _durability(recorded, stored)
    for task, journal in stored.journals.items():
        found = check_journal(journal, quiet=quiet, milestones_only=task in stored.packed)
        violations += [f"{problem} (task {task})" for problem in found]
        end = journal[-1].event
        if quiet and end["type"] == "task.completed" and "incomplete" not in end:
            violations += [f"{problem} (task {task})" for problem in check_calls(journal)]
    for history in recorded.histories:
        journal = stored.journals.get(history.task, [])
        check_frames = check_followed if history.task in stored.packed else check_history
        violations += [f"{problem} (task {history.task})" for problem in check_frames(history, journal)]
    if quiet:
        violations += _conservation(recorded, stored)
    return violations


def _durability(recorded: Recorded, stored: Stored) -> list[str]:
    waiting = {work["task"] for work in stored.work if "task" in work}
    lost = [task for task in recorded.accepted if task not in stored.journals and task not in waiting]
    return [f"I1: accepted task {task} is nowhere" for task in lost]


def check_journal(journal: list[StoredEvent], *, quiet: bool = True, milestones_only: bool = False) -> list[str]:
    """What one stored journal shows by itself. `milestones_only`: its deltas are gone, as a packed task's are."""
    problems: list[str] = []
    numbers = [stored.event["n"] for stored in journal]
    if milestones_only:
        if numbers[:1] != [0] or any(later <= sooner for sooner, later in pairwise(numbers)):
            problems.append(f"I4: n does not ascend from 0: {numbers[:20]}")
    elif numbers != list(range(len(numbers))):
        problems.append(f"I4: n is not dense: {_first_break(numbers)}")
    ids = Counter(stored.event["id"] for stored in journal)
    problems += [f"I4: event id {name} is stored {count} times" for name, count in ids.items() if count > 1]
    ends = [index for index, stored in enumerate(journal) if stored.event["type"] in TERMINAL_TYPES]
    if len(ends) > 1:
        problems.append(f"I2: {len(ends)} terminal events")
    if ends and ends[0] != len(journal) - 1:
        problems.append(f"I2: {len(journal) - 1 - ends[0]} events after the end")
    dead = any(stored.event["type"] == "task.dead_lettered" for stored in journal)
    if quiet and not ends and not dead:
        problems.append("I2: no terminal event")
    problems += _attempts(journal, milestones_only)
    problems += _replays(journal)
    return problems


def _first_break(numbers: list[int]) -> str:
    for index, number in enumerate(numbers):
        if number != index:
            return f"place {index} has n={number}"
    return "none"


def _attempts(journal: list[StoredEvent], milestones_only: bool) -> list[str]:
    """I6: the deltas that count make up the turn's text. I7: a binding holds, and only claimed steps write."""
    problems: list[str] = []
    parts: dict[int, list[tuple[int, str]]] = defaultdict(list)
    bindings: dict[tuple[str, int], int] = {}
    claimed: set[str] = set()
    for stored in journal:
        event = stored.event
        kind = event["type"]
        if kind == "step.claimed":
            key = (event["step"], event["gen"])
            claimed.add(event["step"])
            if bindings.setdefault(key, event["message"]) != event["message"]:
                problems.append(f"I7: step {key} was claimed for two messages")
        elif kind == "task.retrying" and event.get("timer"):
            bindings.pop((event["step"], event.get("gen", 0)), None)  # another message brings it
        elif kind == "step.released":
            bindings.pop((event["step"], event["gen"]), None)
            claimed.discard(event["step"])
        elif kind in ("output.delta", "turn.completed") and str(event["turn"]) not in claimed:
            problems.append(f"I7: turn {event['turn']} writes without a claim")
        if kind == "output.delta":
            parts[event["turn"]].append((event["n"], event["text"]))
        elif kind == "turn.restarted":
            kept = [part for part in parts[event["turn"]] if part[0] < event["discard_from"]]
            parts[event["turn"]] = kept
        elif kind == "turn.completed":
            joined = "".join(text for _, text in parts[event["turn"]])
            if joined != event["text"] and not milestones_only:
                problems.append(f"I6: the deltas of turn {event['turn']} are not its text")
    completed = [stored.event for stored in journal if stored.event["type"] == "turn.completed"]
    turns = Counter(event["turn"] for event in completed)
    problems += [f"I6: turn {turn} completed {count} times" for turn, count in turns.items() if count > 1]
    return problems


def _replays(journal: list[StoredEvent]) -> list[str]:
    """I8: a dead letter is replayed once, and from there on its step is done under its next gen only."""
    problems: list[str] = []
    gens: Counter[str] = Counter()
    dead: set[tuple[str, int]] = set()
    claimed: dict[str, int] = {}
    for stored in journal:
        event = stored.event
        match event["type"]:
            case "step.claimed":
                if event["gen"] != gens[event["step"]]:
                    problems.append(
                        f"I8: step {event['step']} is claimed as gen {event['gen']}, not {gens[event['step']]}"
                    )
                claimed[event["step"]] = event["gen"]
            case "task.dead_lettered":
                if (event["step"], event["gen"]) in dead:
                    problems.append(f"I8: step {event['step']} (gen {event['gen']}) gave up twice")
                dead.add((event["step"], event["gen"]))
            case "task.replayed":
                for step in event["steps"]:
                    place = (step["step"], step["gen"])
                    if place not in dead or gens[place[0]] != place[1]:
                        problems.append(
                            f"I8: step {place[0]} (gen {place[1]}) is replayed without a dead letter that is open"
                        )
                    gens[place[0]] = place[1] + 1
            case "turn.completed" | "tool.completed":
                step = str(event["turn"]) if event["type"] == "turn.completed" else event["call"]
                if gens[step] and claimed.get(step) != gens[step]:
                    problems.append(f"I8: step {step} has a result, and was not claimed since its replay")
    return problems


def check_calls(
    journal: list[StoredEvent], executed: Counter[str] | None = None, idempotent: frozenset[str] = frozenset()
) -> list[str]:
    """I8: each call of an ended task has one result, and what must not run twice did not.

    `executed`: how often the tools were run for each `key` in their arguments.
    """
    problems: list[str] = []
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    asked: dict[str, dict[str, Any]] = {}
    for stored in journal:
        event = stored.event
        if event["type"] == "turn.completed":
            asked |= {call["call"]: call for call in event.get("calls", [])}
        elif is_result(event):
            results[event["call"]].append(event)
    for call, request in asked.items():
        found = [event["type"] for event in results[call]]
        if len(found) != 1:
            problems.append(f"I8: call {call} has the results {found}")
        key = request["arguments"].get("key")
        if key is None or executed is None:
            continue
        if request["tool"] not in idempotent and executed[key] > 1:
            problems.append(f"I8: call {call} of {request['tool']} was run {executed[key]} times")
        if "approval.resolved" in found and executed[key] > 0:
            problems.append(f"I8: call {call} of {request['tool']} was run, and nobody had agreed to it")
        if "tool.completed" in found and executed[key] == 0:
            problems.append(f"I8: call {call} has a result, and was never run")
    return problems + [f"I8: call {call} has a result, and nobody asked for it" for call in results.keys() - asked]


def is_result(event: dict[str, Any]) -> bool:
    """Whether an event is the result of a call."""
    match event["type"]:
        case "tool.completed" | "tool.failed" | "subtask.completed":
            return True
        case "approval.resolved":
            return bool(event["decision"] != "approved")
        case "input.received":
            return event.get("call") is not None
    return False


def children_of(journal: list[StoredEvent]) -> dict[str, str]:
    """Call → the task that it became."""
    return {
        stored.event["call"]: stored.event["child"] for stored in journal if stored.event["type"] == "subtask.started"
    }


def writers_after_takeover(journal: Iterable[StoredEvent], loser: str) -> list[str]:
    """I7: claims by `loser` that come after somebody else's first later claim of the same step."""
    lost: set[str] = set()
    problems: list[str] = []
    seen: set[str] = set()
    for stored in journal:
        event = stored.event
        if event["type"] != "step.claimed":
            continue
        if event["worker"] == loser:
            if event["step"] in lost:
                problems.append(f"I7: {loser} claimed step {event['step']} again after it had lost it")
            seen.add(event["step"])
        elif event["step"] in seen:
            lost.add(event["step"])
    return problems


def check_history(history: ClientHistory, journal: list[StoredEvent]) -> list[str]:
    """I4: what a client received is a contiguous piece of the stored journal, byte for byte."""
    received = [frame for frame in history.frames if frame.type not in ("stream.gap", "snapshot")]
    sequences = [frame.sequence for frame in received]
    expected = [stored for stored in journal if stored.sequence > history.after]
    if not history.saw_end:
        expected = expected[: len(received)]
    if sequences != [stored.sequence for stored in expected]:
        doubled = [sequence for sequence, count in Counter(sequences).items() if count > 1]
        missing = sorted({stored.sequence for stored in expected} - set(sequences))
        return [f"I4: a client's sequences differ: missing {missing[:5]}, doubled {doubled[:5]}"]
    if [frame.data for frame in received] != [stored.data for stored in expected]:
        return ["I4: a client received other bytes than are stored"]
    return []


def check_followed(history: ClientHistory, journal: list[StoredEvent]) -> list[str]:
    """I4 and I5 of who follows a task that loses its deltas: it ascends, and what it leaves out it says is gone.

    A gap stands right before a snapshot, and covers what lies up to that. `journal`: all of it, or its milestones.
    """
    stored = {each.sequence: each for each in journal}
    covered, in_gap = history.after, False
    for frame in history.frames:
        if in_gap != (frame.type == "snapshot"):
            return [f"I5: a client got {frame.type} {'behind a gap' if in_gap else 'without a gap'}"]
        in_gap = frame.type == "stream.gap"
        if in_gap:
            continue
        if (
            frame.sequence is None
            or frame.sequence < covered
            or (frame.sequence == covered and frame.type != "snapshot")
        ):
            return [f"I4: a client got {frame.type} {frame.sequence} behind {covered}"]
        if frame.type != "snapshot":
            known = stored.get(frame.sequence)
            if known is None and frame.type not in DELTA_TYPES:
                return [f"I4: a client got {frame.type} {frame.sequence}, which is not stored"]
            if known is not None and known.data != frame.data:
                return [f"I4: a client received other bytes than are stored at {frame.sequence}"]
            skipped = [sequence for sequence in stored if covered < sequence < frame.sequence]
            if skipped:
                return [f"I5: a client was told nothing of {skipped[:5]}, before {frame.sequence}"]
        covered = frame.sequence
    if history.saw_end and journal and covered < journal[-1].sequence:
        return [f"I4: a client's stream ended at {covered}, the task at {journal[-1].sequence}"]
    return []


def _conservation(recorded: Recorded, stored: Stored) -> list[str]:
    problems = check_archive(stored.archive, stored.hot, stored.records_left)
    if stored.work:
        problems.append(f"I10: {len(stored.work)} messages are left in the work queues")
    if stored.ack_pending:
        problems.append(f"I10: {stored.ack_pending} deliveries are not acked")
    children = {child for journal in stored.journals.values() for child in children_of(journal).values()}
    known = recorded.accepted | recorded.uncertain | children
    strangers = [task for task in stored.journals if task not in known]
    problems += [f"I10: task {task} exists, and nobody submitted it" for task in strangers[:5]]
    expected = len(recorded.accepted | children)
    if not recorded.uncertain and stored.tasks_ever_stored != expected:
        problems.append(f"I10: {expected} tasks were accepted, TASKS has stored {stored.tasks_ever_stored} messages")
    for task, journal in stored.journals.items():
        last = journal[-1].event
        status = stored.records.get(task, {}).get("status")
        if last["type"] in TERMINAL_TYPES and status != last["type"].removeprefix("task."):
            problems.append(f"I10: task {task} ended with {last['type']}, its record says {status}")
    dead = {record["task"] for record in stored.dead_letters if record.get("task")}
    marked = {
        task
        for task, journal in stored.journals.items()
        if any(stored_event.event["type"] == "task.dead_lettered" for stored_event in journal)
    }
    if dead != marked:
        problems.append(f"I10: dead letters {sorted(dead ^ marked)[:5]} are in the journal or the stream, not in both")
    return problems

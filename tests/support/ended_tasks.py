"""Ended tasks as bytes: journal and record of one that had a turn, filled into templates some thousand times a second.

The templates are what the wire types encode to: whatever these gain is in them.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal import events
from contracts.journal.parts import Timings, Usage
from contracts.records.status import Status, TaskRecord
from contracts.tasks import TaskRequest, canonical
from mesh.clock import now
from tests.support.pages import ROOT

MILESTONES = 4
EVENTS_OF_TASK = MILESTONES + 1
"""With one delta."""
REQUEST_CHARACTERS = 200
OUTPUT_CHARACTERS = 300
TEXT_WORDS = 400_000
"""Of a text from which all others are cut, at any place: no two are alike."""
STATUSES: tuple[Status, ...] = ("completed", "failed", "cancelled", "expired")
STEP_MICROSECONDS_MAX = 900_000
CUSTOMERS = 5_000
_NUMBERS = {name: 9_000_000_000 + place for place, name in enumerate(("order", "input", "output", "end", "message"))}
"""Stand for the numbers in a template, until it is one."""
_SECONDS = {name: 0.123456 + place for place, name in enumerate(("queued", "first", "total"))}
_BASE32 = bytes(ord("0123456789abcdefghjkmnpqrstvwxyz"[byte % 32]) for byte in range(256))
_RANDOM_CHARACTERS = 16
"""Of an id; the ten before them are the time."""


class Made(NamedTuple):
    """One task: whose, its id, its events in their order, and its record. `True`: an event is a delta."""

    tenant: str
    task: str
    events: list[tuple[bool, bytes]]
    record: bytes


class EndedTasks:
    """Makes them. `seed`: of what varies; ids are new each time."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        drawn = " ".join(self._random.choices(words(), k=TEXT_WORDS))
        self._text = drawn.encode()
        self._templates = {status: _templates(status) for status in STATUSES}
        self._canonical = _marked(canonical(_request()))

    def make(self, tenant: str, status: Status, order: int, end_sequence: int) -> Made:
        """A task whose last event gets that sequence in EVENTS."""
        fields = self._fields(tenant, order, end_sequence)
        *journal, record = self._templates[status]
        made = [(number == MILESTONES - 2, each % fields) for number, each in enumerate(journal)]
        return Made(tenant, fields[b"task"].decode(), made, record % fields)

    def _fields(self, tenant: str, order: int, end_sequence: int) -> dict[bytes, bytes]:
        choose = self._random
        accepted_at = now()
        microseconds = [0]
        for _ in range(EVENTS_OF_TASK - 1):
            microseconds.append(microseconds[-1] + 1 + int(choose.random() * STEP_MICROSECONDS_MAX))
        times = [_time(accepted_at + timedelta(microseconds=each)) for each in microseconds]
        ids = _ids(EVENTS_OF_TASK + 1)
        fields = {
            b"tenant": tenant.encode(),
            b"task": ids[-1],
            b"said": self._cut(REQUEST_CHARACTERS),
            b"text": self._cut(OUTPUT_CHARACTERS),
            b"customer": b"c-%d" % int(choose.random() * CUSTOMERS),
            b"worker": b"inference_worker-%d@box-a" % (300 + int(choose.random() * 30_000)),
            b"order": b"%d" % order,
            b"message": b"%d" % (order + 1),
            b"input": b"%d" % (40 + int(choose.random() * 860)),
            b"output": b"%d" % (20 + int(choose.random() * 380)),
            b"end": b"%d" % end_sequence,
            b"queued": _seconds(microseconds[1]),
            b"first": _seconds(microseconds[2] - microseconds[1]),
            b"total": _seconds(microseconds[3] - microseconds[1]),
        }
        for number in range(EVENTS_OF_TASK):
            fields[b"id%d" % number], fields[b"time%d" % number] = ids[number], times[number]
        fields[b"fingerprint"] = hashlib.sha256(self._canonical % fields).hexdigest()[:32].encode()
        return fields

    def _cut(self, characters: int) -> bytes:
        start = int(self._random.random() * (len(self._text) - characters))
        return self._text[start : start + characters]


def words() -> list[str]:
    """The words of the documentation, each once: drawn evenly they compress as its prose does, to 0.46."""
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "libs/contracts/spec/PROTOCOL.md"]
    return sorted({word.lower() for page in pages for word in re.findall(r"[A-Za-z]{2,}", page.read_text())})


def _ids(count: int) -> list[bytes]:
    """ULIDs of this millisecond, as `new_id` makes them, many at once."""
    milliseconds = time.time_ns() // 1_000_000
    begins = bytes(_BASE32[milliseconds >> shift & 31] for shift in range(45, -1, -5))
    drawn = os.urandom(count * _RANDOM_CHARACTERS).translate(_BASE32)
    return [begins + drawn[at : at + _RANDOM_CHARACTERS] for at in range(0, len(drawn), _RANDOM_CHARACTERS)]


def _time(at: datetime) -> bytes:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds").encode() + b"Z"


def _seconds(microseconds: int) -> bytes:
    return repr(round(microseconds / 1_000_000, 3)).encode()


def _mark(name: str) -> Any:
    """What stands for a value in a template."""
    return f"%({name})b"


def _marked(template: bytes) -> bytes:
    for name, number in (_NUMBERS | _SECONDS).items():
        template = template.replace(repr(number).encode(), f"%({name})b".encode())
    return template


def _request() -> TaskRequest:
    return TaskRequest(input=_mark("said"), metadata={"order": _NUMBERS["order"], "customer": _mark("customer")})


def _templates(status: Status) -> list[bytes]:
    """The events of a task, and its record."""

    def stamp(n: int) -> events.Stamp:
        return events.Stamp(_mark(f"id{n}"), _mark("task"), _mark("tenant"), n, _mark(f"time{n}"))

    usage = Usage(_NUMBERS["input"], _NUMBERS["output"])
    seconds = {
        f"{name}_seconds": value
        for name, value in zip(("queued", "first_token", "total"), _SECONDS.values(), strict=True)
    }
    timings = Timings(**seconds)
    text = _mark("text")
    queued = events.TaskQueued(
        *stamp(0),
        request=_request(),
        pool="default",
        priority="normal",
        fingerprint=_mark("fingerprint"),
        accepted_at=_mark("time0"),
    )
    claimed = events.StepClaimed(
        *stamp(1),
        step="1",
        gen=0,
        message=_NUMBERS["message"],
        worker=_mark("worker"),
        delivery=1,
        turn=1,
        attempt=1,
        provider="scripted",
        model="scripted",
        base=1,
    )
    delta = events.OutputDelta(*stamp(2), turn=1, text=text)
    completed = events.TurnCompleted(*stamp(3), turn=1, text=text, finish_reason="stop", usage=usage, timings=timings)
    end = _end(stamp(4), status, text, usage, timings)
    record = TaskRecord(
        id=_mark("task"),
        tenant=_mark("tenant"),
        status=status,
        pool="default",
        priority="normal",
        created_at=_mark("time0"),
        updated_at=_mark("time4"),
        sequence=_NUMBERS["end"],
        turn=1,
        output=None if isinstance(end, events.TaskFailed) else text,
        usage=usage,
        error=end.error if isinstance(end, events.TaskFailed) else None,
        timings=end.timings if isinstance(end, events.TaskCompleted) else None,
        model="scripted",
        metadata=queued.request.metadata,
    )
    return [_marked(encode(each)) for each in (queued, claimed, delta, completed, end, record)]


def _end(
    stamp: events.Stamp, status: Status, text: str, usage: Usage, timings: Timings
) -> events.TaskCompleted | events.TaskFailed | events.TaskCancelled | events.TaskExpired:
    if status == "failed":
        return events.TaskFailed(*stamp, error=ErrorInfo(code="provider-bad-request", message=text))
    if status == "cancelled":
        return events.TaskCancelled(*stamp, output=text, by="http", reason="no longer wanted")
    if status == "expired":
        return events.TaskExpired(*stamp, output=text)
    return events.TaskCompleted(*stamp, output=text, usage=usage, timings=timings)


def journal_subjects(made: Made) -> tuple[str, str]:
    """Where its milestones go, and its deltas."""
    return subjects.journal_log(made.tenant, made.task), subjects.journal_delta(made.tenant, made.task)

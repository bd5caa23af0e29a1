"""What is left over of tasks: records without a journal, messages and timers of tasks that have ended.

None of it keeps anybody from anything: it only takes room.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from contracts import subjects
from contracts.errors import InvalidName, TaskmeshError
from contracts.messages.envelope import read_envelope
from contracts.streams import BACKLOG, TASKS, TASKS_BUCKET, TIMERS, TOOLS, TURNS
from mesh import faults
from mesh.broker.direct_get import Stored
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable
from mesh.journal.journal import Journal
from mesh.journal.settling import settle
from steward.sweeps.journals import Task, standings
from steward.sweeps.sweep import Sweep

log = structlog.get_logger("steward.sweeps")

MESSAGE_AGE = timedelta(hours=1)
"""A message of a task that has ended is settled by whoever gets it; this one nobody has got for so long."""
TIMER_AGE = timedelta(hours=1)
"""Whoever ends a task takes its timers away."""
_RECORD_PREFIX = f"$KV.{TASKS_BUCKET.name}."
_TIMER_PARTS = 6


def sweeps(requests: Requests, record_age: timedelta) -> list[Sweep]:
    """All of them. `record_age`: how old a record is before it may be one that came late."""
    records = Sweep(
        "records",
        TASKS_BUCKET.stream_name,
        record_age,
        lambda messages: without_journal(requests, messages),
    )
    timers = Sweep("timers", TIMERS.name, TIMER_AGE, lambda messages: of_ended_tasks(requests, messages))
    queues = [
        Sweep(
            stream.name.lower(),
            stream.name,
            MESSAGE_AGE,
            lambda messages, name=stream.name: forgotten(requests, name, messages),  # type: ignore[misc]
        )
        for stream in (TASKS, BACKLOG, TURNS, TOOLS)
    ]
    return [records, timers, *queues]


async def without_journal(requests: Requests, records: list[Stored]) -> int:
    """Purge records whose journals are gone: of a writer that slept meanwhile, or of a steward that died."""
    named = {task: record for record in records if (task := _task_of_record(record.subject)) is not None}
    found = await standings(requests, named)
    left_over = [task for task, standing in found.items() if standing in ("packed", "absent")]
    for task in left_over:
        # Up to the one that was looked at: who writes it anew has a reason.
        await requests.purge(TASKS_BUCKET.stream_name, named[task].subject, named[task].sequence + 1)
        faults.reach("after-sweep", "record")
    return len(left_over)


async def of_ended_tasks(requests: Requests, timers: list[Stored]) -> int:
    """Purge timers of tasks that are over: they would fire in vain."""
    named: dict[str, Task] = {}
    for timer in timers:
        task = _task_of_timer(timer.subject)
        if task is not None:
            named[timer.subject] = task
    found = await standings(requests, set(named.values()))
    left_over = [subject for subject, task in named.items() if found[task] != "living"]
    for subject in left_over:
        await requests.purge(TIMERS.name, subject)
        faults.reach("after-sweep", "timer")
    return len(left_over)


async def forgotten(requests: Requests, stream: str, messages: list[Stored]) -> int:
    """Settle messages of tasks that have ended: of a pool or a tool that nobody serves any more."""
    named: dict[int, Task] = {}
    steps: dict[int, str] = {}
    for message in messages:
        envelope = read_envelope(message.payload, message.subject)
        if envelope is not None and envelope.step is not None:
            named[message.sequence] = (envelope.tenant, envelope.task)
            steps[message.sequence] = envelope.step.step
    found = await standings(requests, set(named.values()))
    swept = 0
    for sequence, (tenant, task) in named.items():
        standing = found[tenant, task]
        if standing == "living" or (standing == "absent" and stream in (TASKS.name, BACKLOG.name)):
            continue  # An absent one of these may have been accepted, and have still to begin. Others are gone.
        if standing == "ended":
            try:
                journal = await Journal.load(requests, tenant, task)
                await settle(requests, journal.state, (steps[sequence],), None)
            except BrokerUnavailable:
                raise
            except TaskmeshError as error:
                log.error("retention.unreadable", task=task, tenant=tenant, error=str(error))
                continue
        swept += await requests.delete_message(stream, sequence)
        faults.reach("after-sweep", "message")
    return swept


def _task_of_record(subject: str) -> Task | None:
    tenant, _, task = subject.removeprefix(_RECORD_PREFIX).partition(".")
    return _checked(tenant, task)


def _task_of_timer(subject: str) -> Task | None:
    """The task of a timer that its end makes useless; None of others: a `room` may be about one that has not begun."""
    parts = subject.split(".")
    if len(parts) != _TIMER_PARTS or parts[1] != "at" or parts[2] not in ("approval", "retry", "deadline"):
        return None
    return _checked(parts[3], parts[4])


def _checked(tenant: str, task: str) -> Task | None:
    try:
        return subjects.check_tenant(tenant), subjects.check_task(task)
    except InvalidName:
        return None  # Nobody's task: it is for people to look at.

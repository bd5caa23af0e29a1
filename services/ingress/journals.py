"""Reading the journal of a task that a client asks about."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from contracts import subjects
from contracts.errors import InvalidName, InvalidPayload
from contracts.records.status import TaskRecord
from mesh.archive.lookup import find
from mesh.broker.requests import Requests
from mesh.errors import JournalNotUnderstood
from mesh.journal.following import TaskNotFound
from mesh.journal.journal import Journal
from mesh.journal.warm import WarmJournals
from mesh.task.state import TaskState

log = structlog.get_logger("ingress.journals")


async def read_journal(
    journals: WarmJournals, tenant: str, task: str, shows: Callable[[TaskState], bool] = lambda state: state.exists
) -> Journal:
    """A journal, folded until it shows what is asked for, or up to what the stream's leader has.

    So an answer that says no is only given after a look at the leader (rule 11). Raises `TaskNotFound`,
    `JournalNotUnderstood`, `BrokerUnavailable`.
    """
    try:
        journal = await journals.open(tenant, task)
        await journal.catch_up_with_leader(shows)
    except InvalidPayload as error:
        raise not_understood("journal", tenant, task, error) from None
    if not journal.state.exists:
        raise TaskNotFound(f"there is no task {task}")
    return journal


async def packed_record(requests: Requests, tenant: str, task: str) -> TaskRecord | None:
    """The record of a task that was packed; None if it was not. Raises `JournalNotUnderstood`, `BrokerUnavailable`."""
    try:
        packed = await find(requests, tenant, task)
    except InvalidPayload as error:
        raise not_understood("pack", tenant, task, error) from None
    return None if packed is None else packed.record


def not_understood(what: str, tenant: str, task: str, error: InvalidPayload) -> JournalNotUnderstood:
    """What is to be raised: no fault of who asks, since another version has written it. It is logged here."""
    log.error("journal.not_understood", task=task, tenant=tenant, error=str(error))
    return JournalNotUnderstood(f"this version can't read the {what} of task {task}")


def checked_task(task: str) -> str:
    """A task's id as a client wrote it. Raises `TaskNotFound`."""
    try:
        return subjects.check_task(task)
    except InvalidName:
        # What can't be an id is no task: absent and impossible look the same.
        raise TaskNotFound("there is no such task") from None

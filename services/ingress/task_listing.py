"""Listing tasks, the most recently changed first, straight from the stream under the bucket `tasks`.

Each change of a record moves it to the end of that stream, so the newest are read by going backwards from the
end in windows that grow. `kv.keys()` would read every key, and leave a consumer behind.
"""

from __future__ import annotations

from contextlib import aclosing

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.status import Status, TaskList, TaskRecord
from mesh.broker.direct_get import last_sequence
from mesh.broker.requests import Requests
from mesh.broker.reverse_scan import windows

SCAN_MAX = 20_000
"""Records looked at for one page; a page may end early, with a cursor to go on."""


async def list_tasks(
    requests: Requests, tenant: str, *, status: Status | None, limit: int, cursor: str | None
) -> TaskList:
    """A page of a tenant's tasks. `cursor` is the bucket sequence that the page ends before.

    Raises `InvalidPayload` for a cursor that is none, `BrokerUnavailable`.
    """
    before = await first_before(requests, "KV_tasks", cursor)
    subject_filter = f"$KV.tasks.{subjects.check_tenant(tenant)}.*"
    found: list[TaskRecord] = []
    scanned = 0
    async with aclosing(windows(requests, "KV_tasks", subject_filter, before)) as read:
        async for window in read:
            for message in window.messages:
                if not message.payload:
                    continue  # A deleted key leaves an empty marker.
                scanned += 1
                task = decode(message.payload, TaskRecord)
                if status is None or task.status == status:
                    found.append(task)
                    if len(found) == limit:
                        return TaskList(tasks=found, cursor=str(message.sequence))
            if scanned >= SCAN_MAX:
                return TaskList(tasks=found, cursor=str(window.start))
    return TaskList(tasks=found, cursor=None)


async def first_before(requests: Requests, stream: str, cursor: str | None) -> int:
    """The sequence that a page ends before: its cursor, or the end of the stream.

    Raises `InvalidPayload` for a cursor that is none, `BrokerUnavailable`.
    """
    after_page = _parse_cursor(cursor) if cursor is not None else None
    end = await last_sequence(requests, stream) + 1
    # Never from beyond the end: there are no windows to look at there, only time to lose.
    return end if after_page is None else min(end, after_page)


def _parse_cursor(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:  # noqa: PLR2004 - digits of 64 bits
        raise InvalidPayload("cursor: not a cursor of this list")
    return int(cursor)

"""Listing tasks, the most recently changed first, straight from the stream under the bucket `tasks`.

Each change of a record moves it to the end of that stream, so the newest are read by going backwards from the
end in windows that grow. `kv.keys()` would read every key, and leave a consumer behind.
"""

from __future__ import annotations

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.status import Status, TaskList, TaskRecord
from mesh.reading import last_sequence, read_page
from mesh.requests import Requests

WINDOW_FIRST = 256
WINDOW_RECORDS_MAX = 4096
"""A window that holds more of the tenant is made smaller; one that holds few grows, as the broker skips the others."""
SCAN_MAX = 20_000
"""Records looked at for one page; a page may end early, with a cursor to go on."""


async def list_tasks(
    requests: Requests, tenant: str, *, status: Status | None, limit: int, cursor: str | None
) -> TaskList:
    """A page of a tenant's tasks. `cursor` is the bucket sequence that the page ends before.

    Raises `InvalidPayload` for a cursor that is none, `BrokerUnavailable`.
    """
    after_page = _parse_cursor(cursor) if cursor is not None else None
    before = await last_sequence(requests, "KV_tasks") + 1
    if after_page is not None:
        # Never from beyond the end: there are no windows to look at there, only time to lose.
        before = min(before, after_page)
    subject_filter = f"$KV.tasks.{subjects.check_tenant(tenant)}.*"
    found: list[TaskRecord] = []
    scanned = 0
    window = WINDOW_FIRST
    while before > 1:
        start = max(0, before - 1 - window)
        records = await _read_window(requests, subject_filter, start, before)
        if records is None:
            window = max(1, window // 16)
            continue
        for sequence, task in reversed(records):
            before = sequence
            scanned += 1
            if status is None or task.status == status:
                found.append(task)
                if len(found) == limit:
                    return TaskList(tasks=found, cursor=str(before))
        before = start + 1
        if scanned >= SCAN_MAX:
            return TaskList(tasks=found, cursor=str(before))
        window *= 4
    return TaskList(tasks=found, cursor=None)


def _parse_cursor(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:  # noqa: PLR2004 - digits of 64 bits
        raise InvalidPayload("cursor: not a cursor of this list")
    return int(cursor)


async def _read_window(
    requests: Requests, subject_filter: str, after: int, before: int
) -> list[tuple[int, TaskRecord]] | None:
    """Records with sequences between `after` and `before`, both exclusive, in order; None if they are too many."""
    records: list[tuple[int, TaskRecord]] = []
    more = True
    while more:
        messages, more = await read_page(requests, "KV_tasks", subject_filter, after)
        for message in messages:
            if message.sequence >= before:
                return records
            after = message.sequence
            if message.payload:  # a deleted key leaves an empty marker
                records.append((message.sequence, decode(message.payload, TaskRecord)))
        if len(records) > WINDOW_RECORDS_MAX:
            return None
    return records

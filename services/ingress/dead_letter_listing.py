"""Reading dead letters: a tenant's, the newest first, and those of one task.

A record says what gave up, and never changes. Whether it is still open is what the status record of its task says,
which is written before it; so those are read in a batch for each few records.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import structlog

from contracts import subjects
from contracts.api.dead_letters import (
    ERROR_CHARACTERS_LISTED_MAX,
    RECORDS_SHOWN_BYTES_MAX,
    RECORDS_SHOWN_MAX,
    DeadLetterList,
    ListedDeadLetter,
    ShownDeadLetter,
)
from contracts.codec import decode
from contracts.errors import ErrorInfo, InvalidName, InvalidPayload
from contracts.messages.work import DeadLetter
from contracts.records.status import OpenDeadLetter, TaskRecord
from contracts.streams import DEAD_LETTERS, TASKS_BUCKET
from ingress.task_listing import first_before
from mesh.broker import key_value
from mesh.broker.direct_get import Stored, read_sequence
from mesh.broker.requests import Requests
from mesh.broker.reverse_scan import windows
from mesh.task.state import StepKey

log = structlog.get_logger("ingress.dead_letter_listing")

SCAN_MAX = 20_000
SCAN_BYTES_MAX = 64 * 1024 * 1024
"""Records looked at for one page, and their size; a page may end early, with a cursor to go on."""
TASKS_AT_ONCE_MAX = 100
"""Status records that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are asked for. `since` is inclusive, `until` is not; both are held against `time`."""

    tool: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    only_open: bool = True

    def takes(self, letter: ListedDeadLetter) -> bool:
        """Whether a dead letter fits, but for being open."""
        return (
            (self.tool is None or letter.tool == self.tool)
            and (self.code is None or letter.error.code == self.code)
            and (self.since is None or letter.time >= self.since)
            and (self.until is None or letter.time < self.until)
        )


async def list_dead_letters(
    requests: Requests, tenant: str, wanted: Filter, *, limit: int, cursor: str | None
) -> DeadLetterList:
    """A page of a tenant's dead letters. `cursor` is the sequence in DEAD_LETTERS that the page ends before.

    Raises `InvalidPayload` for a cursor that is none, `BrokerUnavailable`.
    """
    before = await first_before(requests, DEAD_LETTERS.name, cursor)
    subject_filter = f"dead.{subjects.check_tenant(tenant)}.*"
    found: list[ListedDeadLetter] = []
    seen: set[tuple[str | None, str | None, int | None]] = set()
    scanned = scanned_bytes = 0
    async with aclosing(windows(requests, DEAD_LETTERS.name, subject_filter, before)) as read:
        async for window in read:
            scanned += len(window.messages)
            scanned_bytes += sum(len(message.payload) for message in window.messages)
            letters = [letter for letter in map(listed, window.messages) if letter is not None and wanted.takes(letter)]
            for first in range(0, len(letters), TASKS_AT_ONCE_MAX):
                some = letters[first : first + TASKS_AT_ONCE_MAX]
                open_of = await _open_of(requests, tenant, {letter.task for letter in some if letter.task is not None})
                for letter in some:
                    if letter.task is not None:
                        # Whoever met the open dead letter later on may have written its record again.
                        key = (letter.task, letter.step, letter.gen)
                        if key in seen:
                            continue
                        seen.add(key)
                    is_open = letter.task is None or (letter.step, letter.gen) in open_of.get(letter.task, ())
                    if wanted.only_open and not is_open:
                        continue
                    found.append(msgspec.structs.replace(letter, open=is_open))
                    if len(found) == limit:
                        return DeadLetterList(dead_letters=found, cursor=str(letter.record_sequence))
            if scanned >= SCAN_MAX or scanned_bytes >= SCAN_BYTES_MAX:
                return DeadLetterList(dead_letters=found, cursor=str(window.start))
    return DeadLetterList(dead_letters=found, cursor=None)


async def read_dead_letters(
    requests: Requests, tenant: str, task: str, open_now: Sequence[OpenDeadLetter]
) -> tuple[list[ShownDeadLetter], bool]:
    """The records of a task in full, the newest first, and whether there are older ones. Raises `BrokerUnavailable`."""
    subject = subjects.dead_letter(tenant, task)
    before = await first_before(requests, DEAD_LETTERS.name, None)
    open_steps = {(letter.step, letter.gen) for letter in open_now}
    found: list[ShownDeadLetter] = []
    size = 0
    async with aclosing(windows(requests, DEAD_LETTERS.name, subject, before)) as read:
        async for window in read:
            for message in window.messages:
                letter = _read(message)
                if letter is None:
                    continue
                size += len(message.payload)
                if len(found) == RECORDS_SHOWN_MAX or (found and size > RECORDS_SHOWN_BYTES_MAX):
                    return found, True
                found.append(_shown(message, letter, is_open=(letter.step, letter.gen) in open_steps))
    return found, False


async def read_malformed(requests: Requests, tenant: str, record_sequence: int) -> ShownDeadLetter | None:
    """The record of a message that was no work; None if there is none of the tenant. Raises `BrokerUnavailable`."""
    message = await read_sequence(requests, DEAD_LETTERS.name, record_sequence)
    if message is None or message.subject != subjects.malformed_dead_letter(tenant):
        return None
    letter = _read(message)
    return None if letter is None else _shown(message, letter, is_open=True)


def listed(message: Stored) -> ListedDeadLetter | None:
    """A record as the list has it; None for what is no record, or not of the subject that it is on."""
    letter = _read(message)
    if letter is None:
        return None
    last = letter.errors[-1]
    return ListedDeadLetter(
        record_sequence=message.sequence,
        id=letter.id,
        time=letter.time,
        open=True,
        error=ErrorInfo(last.code, last.message[:ERROR_CHARACTERS_LISTED_MAX]),
        stream=letter.stream,
        subject=letter.subject,
        deliveries=letter.deliveries,
        tenant=letter.tenant,
        task=letter.task,
        step=letter.step,
        gen=letter.gen,
        tool=_tool_of(letter),
        tries=letter.tries,
        worker=letter.worker,
        provider=letter.provider,
        model=letter.model,
        traceparent=letter.traceparent,
    )


def _shown(message: Stored, letter: DeadLetter, *, is_open: bool) -> ShownDeadLetter:
    fields: dict[str, Any] = msgspec.structs.asdict(letter)
    return ShownDeadLetter(**fields, record_sequence=message.sequence, open=is_open, tool=_tool_of(letter))


def _read(message: Stored) -> DeadLetter | None:
    try:
        letter = decode(message.payload, DeadLetter)
        if message.subject != _subject_of(letter):
            raise InvalidPayload(f"its record belongs on {_subject_of(letter)}")
    except (InvalidPayload, InvalidName) as error:
        # Anybody may have written it: it must not hide the others.
        log.warning("dead_letter.unreadable", subject=message.subject, record=message.sequence, error=str(error))
        return None
    return letter


def _subject_of(letter: DeadLetter) -> str:
    if letter.task is None or letter.tenant is None:
        return subjects.malformed_dead_letter(letter.tenant)
    return subjects.dead_letter(letter.tenant, letter.task)


def _tool_of(letter: DeadLetter) -> str | None:
    try:
        return subjects.parse_tools(letter.subject) if letter.stream == "TOOLS" else None
    except InvalidName:
        return None


async def _open_of(requests: Requests, tenant: str, tasks: set[str]) -> dict[str, set[StepKey]]:
    """Which steps of each of these tasks wait to be repaired."""
    keys = [subjects.task_key(tenant, task) for task in sorted(tasks)]
    entries = await key_value.get_many(requests, TASKS_BUCKET.name, keys) if keys else {}
    records = [decode(entry.value, TaskRecord) for entry in entries.values() if entry.value]
    return {record.id: {(each.step, each.gen) for each in record.dead_letters or []} for record in records}

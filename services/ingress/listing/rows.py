"""What the index keeps of a record: what a list shows of it, compressed, and the labels that it is found by. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from contracts.api.dead_letters import ListedDeadLetter
from contracts.codec import decode, encode
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.journal.parts import Timings, Usage
from contracts.records.status import OpenApproval, OpenQuestion, TaskRecord
from ingress.listing.keys import EVERY, OPEN, hashed_label, scalar_text, status_label
from mesh.archive.pack import summary

T = TypeVar("T", TaskRecord, ListedDeadLetter)
Item = TypeVar("Item", OpenApproval, OpenQuestion)

WAITS_BYTES_MAX = 2 * 1024
"""What a list shows of the approvals and questions of a task: those that fit. The task itself has all of them."""
_LEVEL = 6
_WINDOW_BITS = -10
_MEMORY_LEVEL = 5
"""A row has some hundred bytes: a larger window costs five times the time, and saves nothing (measured)."""
_ROW_BYTES_MAX = 1024 * 1024


def shown(record: TaskRecord) -> TaskRecord:
    """A task's record as lists show it: without its output, and with what it waits for as far as that is small."""
    kept = summary(record)
    if not record.approvals and not record.questions:
        return kept
    approvals, left = _fitting(record.approvals or [], WAITS_BYTES_MAX)
    questions, _ = _fitting(record.questions or [], left)
    return msgspec.structs.replace(kept, approvals=approvals or None, questions=questions or None)


def _fitting(items: Sequence[Item], bytes_max: int) -> tuple[list[Item], int]:
    """Those that fit, in their order, and the bytes that are left."""
    found: list[Item] = []
    for item in items:
        size = len(encode(item))
        if size <= bytes_max:
            found.append(item)
            bytes_max -= size
    return found, bytes_max


def task_labels(record: TaskRecord) -> set[int]:
    """What a task is found by: its status, and each value of its metadata."""
    labels = {metadata_label(key, scalar_text(value)) for key, value in (record.metadata or {}).items()}
    labels.add(status_label(record.status))
    return labels


def metadata_label(key: str, text: str) -> int:
    """The label of tasks with this value in their metadata."""
    return hashed_label(f"metadata.{key}", text)


def letter_labels(letter: ListedDeadLetter) -> set[int]:
    """What a dead letter is found by: that it is one, whether it is open, its tool and its code."""
    labels = {EVERY, code_label(letter.error.code)}
    if letter.open:
        labels.add(OPEN)
    if letter.tool is not None:
        labels.add(tool_label(letter.tool))
    return labels


def tool_label(tool: str) -> int:
    """The label of dead letters of calls of a tool."""
    return hashed_label("tool", tool)


def code_label(code: str) -> int:
    """The label of dead letters whose last error has this code."""
    return hashed_label("code", code)


def packed(row: TaskRecord | ListedDeadLetter) -> bytes:
    """A row as the index keeps it: its JSON, compressed with a dictionary of what most rows say."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zdict=DICTIONARY)
    return packer.compress(encode(row)) + packer.flush()


def unpacked(row: bytes, kind: type[T]) -> T:
    """The row of these bytes. Raises `InvalidPayload`."""
    try:
        return decode(zlib.decompressobj(_WINDOW_BITS, DICTIONARY).decompress(row, _ROW_BYTES_MAX), kind)
    except zlib.error as error:
        raise InvalidPayload(f"not a row: {error}") from None


def _dictionary() -> bytes:
    """JSON with the names and values that most rows have; what is more common stands closer to the end."""
    at, some = datetime(2026, 1, 31, 9, 30, tzinfo=UTC), "0" * 26
    letter = ListedDeadLetter(
        record_sequence=1,
        id=some,
        time=at,
        open=True,
        error=ErrorInfo("provider-unavailable", "tool-error"),
        stream="TOOLS",
        subject="tasks.default.normal.default",
        deliveries=10,
        tenant="default",
        task=some,
        step="1-0",
        gen=0,
        tool="http_get",
        tries=5,
        worker="inference_worker-1@",
        provider="openai",
        model="gpt",
        traceparent="00-",
    )
    task = TaskRecord(
        id=some,
        tenant="default",
        status="completed",
        pool="default",
        priority="normal",
        created_at=at,
        updated_at=at,
        sequence=1,
        turn=1,
        usage=Usage(1, 1),
        error=ErrorInfo("provider-bad-request", ""),
        timings=Timings(queued_seconds=0.01, first_token_seconds=0.01, total_seconds=0.01),
        model="scripted/default",
        metadata={"order": 1},
    )
    return encode(letter) + encode(msgspec.structs.replace(task, status="failed")) + encode(task)


DICTIONARY = _dictionary()

"""Where a row stands in a list, as a number of microseconds and an id; and the labels that rows are found by. Pure."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from contracts.errors import InvalidPayload
from contracts.identifiers import id_number, id_of_number
from contracts.records.status import STATUSES, Status
from contracts.subjects import TASK_PATTERN

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TASK_CURSOR = re.compile(rf"([0-9]{{1,18}})\.({TASK_PATTERN})")
_LETTER_CURSOR = re.compile(r"([0-9]{1,18})\.([1-9][0-9]{0,17})")
ID_BYTES = 17
"""An id has 26 characters of 5 bits."""

EVERY = 0
OPEN = 1
"""Labels of dead letters: of each that is listed, and of each that is open."""
_HASHED = 1 << 62
"""What labels by hash begin at: none is one of the few that are counted."""


class Key(NamedTuple):
    """A row's place: lists go from the highest key down. `id`: a task's, as bytes, or a record's sequence."""

    time: int
    id: bytes | int


def microseconds(time: datetime) -> int:
    """A time as microseconds since 1970; what is before that counts as 0."""
    return max(0, (time - _EPOCH) // _MICROSECOND)


def id_bytes(task: str) -> bytes:
    """A task's id as bytes, in the order of ids."""
    return id_number(task).to_bytes(ID_BYTES, "big")


def id_text(packed: bytes) -> str:
    """The id that these bytes are of."""
    return id_of_number(int.from_bytes(packed, "big"))


def task_cursor(key: Key) -> str:
    """A place in a list of tasks, as text. It means the same to each ingress."""
    assert isinstance(key.id, bytes)  # noqa: S101 - tasks have no other
    return f"{key.time}.{id_text(key.id)}"


def parse_task_cursor(cursor: str) -> Key:
    """The first place of a page. Raises `InvalidPayload`."""
    match = _TASK_CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidPayload("cursor: not a cursor of this list")
    return Key(int(match[1]), id_bytes(match[2]))


def letter_cursor(key: Key) -> str:
    """A place in a list of dead letters, as text."""
    assert isinstance(key.id, int)  # noqa: S101 - dead letters have no other
    return f"{key.time}.{key.id}"


def parse_letter_cursor(cursor: str) -> Key:
    """The first place of a page. Raises `InvalidPayload`."""
    match = _LETTER_CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidPayload("cursor: not a cursor of this list")
    return Key(int(match[1]), int(match[2]))


def status_label(status: Status) -> int:
    """The label of a task's status."""
    return STATUSES.index(status)


def hashed_label(name: str, value: str) -> int:
    """The label of a named value, of 62 bits. Two values may share one: who reads a row looks at the value itself."""
    data = f"{len(name)}:{name}{value}".encode("utf-8", "surrogatepass")
    return _HASHED | int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 2


def scalar_text(value: str | int | bool) -> str:
    """A value of metadata as filters have it: a text as it is, else its JSON (`42`, `true`)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)

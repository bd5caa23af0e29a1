"""Reading what a client sent: headers, queries, bodies. Pure, and strict."""

from __future__ import annotations

import re

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.inputs import TaskInput
from contracts.openapi import LIST_DEFAULT, LIST_MAX
from contracts.status import STATUSES, Status
from contracts.tasks import IDEMPOTENCY_KEY_CHARACTERS_MAX, WAIT_SECONDS_MAX, TaskRequest

_WAIT = re.compile(r"\s*wait\s*=\s*([0-9]{1,6})\s*", re.IGNORECASE)
_KEY = re.compile(r"[\x20-\x7e]+")


def parse_task_request(body: bytes, pools: tuple[str, ...]) -> TaskRequest:
    """The task that a body asks for. Raises `InvalidPayload`."""
    request = decode(body, TaskRequest)
    if request.pool not in pools:
        raise InvalidPayload(f"there is no pool {request.pool!r}; there is {', '.join(pools)}")
    return request


def parse_task_input(body: bytes) -> TaskInput:
    """What a body says to a task. Raises `InvalidPayload`."""
    said: TaskInput = decode(body, TaskInput)  # type: ignore[arg-type]  # a union is no type to mypy
    return said


def parse_idempotency_key(value: str | None) -> str | None:
    """1 to 255 printable ASCII characters. Raises `InvalidPayload`."""
    if value is None:
        return None
    if len(value) > IDEMPOTENCY_KEY_CHARACTERS_MAX or _KEY.fullmatch(value) is None:
        raise InvalidPayload(
            f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} printable ASCII characters"
        )
    return value


def parse_wait_seconds(prefer: str | None) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most `WAIT_SECONDS_MAX`; 0 without one.

    Preferences that are not understood are ignored, as the RFC wants it.
    """
    for preference in (prefer or "").split(","):
        match = _WAIT.fullmatch(preference.partition(";")[0])
        if match is not None:
            return min(int(match[1]), WAIT_SECONDS_MAX)
    return 0


def parse_status(value: str | None) -> Status | None:
    """A status to list by. Raises `InvalidPayload`."""
    if value is None or value in STATUSES:
        return value
    raise InvalidPayload(f"status: must be one of {', '.join(STATUSES)}")


def parse_limit(value: str | None) -> int:
    """How many tasks to list. Raises `InvalidPayload`."""
    if value is None:
        return LIST_DEFAULT
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= LIST_MAX):  # noqa: PLR2004 - digits
        raise InvalidPayload(f"limit: must be between 1 and {LIST_MAX}")
    return int(value)

"""Reading what a client sent: headers, queries, bodies. Pure, and strict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from contracts.api.dead_letters import ReplayRequest
from contracts.api.inputs import TaskInput
from contracts.api.links import LinkRequest
from contracts.codec import decode
from contracts.errors import InvalidName, InvalidPayload
from contracts.generation.openapi_parts import LIST_DEFAULT, LIST_MAX, METADATA_FILTERS_MAX
from contracts.links import LINK_SECONDS_DEFAULT, LINK_SECONDS_MAX
from contracts.records.status import STATUSES, Status
from contracts.subjects import check_tool
from contracts.tasks import IDEMPOTENCY_KEY_CHARACTERS_MAX, WAIT_SECONDS_MAX, TaskRequest
from ingress.listing.filters import LetterFilter, TaskFilter

_WAIT = re.compile(r"\s*wait\s*=\s*([0-9]{1,6})\s*", re.IGNORECASE)
_LINK = re.compile(r"\s*link\s*(?:=\s*([1-9][0-9]{0,5})\s*)?", re.IGNORECASE)
_KEY = re.compile(r"[\x20-\x7e]+")
_CODE = re.compile(r"[\x21-\x7e]{1,128}")
_METADATA = "metadata."
_RECORD = re.compile(r"[1-9][0-9]{0,17}")


def parse_task_request(body: bytes) -> TaskRequest:
    """The task that a body asks for. Raises `InvalidPayload`."""
    return decode(body, TaskRequest, whole_numbers=True)


def check_pool(request: TaskRequest, pools: tuple[str, ...]) -> TaskRequest:
    """Hold a task against the pools that there are, whoever has named its own. Raises `InvalidPayload`."""
    if request.pool not in pools:
        raise InvalidPayload(f"there is no pool {request.pool!r}; there is {', '.join(pools)}")
    return request


def parse_task_input(body: bytes) -> TaskInput:
    """What a body says to a task. Raises `InvalidPayload`."""
    said: TaskInput = decode(body, TaskInput, whole_numbers=True)  # type: ignore[arg-type]  # a union is no type to mypy
    return said


def parse_replay_request(body: bytes) -> ReplayRequest:
    """What a replay is to do. Raises `InvalidPayload`."""
    return decode(body, ReplayRequest, whole_numbers=True)


def parse_link_request(body: bytes) -> LinkRequest:
    """What a link is to be like. Raises `InvalidPayload`."""
    return decode(body, LinkRequest, whole_numbers=True)


def parse_task_filter(query: Iterable[tuple[str, str]]) -> TaskFilter:
    """Which tasks to list. Raises `InvalidPayload`."""
    pairs = list(query)
    named = dict(pairs)
    metadata = [(name.removeprefix(_METADATA), value) for name, value in pairs if name.startswith(_METADATA)]
    if len(metadata) > METADATA_FILTERS_MAX:
        raise InvalidPayload(f"metadata.<key>: {len(metadata)} are too many; {METADATA_FILTERS_MAX} may be asked for")
    if any(not key for key, _ in metadata):
        raise InvalidPayload("metadata.<key>: has no key, as in metadata.order=42")
    since, until = (_parse_time(name, named.get(name)) for name in ("since", "until"))
    return TaskFilter(status=parse_status(named.get("status")), metadata=tuple(metadata), since=since, until=until)


def parse_dead_letter_filter(query: Mapping[str, str]) -> LetterFilter:
    """Which dead letters to list. Raises `InvalidPayload`."""
    tool, code, every = query.get("tool"), query.get("code"), query.get("all", "false")
    try:
        tool = check_tool(tool) if tool is not None else None
    except InvalidName as error:
        raise InvalidPayload(f"tool: {error}") from None
    if code is not None and _CODE.fullmatch(code) is None:
        raise InvalidPayload("code: must have 1 to 128 printable ASCII characters, no spaces")
    if every not in ("true", "false"):
        raise InvalidPayload("all: must be true or false")
    since, until = (_parse_time(name, query.get(name)) for name in ("since", "until"))
    return LetterFilter(tool=tool, code=code, since=since, until=until, only_open=every == "false")


def parse_record_sequence(value: str) -> int | None:
    """The number of a record in DEAD_LETTERS; None for what can't be one."""
    return int(value) if _RECORD.fullmatch(value) else None


def _parse_time(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        # A "+" that was not escaped is a space in a query.
        time = datetime.fromisoformat(value.replace(" ", "+")) if value.isascii() else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidPayload(f"{name}: must be a time with its offset, as 2026-01-31T09:30:00Z (RFC 3339)")
    return time


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
    match = _preference(prefer, _WAIT)
    return min(int(match[1]), WAIT_SECONDS_MAX) if match is not None else 0


def parse_link_seconds(prefer: str | None) -> int | None:
    """How long a link is to hold that `Prefer: link` or `link=N` asks for, at most `LINK_SECONDS_MAX`; None without."""
    match = _preference(prefer, _LINK)
    if match is None:
        return None
    return min(int(match[1]), LINK_SECONDS_MAX) if match[1] else LINK_SECONDS_DEFAULT


def _preference(prefer: str | None, wanted: re.Pattern[str]) -> re.Match[str] | None:
    """The first preference of this form, without its parameters; None if there is none."""
    found = (wanted.fullmatch(each.partition(";")[0]) for each in (prefer or "").split(","))
    return next(filter(None, found), None)


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


def parse_tool_cursor(value: str | None) -> str:
    """The name of the tool that a page begins behind; empty at the beginning. Raises `InvalidPayload`."""
    try:
        return "" if value is None else check_tool(value)
    except InvalidName:
        raise InvalidPayload("cursor: must be the cursor of the page before") from None

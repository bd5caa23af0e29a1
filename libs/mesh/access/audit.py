"""What goes into the audit log of what comes over HTTP: what was done, and what was refused for want of rights.

A route notes what it has done, the door who asks, an error its code; a line is written once the answer is given. What
only reads has no line unless it is refused, nor has a submission: the task's journal says whose it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from contracts.errors import HTTP_STATUS_BY_CODE, TaskmeshError
from contracts.subjects import TASK_PATTERN
from mesh.access.callers import API, Caller
from mesh.access.pace import Pace
from mesh.serving.http import AnyRequest, RequestNote, note_in, with_note
from mesh.telemetry import audit

REFUSALS_BURST: Final = 100
REFUSALS_PER_SECOND: Final = 10.0
"""Refusals beyond these are counted, and have no line: whoever floods a service must not fill its disk."""
LEFT_OUT_SECONDS: Final = 1.0
"""How soon it is said how many had none."""
_AUDITED_STATUS = frozenset({401, 403})

Source = Callable[[HTTPScope], str]
"""Tells where a request came from: an address."""


class Asked(NamedTuple):
    """What a request asks for, by its method and path. `task` is None where the path names none."""

    what: str
    task: str | None


_ASKED: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (method, re.compile(path.replace("{id}", f"(?P<task>{TASK_PATTERN})")), what)
    for method, path, what in (
        ("POST", "/v1/tasks", "submit"),
        ("GET", "/v1/tasks", "list"),
        ("GET", "/v1/tasks/counts", "count"),
        ("GET", "/v1/tasks/{id}", "read"),
        ("POST", "/v1/tasks/{id}/cancel", "cancel"),
        ("POST", "/v1/tasks/{id}/inputs", "input"),
        ("POST", "/v1/tasks/{id}/links", "link"),
        ("GET", "/v1/tasks/{id}/events", "follow"),
        ("POST", "/v1/tasks/cancel", "cancel-many"),
        ("GET", "/v1/valves", "valves"),
        ("PUT", "/v1/valves/limits/[^/]*", "limit"),
        ("DELETE", "/v1/valves/limits/[^/]*", "end-limits"),
        ("PUT", "/v1/valves/[^/]*/[^/]*", "pause"),
        ("DELETE", "/v1/valves/[^/]*/[^/]*", "resume"),
        ("GET", "/v1/tools", "tools"),
        ("GET", "/v1/usage", "usage"),
        ("GET", "/v1/pools", "pools"),
        ("GET", "/v1/pools/[^/]*/load", "load"),
        ("GET", "/v1/dead-letters", "dead-letters"),
        ("GET", "/v1/dead-letters/{id}", "dead-letters"),
        ("DELETE", "/v1/dead-letters/{id}", "drop"),
        ("POST", "/v1/dead-letters/{id}/replay", "replay"),
        ("GET", "/v1/dead-letters/malformed/[^/]*", "dead-letters"),
        ("DELETE", "/v1/dead-letters/malformed/[^/]*", "delete"),
        ("POST", "/v1/dead-letters/malformed/[^/]*/requeue", "requeue"),
    )
)
UNKNOWN: Final = Asked("unknown", None)


def asked(method: str, path: str) -> Asked:
    """What a request asks for. Of a path that is none of the API's nothing is said: it may hold anything."""
    for each, pattern, what in _ASKED:
        match = pattern.fullmatch(path) if each == method else None
        if match is not None:
            return Asked(what, match.groupdict().get("task"))
    return UNKNOWN


def acted(
    request: AnyRequest,
    caller: Caller,
    what: str,
    task: str | None = None,
    *,
    target: str | None = None,
    reason: str | None = None,
) -> None:
    """Note what a request has brought about, or is about to: its line then says what came of it."""
    note = note_in(request.scope)
    if note is not None:
        note.act, note.task, note.tenant, note.by = what, task, caller.tenant, caller.name
        note.target, note.reason = target, reason


class _Refusals:
    """Which refusals have a line, of one process."""

    def __init__(self) -> None:
        self._pace = Pace(REFUSALS_PER_SECOND, REFUSALS_BURST)
        self._left_out = 0

    def take(self) -> bool:
        """Whether one more may be written; else it is counted, and soon told."""
        loop = asyncio.get_running_loop()
        if self._pace.takes(loop.time()):
            return True
        if not self._left_out:
            loop.call_later(LEFT_OUT_SECONDS, self._tell)
        self._left_out += 1
        return False

    def _tell(self) -> None:
        left_out, self._left_out = self._left_out, 0
        audit.tell_left_out(left_out)


def audited(app: ASGIApp, source_of: Source) -> ASGIApp:
    """An application whose acts and refusals have a line in the audit log each. It lies around the door."""
    refusals = _Refusals()

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or not scope["path"].startswith(API):
            await app(scope, receive, send)
            return
        note = RequestNote()
        try:
            await app(with_note(scope, note), receive, send)
        except BaseException:
            note.code = note.code or TaskmeshError.code
            raise
        finally:
            refused = note.code is not None and (
                note.act is not None or HTTP_STATUS_BY_CODE.get(note.code) in _AUDITED_STATUS
            )
            if (refused and refusals.take()) or (note.act is not None and note.code is None):
                _tell(scope, note, source_of)

    return dispatch


def _tell(scope: HTTPScope, note: RequestNote, source_of: Source) -> None:
    by_path = asked(scope["method"], scope["path"])
    audit.tell(
        what=note.act or by_path.what,
        task=note.task or by_path.task,
        tenant=note.tenant,
        target=note.target,
        by=note.by,
        reason=note.reason,
        source=source_of(scope),
        result=note.code or audit.ACCEPTED,
    )

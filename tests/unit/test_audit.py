"""The audit log: what a request asks for, by its path alone, and that what the API has is named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog.testing
from litestar.types import HTTPScope, Receive, Scope, Send

from contracts.generation.openapi import openapi
from mesh.access.audit import REFUSALS_BURST, UNKNOWN, asked, audited
from mesh.access.callers import Identity, identified
from mesh.access.sources import source_of
from mesh.serving.http import RequestRefused, note_in

TASK = "01jh2v0000000000000000000a"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method.upper(), path)
        for path, operations in openapi()["paths"].items()
        if path.startswith("/v1/")
        for method in operations
        if method != "servers"
    ],
)
def test_each_operation_of_the_api_has_a_name(method: str, path: str) -> None:
    """One that is added and has none would be refused, and the log would not say what."""
    told = asked(method, path.replace("{id}", TASK).replace("{pool}", "default").replace("{record_sequence}", "7"))
    assert told != UNKNOWN
    assert told.task == (TASK if "{id}" in path else None)


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/tasks/tm_secret", f"/v1/tasks/{TASK}/x", f"/v1/tasks/{TASK}\n", "/v1/tasks/../x/cancel"]
)
def test_of_another_path_nothing_is_told(path: str) -> None:
    """It may hold anything, a key that somebody has pasted into the wrong place too."""
    assert asked("GET", path) == UNKNOWN
    assert asked("POST", path) == UNKNOWN


# Lines


async def ask(app: Any, path: str = "/v1/tasks", method: str = "GET") -> None:
    """A request, without a server around the application."""

    async def drop(_: Any) -> None:
        pass

    await app({"type": "http", "method": method, "path": path, "headers": [], "client": ("192.0.2.7", 5)}, drop, drop)


async def closed_door(_: HTTPScope) -> Identity:
    raise RequestRefused("unauthorized", "nobody comes in")


async def open_to_ada(_: HTTPScope) -> Identity:
    return Identity("jwt:ada", "acme", frozenset())


def acting(code: str | None, error: BaseException | None = None) -> Any:
    """An application that does something, and is answered with this code."""

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        note = note_in(scope)
        assert note is not None
        note.act, note.code = "cancel", code
        if error is not None:
            raise error

    return app


def came_from(scope: HTTPScope) -> str:
    """Where a request comes from, without front doors."""
    return source_of(scope, ())


async def test_a_flood_of_refusals_is_counted_and_does_not_fill_the_log() -> None:
    app = audited(identified(acting(None), closed_door), came_from)
    with structlog.testing.capture_logs() as lines:
        for _ in range(20 * REFUSALS_BURST):
            await ask(app)
    assert REFUSALS_BURST <= len(lines) < 2 * REFUSALS_BURST
    line = {"what": "list", "source": "192.0.2.7", "result": "unauthorized"}
    nothing = dict.fromkeys(("task", "tenant", "target", "by", "reason"))
    assert lines[0] == {"event": "audit", "log_level": "warning"} | nothing | line


async def test_what_was_done_has_a_line_however_much_was_refused_before() -> None:
    refusing = audited(identified(acting(None), closed_door), came_from)
    for _ in range(2 * REFUSALS_BURST):
        await ask(refusing)
    doing = audited(identified(acting(None), open_to_ada), came_from)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2 * REFUSALS_BURST):
            await ask(doing, f"/v1/tasks/{TASK}/cancel", "POST")
    assert len(lines) == 2 * REFUSALS_BURST
    line = {"what": "cancel", "task": TASK, "tenant": "acme", "by": "jwt:ada", "result": "accepted"}
    assert lines[0].items() >= line.items()


@pytest.mark.parametrize("code", ["conflict", "queue-full", "four-eyes"])
async def test_an_act_that_fails_says_by_what(code: str) -> None:
    with structlog.testing.capture_logs() as lines:
        await ask(audited(identified(acting(code), open_to_ada), came_from))
    assert [line["result"] for line in lines] == [code]


async def test_an_act_of_which_nobody_knows_the_end_is_not_said_to_be_accepted() -> None:
    app = audited(identified(acting(None, asyncio.CancelledError()), open_to_ada), came_from)
    with structlog.testing.capture_logs() as lines, pytest.raises(asyncio.CancelledError):
        await ask(app)
    assert [line["result"] for line in lines] == ["internal"]


async def test_reading_has_no_line() -> None:
    async def reading(*_: Any) -> None:
        pass

    with structlog.testing.capture_logs() as lines:
        await ask(audited(identified(reading, open_to_ada), came_from))
    assert lines == []

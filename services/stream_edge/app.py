"""The HTTP face of the stream edge."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext, suppress

from litestar import Litestar, get
from litestar.types import ASGIApp, Receive, Scope, Send
from opentelemetry.trace import Span, SpanKind

from contracts import headers, subjects
from contracts.errors import InvalidName, InvalidPayload, TaskmeshError
from contracts.fields import whole_number
from mesh.access.callers import Identity, caller_of
from mesh.clock import now
from mesh.journal.following import Following, TaskNotFound
from mesh.serving.http import (
    EXCEPTION_HANDLERS,
    AnyRequest,
    Probe,
    RequestRefused,
    health_routes,
)
from mesh.telemetry import metrics, traces
from stream_edge.stream import HEADERS, stream

CURSOR_DIGITS_MAX = 18
_ROUTE = "/v1/tasks/{task}/events"


class Edge:
    """Streams of one process, counted."""

    def __init__(self, following: Following, streams_max: int, stopping: asyncio.Event) -> None:
        self._following = following
        self._streams_max = streams_max
        self._stopping = stopping
        self.streams = 0

    async def events(self, request: AnyRequest, task: str) -> ASGIApp:
        """`GET /v1/tasks/{id}/events`: the application that sends the stream."""
        caller = caller_of(request, "read", named=request.query_params.get("tenant"))
        tenant = caller.tenant
        checked_task = _task_of(task)
        after = _cursor_of(request)
        previews = _previews_of(request)
        if self._stopping.is_set():
            return _come_back
        if self.streams >= self._streams_max:
            raise RequestRefused("rate-limited", "this edge has as many streams as it may", cause="streams")
        self._count(1)
        try:
            span = await self._span(request, tenant, checked_task, after)
            follower = await self._following.open(tenant, checked_task, after, previews=previews)
        except BaseException:
            self._count(-1)
            raise

        async def send_stream(_: Scope, receive: Receive, send: Send) -> None:
            try:
                with span:
                    if follower is None:
                        await _send_nothing(send)
                    else:
                        await stream(follower, receive, send, self._stopping, _seconds_left(caller.identity))
            finally:
                self._count(-1)

        return send_stream

    def _count(self, by: int) -> None:
        self.streams += by
        metrics.streams_changed(by)

    async def _span(
        self, request: AnyRequest, tenant: str, task: str, after: int
    ) -> AbstractContextManager[Span | None]:
        """The span of a stream, in the task's own trace; in the client's, and linked to the task's, if it brings one.

        The task's trace is that of its first event: one small read for each stream, and none while no spans are made.
        """
        if not traces.spans_enabled():
            return nullcontext()
        of_task: str | None = None
        with suppress(TaskmeshError):  # A stream without its trace is better than none.
            of_task = await self._following.traceparent(tenant, task)
        of_client = traces.parse_traceparent(request.headers.get(headers.TRACEPARENT))
        attributes: dict[str, str | int] = {
            "http.request.method": "GET",
            "http.route": _ROUTE,
            "taskmesh.task": task,
            "taskmesh.tenant": tenant,
            "taskmesh.stream.after": after,
        }
        return traces.span(
            "GET " + _ROUTE, of_client or of_task, SpanKind.SERVER, attributes, of_task if of_client else None
        )


async def _come_back(_: Scope, __: Receive, send: Send) -> None:
    """A stream that ends at once, as all do when an edge stops: EventSource gives up on any other answer."""
    await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_nothing(send: Send) -> None:
    """204 is how a browser's EventSource learns to stop."""
    await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _seconds_left(identity: Identity) -> float | None:
    """How long what a caller has shown still holds; None if nobody knows of an end."""
    return max(0.0, (identity.until - now()).total_seconds()) if identity.until is not None else None


def _task_of(value: str) -> str:
    try:
        return subjects.check_task(value)
    except InvalidName:
        # What can't be an id is no task: absent and impossible look the same.
        raise TaskNotFound("there is no such task") from None


def _cursor_of(request: AnyRequest) -> int:
    """The sequence to go on after. The header is what a browser sends by itself, so it outranks the query."""
    raw = request.headers.get(headers.HTTP_LAST_EVENT_ID) or request.query_params.get("after")
    if raw is None or raw == "":
        return 0
    cursor = whole_number(raw, CURSOR_DIGITS_MAX)
    if cursor is None:
        raise InvalidPayload("the cursor must be a sequence, as in a frame's id")
    return cursor


def _previews_of(request: AnyRequest) -> bool:
    said = request.query_params.get("previews", "false")
    if said not in ("true", "false"):
        raise InvalidPayload("previews must be true or false")
    return said == "true"


def create_app(edge: Edge, probe: Probe) -> Litestar:
    """The ASGI application."""

    # Not litestar's `asgi` handler, which can't have a path parameter (2.25: KeyError in its router).
    @get("/v1/tasks/{task:str}/events")
    async def events(request: AnyRequest, task: str) -> ASGIApp:
        return await edge.events(request, task)

    return Litestar(
        route_handlers=[events, *health_routes("stream_edge", probe)],  # type: ignore[list-item]  # handlers of mixed kinds
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )

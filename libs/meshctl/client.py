"""A client of the HTTP API: submit, get, list, say, and follow a task through whatever happens to the edge."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from contracts import VERSION, headers
from contracts.api.dead_letters import (
    DeadLetterList,
    ReplayAccepted,
    ReplayPlan,
    ReplayRequest,
    ShownDeadLetter,
    TaskDeadLetters,
)
from contracts.api.inputs import TaskInput
from contracts.api.pools import PoolList
from contracts.api.sse import RETRY_MILLISECONDS, Decoder, Frame
from contracts.api.valves import CancelAnswer, ValveList
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, Problem, problem
from contracts.fields import whole_number
from contracts.journal.edge_events import Snapshot
from contracts.journal.events import TERMINAL_TYPES
from contracts.journal.heads import EventHead
from contracts.records.status import TaskAccepted, TaskCounts, TaskRecord
from contracts.records.tools import ToolList
from contracts.records.valves import TenantLimits, Valve
from mesh.configuration.broker_urls import without_login
from meshctl.errors import ApiError, StreamBroken, Unreachable
from meshctl.trust import trust_for

T = TypeVar("T")

CONNECT_SECONDS_MAX: Final = 5.0
ANSWER_SECONDS_MAX: Final = 30.0
SILENCE_SECONDS_MAX: Final = 45.0
"""The edge sends a comment every 15 s: three that are missing are a broken connection."""
OUTAGE_SECONDS_MAX: Final = 300.0
"""How long a stream may be away before `follow` gives up."""
RECONNECT_SECONDS_MIN: Final = 0.05
RECONNECT_SECONDS_MAX: Final = 15.0
APPEARS_POLL_SECONDS: Final = 0.1

_OK: Final = 200
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Answer(NamedTuple, Generic[T]):
    """A decoded answer, and its bytes: they may hold more than this version knows."""

    value: T
    raw: bytes


class TaskPage(msgspec.Struct, frozen=True):
    """A page of `GET /v1/tasks`, its records as they came."""

    tasks: list[msgspec.Raw]
    cursor: str | None = None


class Received(NamedTuple):
    """An event of a stream. `cursor` is the sequence to resume after."""

    cursor: int
    type: str
    payload: bytes

    @property
    def is_stored(self) -> bool:
        """Whether it is an event of the journal, and not what the edge says of a gap."""
        return self.type not in ("stream.gap", "snapshot")


class Cursor:
    """Where a client is in a stream. Refuses what a journal's stream can't be: pure."""

    def __init__(self, after: int = 0) -> None:
        self.sequence = after
        self._next_n: int | None = 0 if after == 0 else None
        self._in_gap = False

    def advance(self, frame: Frame) -> Received:
        """Take the next frame. Raises `StreamBroken` for one that comes twice, goes backwards or leaves a hole."""
        payload = frame.data.encode()
        if frame.event_type == "stream.gap":
            # It has no id: the cursor moves with the snapshot that follows.
            self._in_gap = True
            return Received(self.sequence, frame.event_type, payload)
        sequence = whole_number(frame.last_event_id)
        if sequence is None:
            shown = repr(frame.last_event_id)[:40]
            raise StreamBroken(f"a frame of type {frame.event_type} has no sequence as its id: {shown}")
        # A snapshot may lead back: to the end of a stream that was created anew.
        if sequence <= self.sequence and not (self._in_gap and frame.event_type == "snapshot"):
            raise StreamBroken(f"sequence {sequence} ({frame.event_type}) came after {self.sequence}")
        if frame.event_type == "snapshot":
            self._next_n = decode(payload, Snapshot).n + 1
        else:
            n = decode(payload, EventHead).n
            if self._next_n is not None and n != self._next_n:
                raise StreamBroken(f"event n={n} came where n={self._next_n} was due (sequence {sequence})")
            self._next_n = n + 1
        self._in_gap = False
        self.sequence = sequence
        return Received(sequence, frame.event_type, payload)


class Reconnection:
    """How long to wait before the next connection: what the server asked for, doubled for each failure, bounded."""

    def __init__(self) -> None:
        self.retry_seconds = RETRY_MILLISECONDS / 1000
        self._failures = 0

    def succeeded(self) -> None:
        """An event came: begin anew."""
        self._failures = 0

    def delay_seconds(self, retry_after_seconds: float = 0.0) -> float:
        """The delay after one more connection that ended."""
        first = max(self.retry_seconds, RECONNECT_SECONDS_MIN)
        delay_seconds: float = first * 2.0 ** min(self._failures, 16)
        self._failures += 1
        return min(max(delay_seconds, retry_after_seconds), RECONNECT_SECONDS_MAX)


class _Interrupted(Exception):
    """A connection that gave no end of the task. `retry_after_seconds`: what the server asked for."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Client:
    """One tenant's client of an ingress and an edge. Use it as an asynchronous context."""

    def __init__(
        self,
        ingress_url: str,
        edge_url: str,
        tenant: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        key: str | None = None,
        certificate: Path | None = None,
    ) -> None:
        """`key`: the API key, or token, that both are shown. `certificate`: the file of the one that a mesh of this
        machine shows, whatever names it is for."""
        self.ingress_url = ingress_url.rstrip("/")
        self.edge_url = edge_url.rstrip("/")
        own_headers = {"User-Agent": f"meshctl/{VERSION}"} | ({headers.HTTP_TENANT: tenant} if tenant else {})
        own_headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._ingress = _http(self.ingress_url, ANSWER_SECONDS_MAX, own_headers, transport, certificate)
        self._edge = _http(self.edge_url, SILENCE_SECONDS_MAX, own_headers, transport, certificate)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._ingress.aclose()
        await self._edge.aclose()

    async def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> Answer[TaskAccepted]:
        """`POST /v1/tasks`. Raises `ApiError`, `Unreachable`."""
        more = {headers.HTTP_IDEMPOTENCY_KEY: idempotency_key} if idempotency_key is not None else {}
        raw = await self._call(
            "POST", "/v1/tasks", content=encode(body), headers={"Content-Type": "application/json", **more}
        )
        return Answer(decode(raw, TaskAccepted), raw)

    async def get(self, task: str) -> Answer[TaskRecord]:
        """`GET /v1/tasks/{id}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", f"/v1/tasks/{quote(task, safe='')}")
        return Answer(decode(raw, TaskRecord), raw)

    async def cancel(self, task: str) -> Answer[TaskRecord]:
        """`POST /v1/tasks/{id}/cancel`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("POST", f"/v1/tasks/{quote(task, safe='')}/cancel")
        return Answer(decode(raw, TaskRecord), raw)

    async def cancel_many(self, body: Mapping[str, Any]) -> Answer[CancelAnswer]:
        """`POST /v1/tasks/cancel`: one piece. Raises `ApiError`, `Unreachable`."""
        raw = await self._send("POST", "/v1/tasks/cancel", body)
        return Answer(decode(raw, CancelAnswer), raw)

    async def valves(self) -> Answer[ValveList]:
        """`GET /v1/valves`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", "/v1/valves")
        return Answer(decode(raw, ValveList), raw)

    async def shut_valve(self, kind: str, name: str, body: Mapping[str, Any]) -> Answer[Valve]:
        """`PUT /v1/valves/{kind}/{name}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._send("PUT", f"/v1/valves/{kind}/{quote(name, safe='')}", body)
        return Answer(decode(raw, Valve), raw)

    async def open_valve(self, kind: str, name: str, reason: str | None = None) -> Answer[Valve]:
        """`DELETE /v1/valves/{kind}/{name}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("DELETE", f"/v1/valves/{kind}/{quote(name, safe='')}{_why(reason)}")
        return Answer(decode(raw, Valve), raw)

    async def limit_tenant(self, tenant: str, body: Mapping[str, Any]) -> Answer[TenantLimits]:
        """`PUT /v1/valves/limits/{tenant}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._send("PUT", f"/v1/valves/limits/{quote(tenant, safe='')}", body)
        return Answer(decode(raw, TenantLimits), raw)

    async def end_limits(self, tenant: str, reason: str | None = None) -> Answer[TenantLimits]:
        """`DELETE /v1/valves/limits/{tenant}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("DELETE", f"/v1/valves/limits/{quote(tenant, safe='')}{_why(reason)}")
        return Answer(decode(raw, TenantLimits), raw)

    async def say(self, task: str, said: TaskInput, idempotency_key: str | None = None) -> Answer[TaskRecord]:
        """`POST /v1/tasks/{id}/inputs`. Raises `ApiError`, `Unreachable`."""
        more = {headers.HTTP_IDEMPOTENCY_KEY: idempotency_key} if idempotency_key is not None else {}
        raw = await self._call(
            "POST",
            f"/v1/tasks/{quote(task, safe='')}/inputs",
            content=encode(said),
            headers={"Content-Type": "application/json", **more},
        )
        return Answer(decode(raw, TaskRecord), raw)

    async def list(self, query: Sequence[tuple[str, str]] = ()) -> TaskPage:
        """`GET /v1/tasks`: one page. Raises `ApiError`, `Unreachable`."""
        return decode(await self._call("GET", "/v1/tasks", params=[*query]), TaskPage)

    async def counts(self) -> Answer[TaskCounts]:
        """`GET /v1/tasks/counts`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", "/v1/tasks/counts")
        return Answer(decode(raw, TaskCounts), raw)

    async def tools(self, query: Mapping[str, str]) -> Answer[ToolList]:
        """`GET /v1/tools`: one page. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", "/v1/tools", params=dict(query))
        return Answer(decode(raw, ToolList), raw)

    async def pools(self) -> Answer[PoolList]:
        """`GET /v1/pools`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", "/v1/pools")
        return Answer(decode(raw, PoolList), raw)

    async def dead_letters(self, query: Mapping[str, str]) -> Answer[DeadLetterList]:
        """`GET /v1/dead-letters`: one page. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", "/v1/dead-letters", params=dict(query))
        return Answer(decode(raw, DeadLetterList), raw)

    async def dead_letters_of(self, task: str) -> Answer[TaskDeadLetters]:
        """`GET /v1/dead-letters/{id}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", f"/v1/dead-letters/{quote(task, safe='')}")
        return Answer(decode(raw, TaskDeadLetters), raw)

    async def malformed(self, record_sequence: int) -> Answer[ShownDeadLetter]:
        """`GET /v1/dead-letters/malformed/{record_sequence}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("GET", f"/v1/dead-letters/malformed/{record_sequence}")
        return Answer(decode(raw, ShownDeadLetter), raw)

    async def replay(self, task: str, wanted: ReplayRequest) -> Answer[ReplayAccepted | ReplayPlan]:
        """`POST /v1/dead-letters/{id}/replay`; a plan if it is a dry run. Raises `ApiError`, `Unreachable`."""
        raw = await self._call(
            "POST",
            f"/v1/dead-letters/{quote(task, safe='')}/replay",
            content=encode(wanted),
            headers={"Content-Type": "application/json"},
        )
        return Answer(decode(raw, ReplayPlan) if wanted.dry_run else decode(raw, ReplayAccepted), raw)

    async def drop(self, task: str) -> Answer[TaskRecord]:
        """`DELETE /v1/dead-letters/{id}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("DELETE", f"/v1/dead-letters/{quote(task, safe='')}")
        return Answer(decode(raw, TaskRecord), raw)

    async def drop_malformed(self, record_sequence: int) -> Answer[ShownDeadLetter]:
        """`DELETE /v1/dead-letters/malformed/{record_sequence}`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("DELETE", f"/v1/dead-letters/malformed/{record_sequence}")
        return Answer(decode(raw, ShownDeadLetter), raw)

    async def requeue_malformed(self, record_sequence: int) -> Answer[ShownDeadLetter]:
        """`POST /v1/dead-letters/malformed/{record_sequence}/requeue`. Raises `ApiError`, `Unreachable`."""
        raw = await self._call("POST", f"/v1/dead-letters/malformed/{record_sequence}/requeue")
        return Answer(decode(raw, ShownDeadLetter), raw)

    async def follow(
        self, task: str, after: int = 0, *, appears_within_seconds: float = 0.0
    ) -> AsyncGenerator[Received, None]:
        """Yield a task's events behind sequence `after`, until it has ended; reconnects as often as it takes.

        `appears_within_seconds`: how long a task that was just accepted may be unknown to the edge. Close the generator
        (`contextlib.aclosing`) to close the connection. Raises `ApiError`, `StreamBroken`, and `Unreachable` if nobody
        answers the first time, or for `OUTAGE_SECONDS_MAX` later on.
        """
        cursor = Cursor(after)
        reconnection = Reconnection()
        started_at = contact_at = time.monotonic()
        in_contact = False
        while True:
            try:
                connection = self._connection(task, cursor, reconnection)
                try:
                    async for received in connection:
                        in_contact, contact_at = True, time.monotonic()
                        if received is None:
                            continue
                        reconnection.succeeded()
                        yield received
                        if received.type in TERMINAL_TYPES:
                            return
                    return  # 204: the cursor is at the end.
                finally:
                    await connection.aclose()
            except ApiError as error:
                fresh = error.status == _NOT_FOUND and cursor.sequence == 0
                if not fresh or time.monotonic() - started_at >= appears_within_seconds:
                    raise
                await asyncio.sleep(APPEARS_POLL_SECONDS)
            except _Interrupted as interruption:
                if not in_contact or time.monotonic() - contact_at > OUTAGE_SECONDS_MAX:
                    raise Unreachable(f"{without_login(self.edge_url)}: {interruption}") from None
                await asyncio.sleep(reconnection.delay_seconds(interruption.retry_after_seconds))

    async def _connection(
        self, task: str, cursor: Cursor, reconnection: Reconnection
    ) -> AsyncGenerator[Received | None, None]:
        """One connection's events; None for each sign of life. Returns on 204, else raises when it ends."""
        own_headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if cursor.sequence:
            own_headers[headers.HTTP_LAST_EVENT_ID] = str(cursor.sequence)
        path = f"/v1/tasks/{quote(task, safe='')}/events"
        try:
            async with self._edge.stream("GET", path, headers=own_headers) as response:
                if response.status_code == _NO_CONTENT:
                    return
                if response.status_code != _OK:
                    await response.aread()
                    if response.status_code not in _TRANSIENT:
                        raise ApiError(_problem_of(response))
                    yield None
                    raise _Interrupted(_problem_of(response).title, _retry_after_seconds(response))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise StreamBroken(f"{without_login(str(response.url))} is no event stream")
                yield None
                decoder = Decoder(str(cursor.sequence or ""))
                async for chunk in response.aiter_raw():
                    frames = decoder.feed(chunk)
                    if decoder.retry_milliseconds is not None:
                        reconnection.retry_seconds = decoder.retry_milliseconds / 1000
                    yield None
                    for frame in frames:
                        yield cursor.advance(frame)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _Interrupted(_reason(error)) from None
        except InvalidPayload as error:
            raise StreamBroken(str(error)) from None
        raise _Interrupted("the stream ended before the task did")

    async def _send(self, method: str, path: str, body: Mapping[str, Any]) -> bytes:
        return await self._call(method, path, content=encode(body), headers={"Content-Type": "application/json"})

    async def _call(self, method: str, path: str, **options: Any) -> bytes:
        try:
            response = await self._ingress.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"{without_login(self.ingress_url)}: {_reason(error)}") from None
        if not response.is_success:
            raise ApiError(_problem_of(response))
        return response.content


def _http(
    url: str,
    read_seconds: float,
    own_headers: dict[str, str],
    transport: httpx.AsyncBaseTransport | None,
    certificate: Path | None,
) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers=own_headers,
            timeout=httpx.Timeout(CONNECT_SECONDS_MAX, read=read_seconds),
            trust_env=not _is_loopback(url),  # A proxy from the environment can't reach this very machine.
            transport=transport,
            verify=trust_for(url, certificate),
        )
    except httpx.InvalidURL as error:
        raise Unreachable(f"{without_login(url)}: {error}") from None


def _why(reason: str | None) -> str:
    return f"?reason={quote(reason, safe='')}" if reason is not None else ""


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _problem_of(response: httpx.Response) -> Problem:
    """The problem document of an answer; one of our own making where something else answered."""
    try:
        return decode(response.content, Problem)
    except InvalidPayload:
        url = without_login(str(response.url))
        ours = problem("internal", f"{url} answered {response.status_code} {response.reason_phrase}")
        return msgspec.structs.replace(ours, status=response.status_code)


def _retry_after_seconds(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

"""What the HTTP services share: problem documents, names from headers, bodies within bounds, health, the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import structlog
import uvicorn
from litestar import MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
)
from litestar.types import ASGIApp, ExceptionHandlersMap, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from contracts import VERSION, subjects
from contracts.codec import encode
from contracts.errors import HTTP_STATUS_BY_CODE, InvalidName, TaskmeshError, problem
from contracts.headers import HTTP_TENANT, TENANT_DEFAULT
from contracts.records.status import Health, HealthCheck
from mesh.configuration.settings import Address
from mesh.errors import SettingsError

log = structlog.get_logger("mesh.serving.http")

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 5
HEAD_BYTES_MAX = 64 * 1024
"""Largest request line and headers together."""
HEAD_SECONDS_MAX = 30.0
"""How long a head may take to come, from the connection or from its first byte."""
BODY_SECONDS_MAX = 60.0
"""How long a body may take to come."""

AnyRequest = Request[object, object, State]
Probe = Callable[[], Awaitable[list[HealthCheck]]]


class RequestRefused(TaskmeshError):
    """A request that gets a problem document. `retry_after_seconds` becomes Retry-After."""

    def __init__(self, code: str, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


def json_response(value: object, status: int = 200, response_headers: dict[str, str] | None = None) -> Response[bytes]:
    """A wire type as JSON."""
    return Response(encode(value), status_code=status, headers=response_headers, media_type=JSON)


def http_code(error: Exception) -> str:
    """The problem code that a client sees for an error."""
    code = error.code if isinstance(error, TaskmeshError) else "internal"
    return code if code in HTTP_STATUS_BY_CODE else "internal"


def problem_response(code: str, detail: str | None, retry_after_seconds: float | None = None) -> Response[bytes]:
    """A problem document (RFC 9457). Codes outside of HTTP's table are `internal` to a client."""
    if code not in HTTP_STATUS_BY_CODE:
        code = "internal"
    document = problem(code, detail)
    response_headers = {"Cache-Control": "no-store"}
    if document.status in (429, 503):
        # Whole seconds (RFC 9110), at least one: 0 would invite a storm.
        response_headers["Retry-After"] = str(max(1, round(retry_after_seconds or 1)))
    return Response(encode(document), status_code=document.status, headers=response_headers, media_type=PROBLEM_JSON)


def _on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    if isinstance(error, TaskmeshError):
        return problem_response(error.code, str(error), getattr(error, "retry_after_seconds", None))
    if isinstance(error, MethodNotAllowedException):
        return problem_response("method-not-allowed", f"{request.method} is not served here")
    if isinstance(error, NotFoundException):
        return problem_response("not-found", f"there is nothing at {request.url.path}")
    if isinstance(error, HTTPException) and error.status_code < 500:  # noqa: PLR2004 - HTTP's own boundary
        return problem_response("invalid-request", error.detail)
    log.error("http.internal_error", path=request.url.path, exc_info=error)
    return problem_response("internal", None)


EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: _on_error}


async def answer_directly(
    handler: Callable[[AnyRequest], Awaitable[Response[bytes]]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve one request past the framework's routing and rendering, with its own errors all the same."""
    request: AnyRequest = Request(scope, receive, send)
    try:
        response = await handler(request)
    except Exception as error:
        response = _on_error(request, error)
    body = response.content
    head = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    head.append((b"content-type", str(response.media_type).encode("latin-1")))
    head.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": response.status_code or 200, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def tenant_of_request(request: AnyRequest, otherwise: str | None = None) -> str:
    """The tenant of a request's `Mesh-Tenant`; without one `otherwise`, or `default`. Raises `InvalidName`."""
    named = request.headers.getall(HTTP_TENANT, [])
    if len(named) > 1:
        # Whoever checked the request on its way may have looked at the other one.
        raise InvalidName(f"{HTTP_TENANT} is there {len(named)} times")
    value = named[0] if named else otherwise
    return subjects.check_tenant(value) if value is not None else TENANT_DEFAULT


async def read_json_body(request: AnyRequest, bytes_max: int, absent: bytes | None = None) -> bytes:
    """The body of a POST; `absent`, if given, where there is none.

    Raises `RequestRefused` if it is not JSON by its type, or too large.
    """
    if absent is not None and not _has_body(request):
        return absent
    media_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise RequestRefused("unsupported-media-type", f"the content type must be {JSON}")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            more = True
            while more:
                message = await request.receive()
                if message["type"] != "http.request":
                    # Nobody's fault here, and nobody reads the answer.
                    raise RequestRefused("invalid-request", "the connection closed before the body was whole")
                body += message["body"]
                more = message["more_body"]
                if len(body) > bytes_max:
                    raise _too_large(bytes_max)
    except TimeoutError:
        raise RequestRefused("invalid-request", f"the body did not come within {BODY_SECONDS_MAX:g} s") from None
    return bytes(body)


def _has_body(request: AnyRequest) -> bool:
    """Whether the request says that it has a body (RFC 9112, section 6), or of what type it is."""
    if "content-type" in request.headers or "transfer-encoding" in request.headers:
        return True
    return request.headers.get("content-length", "0").strip() != "0"


def _too_large(bytes_max: int) -> RequestRefused:
    return RequestRefused("payload-too-large", f"the body may have {bytes_max} bytes")


def health_routes(service: str, probe: Probe) -> list[object]:
    """`/health/live`: the process answers. `/health/ready`: all it needs does too, else 503."""

    @get("/health/live", media_type=MediaType.JSON, include_in_schema=False)
    async def live() -> Response[bytes]:
        return json_response(Health(service=service, version=VERSION, ok=True, checks=[]))

    @get("/health/ready", media_type=MediaType.JSON, include_in_schema=False)
    async def ready() -> Response[bytes]:
        checks = await probe()
        ok = all(check.ok for check in checks)
        return json_response(Health(service=service, version=VERSION, ok=ok, checks=checks), 200 if ok else 503)

    return [live, ready]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's business."""
        yield


class _HeadTooLarge(Exception):
    """Makes the parser give up."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, with bounds on a request's head, and problem documents for what is not HTTP.

    By itself the parser holds a head of any size, for any time, until it is whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chunk_bytes = 0
        self._head_bytes: int | None = None
        """Bytes of the head under way, without the chunk that it began in; None outside of a head."""
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        super().data_received(data)
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = -self._chunk_bytes
        if self._head_timer is None:
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            raise _HeadTooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse()

    def _refuse(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        if cycle is None or cycle.response_complete or not cycle.response_started:
            detail = f"not an HTTP request, or one whose head has more than {HEAD_BYTES_MAX} bytes"
            body = encode(problem("invalid-request", detail))
            head = f"content-type: {PROBLEM_JSON}\r\ncache-control: no-store\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}connection: close\r\n\r\n".encode() + body)
        # Else an answer is under way, and must not be written into.
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bind(address: Address, variable: str) -> socket.socket:
    """A listening socket. Raises `SettingsError`, naming the variable, if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"{variable}={str(address)!r}: can't listen: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener


async def serve(app: ASGIApp, listener: socket.socket, stopping: asyncio.Event, on_started: Awaitable[None]) -> None:
    """Serve until `stopping`; requests under way then have `SHUTDOWN_SECONDS`."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await on_started
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stop.cancel()
    await serving


def address_of(listener: socket.socket) -> Address:
    """Where a socket listens, with the port it was given."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)

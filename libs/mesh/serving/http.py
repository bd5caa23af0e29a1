"""What the HTTP services share: problem documents, names from headers, bodies within bounds, health, the server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import structlog
import uvicorn
from litestar import MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
)
from litestar.types import ASGIApp, ExceptionHandlersMap, Message, Receive, Scope, Send

from contracts import VERSION
from contracts.codec import encode
from contracts.errors import HTTP_STATUS_BY_CODE, TaskmeshError, problem
from contracts.fields import whole_number
from contracts.records.status import Health, HealthCheck
from mesh.background import background
from mesh.serving.connections import Connections, raise_descriptor_limit
from mesh.serving.http_protocol import Protocol
from mesh.serving.listening import BACKLOG
from mesh.serving.rate_limit_fields import Quota, rate_limit_fields
from mesh.serving.security_headers import PROBLEM_JSON, security_headers
from mesh.serving.tls_protocol import Tls, TlsProtocol

log = structlog.get_logger("mesh.serving.http")

JSON = "application/json"
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 5
LET_GO_SECONDS = 1.0
BODY_SECONDS_MAX = 60.0
"""How long a body may take to come."""

AnyRequest = Request[object, object, State]
Probe = Callable[[], Awaitable[list[HealthCheck]]]


_NOTE = "taskmesh.note"
_QUOTAS = "taskmesh.quotas"


class RequestNote(msgspec.Struct):
    """What is known of a request once it is answered, for whoever tells of it (`mesh.access.audit`)."""

    by: str | None = None
    tenant: str | None = None
    act: str | None = None
    """What it has brought about, or was about to."""
    task: str | None = None
    target: str | None = None
    """What it is about that is no task."""
    reason: str | None = None
    """Why, as it says."""
    code: str | None = None
    """The problem code that it was answered with."""


def with_note(scope: Scope, note: RequestNote) -> Scope:
    """The scope of a request that is noted. Copies of it have the same note."""
    return cast("Scope", {**scope, _NOTE: note})


def note_in(scope: Scope) -> RequestNote | None:
    """The note of a request; None if nobody asks for one."""
    note: RequestNote | None = cast("dict[str, Any]", scope).get(_NOTE)
    return note


def note_quota(scope: Scope, quota: Quota) -> None:
    """Note a quota of who asks, for the fields `RateLimit` of the answer."""
    cast("dict[str, Any]", scope).setdefault(_QUOTAS, []).append(quota)


def quotas_in(scope: Scope) -> list[Quota]:
    """The quotas that were noted."""
    quotas: list[Quota] = cast("dict[str, Any]", scope).get(_QUOTAS, [])
    return quotas


class RequestRefused(TaskmeshError):
    """A request that gets a problem document. `retry_after_seconds` becomes Retry-After.

    `cause` is a stable word for what stands in the way, and `depth` how many stand before it there. `quotas`: what the
    caller has, and what is left of it, for the fields `RateLimit`.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_seconds: float | None = None,
        cause: str | None = None,
        depth: int | None = None,
        quotas: Sequence[Quota] = (),
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds
        self.cause = cause
        self.depth = depth
        self.quotas = quotas


def json_response(value: object, status: int = 200, response_headers: dict[str, str] | None = None) -> Response[bytes]:
    """A wire type as JSON. Nobody keeps it: it is a caller's own, and changes."""
    own = {"Cache-Control": "no-store", **(response_headers or {})}
    return Response(encode(value), status_code=status, headers=own, media_type=JSON)


def http_code(error: Exception) -> str:
    """The problem code that a client sees for an error."""
    code = error.code if isinstance(error, TaskmeshError) else "internal"
    return code if code in HTTP_STATUS_BY_CODE else "internal"


def problem_response(
    code: str,
    detail: str | None,
    retry_after_seconds: float | None = None,
    *,
    cause: str | None = None,
    depth: int | None = None,
) -> Response[bytes]:
    """A problem document (RFC 9457). Codes outside of HTTP's table are `internal` to a client."""
    if code not in HTTP_STATUS_BY_CODE:
        code = "internal"
    document = problem(code, detail, cause=cause, depth=depth)
    response_headers = {"Cache-Control": "no-store"}
    if document.status == HTTP_STATUS_BY_CODE["unauthorized"]:
        response_headers["WWW-Authenticate"] = 'Bearer realm="taskmesh"'  # RFC 9110, 15.5.2
    if document.status in (429, 503):
        # Whole seconds (RFC 9110), at least one: 0 would invite a storm. Rounded up: before that it is too early.
        response_headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds or 1)))
    return Response(encode(document), status_code=document.status, headers=response_headers, media_type=PROBLEM_JSON)


def _on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    note = note_in(request.scope)
    if note is not None:
        note.code = http_code(error)
    if isinstance(error, TaskmeshError):
        if http_code(error) == "internal":
            # What it says is all there is to know: it was raised for a reason that is not the client's.
            log.error("http.internal_error", path=request.scope["path"], code=error.code, error=str(error))
        if not isinstance(error, RequestRefused):
            return problem_response(error.code, str(error), getattr(error, "retry_after_seconds", None))
        later = error.retry_after_seconds
        response = problem_response(error.code, str(error), later, cause=error.cause, depth=error.depth)
        if response.status_code == HTTP_STATUS_BY_CODE["rate-limited"]:
            response.headers.update(rate_limit_fields((*quotas_in(request.scope), *error.quotas)))
        return response
    if isinstance(error, MethodNotAllowedException):
        response = problem_response("method-not-allowed", f"{request.method} is not served here")
        allowed = {*((error.headers or {}).get("allow") or "").split(", ")} - {""}
        response.headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
        return response
    if isinstance(error, NotFoundException):
        return problem_response("not-found", f"there is nothing at {request.scope['path']}")
    if isinstance(error, HTTPException) and error.status_code < 500:  # noqa: PLR2004 - HTTP's own boundary
        return problem_response("invalid-request", error.detail)
    log.error("http.internal_error", path=request.scope["path"], exc_info=error)
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
    await _send_response(send, response)


async def answer_error(scope: Scope, send: Send, error: Exception) -> None:
    """Answer with what an error comes to, outside of the framework."""
    await _send_response(send, _on_error(Request(scope), error))


async def send_problem(send: Send, code: str, detail: str) -> None:
    """Answer with a problem document, outside of the framework."""
    await _send_response(send, problem_response(code, detail))


async def _send_response(send: Send, response: Response[bytes]) -> None:
    body = response.content
    head = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    head.append((b"content-type", str(response.media_type).encode("latin-1")))
    head.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": response.status_code or 200, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def with_head_and_options(app: ASGIApp) -> ASGIApp:
    """An application that answers HEAD where it answers GET, and says to OPTIONS what it says of any other method."""

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == ScopeType.HTTP else None
        if method == "HEAD":
            await app(_asking(scope, "GET"), receive, _head_of(send))
        elif method == "OPTIONS":
            # The framework's own answer has the methods of the handler that came first.
            await app(_asking(scope, "TRACE"), receive, _options_of(send))
        else:
            await app(scope, receive, send)

    return dispatch


def _asking(scope: Scope, method: str) -> Scope:
    return cast("Scope", {**scope, "method": method})


def _head_of(send: Send) -> Send:
    """Sends an answer without its body, and does not wait for that to end."""
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.body":
            if ended:
                return
            # The server tells the application then that the client is gone, which ends a stream.
            ended = True
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return send_head


def _options_of(send: Send) -> Send:
    """Sends what a 405 says of a path's methods, as the answer to who asks for them."""
    allowed: tuple[bytes, bytes] | None = None

    async def send_options(message: Message) -> None:
        nonlocal allowed
        if message["type"] == "http.response.start" and message["status"] == HTTP_STATUS_BY_CODE["method-not-allowed"]:
            allowed = next((name, value) for name, value in message["headers"] if name == b"allow")
            message = {"type": "http.response.start", "status": 204, "headers": [allowed]}
        elif message["type"] == "http.response.body" and allowed is not None:
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return send_options


async def read_json_body(request: AnyRequest, bytes_max: int, absent: bytes | None = None) -> bytes:
    """The body of a POST; `absent`, if given, where there is none.

    Raises `RequestRefused` if it is not JSON by its type, or too large.
    """
    if absent is not None and not _has_body(request):
        return absent
    told = request.headers  # Once: the framework makes them anew each time.
    media_type = (told.get("content-type") or "").partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise RequestRefused("unsupported-media-type", f"the content type must be {JSON}")
    declared = whole_number(told.get("content-length", ""))
    if declared is not None and declared > bytes_max:
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


def _answering(app: ASGIApp) -> ASGIApp:
    """An application that answers its own failures: a line in the log, and a problem where no answer has begun."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, send_noting)
        except asyncio.CancelledError:
            # The server stops, and has waited for long enough; what is waited for here is the broker's answer.
            if has_begun:
                raise
            log.warning("http.cut_off", path=scope["path"])
            await _send_response(send, problem_response("broker-unavailable", "the service stops, and had no answer"))
        except Exception as error:
            # By itself uvicorn answers in plain text, and its line is none of this log's.
            response = _on_error(Request(scope), error)
            if has_begun:
                raise  # The connection ends in the middle of the answer, so that nobody takes it for a whole one.
            await _send_response(send, response)

    return answer


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    stopping: asyncio.Event,
    on_started: Awaitable[None],
    tls: Tls | None = None,
) -> None:
    """Serve until `stopping`; requests under way then have `SHUTDOWN_SECONDS`. `tls`: by TLS alone.

    Connections without a request have `LET_GO_SECONDS` to send one that is on its way: it is answered, and the last.
    """
    connections = Connections(raise_descriptor_limit())
    protocol = partial(Protocol, connections)
    config = uvicorn.Config(
        _answering(app),
        # It is called as the class would be.
        http=protocol if tls is None else partial(TlsProtocol, protocol, connections, tls.context),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # By itself uvicorn believes whoever connects from this machine: `mesh.access.sources` knows whom to believe.
        proxy_headers=False,
        headers=security_headers(tls.hsts_days if tls is not None else 0),
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with background(connections.watch()):
        await on_started
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for each in getattr(server, "servers", ()):
            each.close()
        # Where nobody else has it, who connects from now on is refused; else whoever has it serves them.
        listener.close()
        await connections.let_go(LET_GO_SECONDS)
        server.should_exit = True
        await serving

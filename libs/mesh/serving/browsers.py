"""What a browser may do on behalf of a page: `Host` and `Origin` are checked, and CORS lets configured origins in.

A page of anybody's can send requests to a service on its reader's machine. It reads the answers if its own name points
there (DNS rebinding), so names are checked; and it changes something without reading (cross-site request forgery), so
origins are checked where a request changes something. Clients that are no browsers send no `Origin`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from contracts import headers
from mesh.configuration.addresses import is_ip_address, is_loopback
from mesh.configuration.settings import Address
from mesh.serving.http import send_problem, with_head_and_options

ANY = "*"
PREFLIGHT_SECONDS = 600
"""How long a browser may remember what it was allowed."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEALTH = "/health/"
_REQUEST_HEADERS = ", ".join(
    (
        "Authorization",
        "Content-Type",
        "Cache-Control",
        headers.HTTP_TENANT,
        headers.HTTP_IDEMPOTENCY_KEY,
        headers.HTTP_PREFER,
        headers.HTTP_LAST_EVENT_ID,
        headers.TRACEPARENT,
    )
)
_ANSWER_HEADERS = "Location, Preference-Applied, Retry-After"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s\[\]:/@?#,]*)(?::[0-9]{0,5})?")


@dataclass(frozen=True, slots=True)
class Access:
    """Whom a service answers.

    `hosts`: names that `Host` may have, in lower case, without a port; None is any. `origins`: those whose pages may
    read and send, with `*` for all. `methods`: what pages may use, as CORS writes it.
    """

    hosts: frozenset[str] | None
    origins: tuple[str, ...] = ()
    methods: str = "GET"


def hosts_of(address: Address, allowed: Iterable[str], public_urls: Iterable[str | None]) -> frozenset[str] | None:
    """The names that a service answers for: what is allowed, and its own; None is any.

    Without an allowed one those are the loopback names on a loopback address, and any elsewhere, where only the
    operator can know them.
    """
    names = {name.lower().removeprefix("[").removesuffix("]") for name in allowed}
    if ANY in names or not (names or is_loopback(address.host)):
        return None
    of_urls = (urlsplit(url).hostname for url in public_urls if url is not None)
    return frozenset({*names, address.host.lower(), *(name for name in of_urls if name is not None)})


def host_name(value: str) -> str | None:
    """The name in a `Host`, in lower case; None if it is not one."""
    match = _HOST.fullmatch(value)
    return match[1].lower().removeprefix("[").removesuffix("]").rstrip(".") if match is not None else None


def is_host_allowed(name: str, access: Access) -> bool:
    """Whether a service answers for a name. Addresses are nobody's to point elsewhere, so they always pass."""
    return access.hosts is None or name in access.hosts or is_loopback(name) or is_ip_address(name)


def is_origin_allowed(origin: str, host: str, access: Access) -> bool:
    """Whether a page of an origin may send what changes something: one of the service's own, or a configured one."""
    return may_read(origin, access) or urlsplit_netloc(origin) == host.lower()


def may_read(origin: str, access: Access) -> bool:
    """Whether a page of an origin may read answers."""
    return ANY in access.origins or origin in access.origins


def urlsplit_netloc(origin: str) -> str | None:
    """`host:port` of an origin, in lower case; None for one without, such as `null`."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def guarded(app: ASGIApp, access: Access) -> ASGIApp:
    """An application that is reached by those alone that `access` lets in."""
    served = with_head_and_options(app)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            return  # uvicorn was told to serve nothing else
        hosts = _values(scope, b"host")
        origins = _values(scope, b"origin")
        origin = origins[0] if origins else None
        if origin is not None and access.origins:
            send = _with_cors(send, origin if may_read(origin, access) else None, access)
        refusal = None if scope["path"].startswith(_HEALTH) else _refusal(scope, hosts, origins, access)
        if refusal is not None:
            await send_problem(send, *refusal)
        elif origin is not None and access.origins and _is_preflight(scope):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await served(scope, receive, send)

    return guard


def _refusal(scope: HTTPScope, hosts: list[str], origins: list[str], access: Access) -> tuple[str, str] | None:
    """Code and detail of what is wrong with who asks."""
    if len(hosts) > 1 or len(origins) > 1:
        return "invalid-request", "Host and Origin may be there once"
    if not hosts and scope["http_version"] != "1.0":
        return "invalid-request", "Host is missing"  # RFC 9112, 3.2
    host = hosts[0] if hosts else ""
    name = host_name(host)
    if name is None:
        return "invalid-request", "Host is not <name> or <name>:<port>"
    if name and not is_host_allowed(name, access):
        return "misdirected-request", f"Host: {name:.200} is not among MESH_ALLOWED_HOSTS"
    if scope["method"] in _SAFE_METHODS:
        return None
    origin = origins[0] if origins else None
    if origin is not None and not is_origin_allowed(origin, host, access):
        return "forbidden", f"pages of {origin:.200} may not send this: it is not among the origins for CORS"
    if origin is None and "cross-site" in _values(scope, b"sec-fetch-site"):
        return "forbidden", "a page of another site may not send this"
    return None


def _is_preflight(scope: HTTPScope) -> bool:
    return scope["method"] == "OPTIONS" and bool(_values(scope, b"access-control-request-method"))


def _values(scope: HTTPScope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for each, value in scope["headers"] if each == name]


def _with_cors(send: Send, origin: str | None, access: Access) -> Send:
    """Say in the answer's head who may read it: a page of `origin`, or none."""
    added = [(b"vary", b"Origin")]
    if origin is not None:
        added += [
            (b"access-control-allow-origin", ANY.encode() if ANY in access.origins else origin.encode("latin-1")),
            (b"access-control-allow-methods", access.methods.encode()),
            (b"access-control-allow-headers", _REQUEST_HEADERS.encode()),
            (b"access-control-expose-headers", _ANSWER_HEADERS.encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
        ]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_with_cors

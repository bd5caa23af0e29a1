"""Callers: a door tells who asks, before anything of a request is read; a route asks what they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Send
from litestar.types import Scope as AsgiScope

from contracts import subjects
from contracts.access import SCOPES, Scope
from contracts.actors import BY_HTTP
from contracts.errors import InvalidName
from contracts.headers import HTTP_TENANT, TENANT_DEFAULT
from mesh.serving.http import AnyRequest, RequestRefused, answer_error, note_in

API: Final = "/v1/"
"""What a path begins with whose caller has to be known. Health and the schema are everybody's."""
_IDENTITY = "taskmesh.identity"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as a door tells. `name` is what journals and logs have as `by`: `key:<id>`, `jwt:<sub>`, or `http`."""

    name: str
    tenant: str | None
    """Whose tasks they may see. None: whichever tenant a request names."""
    scopes: frozenset[Scope]
    pool: str | None = None
    """The one pool that they may use. None: any."""
    budget_tokens: int | None = None
    """The most tokens that one of their tasks may take. None: as the pool says."""
    any_tenant: bool = False
    """Whether a request may name another tenant than theirs."""
    until: datetime | None = None
    """When their credentials end, and with them a stream that was opened by these. None: nobody knows of an end."""


class Caller(NamedTuple):
    """Who asks, and whose tasks are meant."""

    identity: Identity
    tenant: str

    @property
    def name(self) -> str:
        """What is written as `by`."""
        return self.identity.name


ANYBODY: Final = Identity(BY_HTTP, None, frozenset(SCOPES))
"""Who asks where the mode is `open`."""

Door = Callable[[HTTPScope], Awaitable[Identity]]
"""Tells who asks, by the head of a request alone. Raises `RequestRefused`."""


async def open_door(_: HTTPScope) -> Identity:
    """The door of the mode `open`: anybody may do anything, on loopback."""
    return ANYBODY


def identified(app: ASGIApp, door: Door) -> ASGIApp:
    """An application whose requests below `/v1/` come from a known caller; others are refused before they are read."""

    async def dispatch(scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["path"].startswith(API):
            try:
                identity = await door(scope)
            except Exception as error:
                await answer_error(scope, send, error)
                return
            note = note_in(scope)
            if note is not None:
                note.by, note.tenant = identity.name, identity.tenant
            scope = cast("HTTPScope", {**scope, _IDENTITY: identity})
        await app(scope, receive, send)

    return dispatch


def caller_of(request: AnyRequest, scope: Scope, *, named: str | None = None) -> Caller:
    """The caller of a request, if they have this scope, and with the tenant that is meant.

    `named`: the tenant that the request names elsewhere than in `Mesh-Tenant`, which outranks it. Raises
    `RequestRefused`, and `InvalidName` for what can't be a tenant.
    """
    identity = cast("dict[str, Any]", request.scope).get(_IDENTITY)
    if not isinstance(identity, Identity):
        raise TypeError("a route asks for the caller of a request that came through no door")
    if scope not in identity.scopes:
        raise RequestRefused("scope-missing", f"this takes the scope {scope!r}, which these credentials do not have")
    header = _tenant_header(request)
    wanted = named if header is None else header
    if identity.tenant is None or identity.any_tenant:
        own = identity.tenant or TENANT_DEFAULT
        return Caller(identity, subjects.check_tenant(wanted) if wanted is not None else own)
    if wanted is not None and wanted != identity.tenant:
        raise RequestRefused("tenant-mismatch", f"these credentials are of another tenant than {HTTP_TENANT} names")
    return Caller(identity, identity.tenant)


def tenant_of(request: AnyRequest, scope: Scope, *, named: str | None = None) -> str:
    """The tenant whose tasks a request means, as `caller_of`."""
    return caller_of(request, scope, named=named).tenant


def _tenant_header(request: AnyRequest) -> str | None:
    named = request.headers.getall(HTTP_TENANT, [])
    if len(named) > 1:
        # Whoever checked the request on its way may have looked at the other one.
        raise InvalidName(f"{HTTP_TENANT} is there {len(named)} times")
    return named[0] if named else None

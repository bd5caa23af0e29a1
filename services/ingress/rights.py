"""What a caller's own rights make of a task that they ask for, or repair. Pure."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from contracts.codec import decode
from contracts.messages.control import Edits
from contracts.tasks import TaskRequest
from mesh.access.callers import Identity
from mesh.serving.http import RequestRefused


def check_edits(edits: Edits | None, identity: Identity) -> None:
    """Hold what a replay is to change against its caller's rights. Raises `RequestRefused` for another pool."""
    if identity.pool is not None and edits is not None and edits.pool not in (None, identity.pool):
        raise RequestRefused("forbidden", f"edits.pool: these credentials are for the pool {identity.pool!r} alone")


class _Named(msgspec.Struct, frozen=True):
    pool: str | None = None


def within_rights(request: TaskRequest, body: bytes, identity: Identity) -> TaskRequest:
    """The task that `body` asks for, in the one pool and within the budget that its caller may use.

    What the body leaves open is filled in. Raises `RequestRefused` for more than the caller may have.
    """
    if identity.pool is not None and request.pool != identity.pool:
        if decode(body, _Named).pool is not None:
            raise RequestRefused("forbidden", f"pool: these credentials are for the pool {identity.pool!r} alone")
        request = replace(request, pool=identity.pool)
    most = identity.budget_tokens
    if most is not None and (request.budget_tokens is None or request.budget_tokens > most):
        if request.budget_tokens is not None:
            raise RequestRefused("forbidden", f"budget_tokens: with these credentials a task may have {most} at most")
        request = replace(request, budget_tokens=most)
    return request

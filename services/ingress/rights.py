"""What a caller's own rights make of a task that they ask for. Pure."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from contracts.codec import decode
from contracts.tasks import TaskRequest
from mesh.access.callers import Identity
from mesh.serving.http import RequestRefused


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

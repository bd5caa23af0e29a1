"""Error codes, problem documents, and the root of every error that taskmesh raises.

A code is part of the wire: clients match codes, never text. Codes are only added, never renamed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PROBLEM_TYPE_PREFIX = "urn:taskmesh:problem:"

HTTP_STATUS_BY_CODE: dict[str, int] = {
    "invalid-request": 400,
    "unauthorized": 401,
    "link-expired": 401,
    "forbidden": 403,
    "scope-missing": 403,
    "tenant-mismatch": 403,
    "four-eyes": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "conflict": 409,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "misdirected-request": 421,
    "idempotency-mismatch": 422,
    "tool-unknown": 422,
    "rate-limited": 429,
    "budget-exhausted": 429,
    "internal": 500,
    "queue-full": 503,
    "pool-unavailable": 503,
    "broker-unavailable": 503,
    "credentials-unavailable": 503,
    "list-unavailable": 503,
    "too-many-connections": 503,
    "timeout": 504,
}
"""Problem code → HTTP status. The title of each is its entry in `TITLE_BY_CODE`."""

TITLE_BY_CODE: dict[str, str] = {
    "invalid-request": "The request is not valid",
    "unauthorized": "Credentials are missing or wrong",
    "link-expired": "The link has expired",
    "forbidden": "This is not allowed",
    "scope-missing": "The credentials lack the scope that this takes",
    "tenant-mismatch": "The credentials are of another tenant",
    "four-eyes": "Another person than the submitter has to decide this",
    "not-found": "There is no such resource",
    "method-not-allowed": "The resource does not take this method",
    "conflict": "The resource is not in a state that allows this",
    "payload-too-large": "The request body is too large",
    "unsupported-media-type": "The request body is not application/json",
    "misdirected-request": "The host that was named is not served here",
    "idempotency-mismatch": "The idempotency key was used with another body",
    "tool-unknown": "There is no such tool",
    "rate-limited": "Too many requests",
    "budget-exhausted": "The budget is used up",
    "internal": "Something broke on our side",
    "queue-full": "The queue is full",
    "pool-unavailable": "The pool takes no work at present",
    "broker-unavailable": "The broker does not answer",
    "credentials-unavailable": "Credentials can't be checked at present",
    "list-unavailable": "The list can't be told at present",
    "too-many-connections": "The service has no room for more requests",
    "timeout": "The answer did not come in time",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as `application/problem+json` (RFC 9457).

    `type` is `urn:taskmesh:problem:<code>`; `code` repeats the code for convenience. Of what has to come again later,
    `cause` is a stable word for what stands in the way, and `depth` how many stand before it there, where that is
    known.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str | None = None
    instance: str | None = None
    cause: str | None = None
    depth: Annotated[int, Meta(ge=0)] | None = None


def problem(
    code: str,
    detail: str | None = None,
    instance: str | None = None,
    *,
    cause: str | None = None,
    depth: int | None = None,
) -> Problem:
    """Build the problem document of a code. An unknown code is a programming error (KeyError)."""
    return Problem(
        type=PROBLEM_TYPE_PREFIX + code,
        title=TITLE_BY_CODE[code],
        status=HTTP_STATUS_BY_CODE[code],
        code=code,
        detail=detail,
        instance=instance,
        cause=cause,
        depth=depth,
    )


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error inside an event or record: a stable code, a message for people, detail for tools."""

    code: str
    message: str
    detail: str | None = None


class TaskmeshError(Exception):
    """The root of all errors raised by taskmesh.

    `code` is stable. `retryable` says whether the same attempt may succeed later, and is decided
    where the error is raised.
    """

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def info(self) -> ErrorInfo:
        """The error as it is stored in events and records."""
        return ErrorInfo(self.code, str(self))


class InvalidName(TaskmeshError):
    """A tenant, task, pool, priority, tool or call whose characters may not reach a subject."""

    code = "invalid-request"


class InvalidPayload(TaskmeshError):
    """Bytes that are not a valid message of the expected type."""

    code = "invalid-request"

"""Cancelling many tasks of a tenant: those that the list finds by a filter, piece by piece, at a bounded pace.

A piece is one request. Whoever asks goes on from its cursor, or begins anew: a task that has been asked to end is
known to CONTROL, or has ended, so that nothing is done twice. Commands wait in one queue with everybody else's, so
no more are sent than a steward is about to carry out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
import structlog
from litestar import Response, post
from msgspec import Meta
from msgspec.structs import replace

from contracts.api.valves import CANCELLED_AT_ONCE_MAX, SAMPLE_MAX, CancelAnswer, CancelRequest
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.fields import Time
from contracts.messages.control import CancelCommand, cancel_message_id
from contracts.records.status import ENDED, STATUSES, Status, TaskRecord
from contracts.streams import CONTROL
from contracts.tasks import BODY_BYTES_MAX
from ingress import commands
from ingress.listing.filters import TaskFilter
from ingress.listing.keys import scalar_text
from ingress.listing.lists import Lists
from mesh.access.audit import acted
from mesh.access.callers import Caller, caller_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.serving.http import AnyRequest, RequestRefused, json_response, read_json_body

log = structlog.get_logger("ingress.mass_cancel")

ROUTE: Final = "/v1/tasks/cancel"
OPEN: Final[tuple[Status, ...]] = tuple(status for status in STATUSES if status not in ENDED)
PAGE_TASKS: Final = 100
SENT_AT_ONCE: Final = 20
PER_SECOND_MAX: Final = 250
"""Commands of one ingress: a steward carries out about as many on a small machine."""
COMMANDS_WAITING_MAX: Final = 500
"""Commands that may wait for a steward when more are sent: who cancels one task, or approves a call, waits for them."""
WAITING_SECONDS_MAX: Final = 10.0
"""How long one request may wait for that: whoever asks waits for its answer."""
WAITING_LOOK_SECONDS: Final = 0.2
RETRY_SECONDS: Final = 2.0
COUNTED_MAX: Final = 20_000
"""Tasks that one request of a dry run counts."""


class _Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a walk is: only tasks that were accepted before a time are met, by their status, each in the list's order.

    The time stays that of the first request, so that what comes in meanwhile is none of it.
    """

    before: Time
    status: Annotated[int, Meta(ge=0, lt=len(OPEN))] = 0
    cursor: str | None = None


class MassCancel:
    """What the route stands on. One piece at a time: they share the pace."""

    def __init__(self, requests: Requests, lists: Lists) -> None:
        self._requests = requests
        self._lists = lists
        self._turn = asyncio.Lock()

    async def cancel(self, request: AnyRequest) -> Response[bytes]:
        """`POST /v1/tasks/cancel`"""
        caller = caller_of(request, "operate")
        body = await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX))
        wanted = _within_rights(decode(body, CancelRequest, whole_numbers=True), caller)
        if wanted.status in ENDED:
            raise InvalidPayload(f"status: a task that is {wanted.status} has ended; one of {', '.join(OPEN)}")
        place = _parsed(wanted.cursor) if wanted.cursor is not None else _Place(_first_bound(wanted))
        if wanted.dry_run:
            return json_response(await self._count(caller.tenant, wanted, place))
        acted(request, caller, "cancel-many", target=_told(wanted), reason=wanted.reason)
        async with self._turn:
            answer = await self._cancel(request, caller, wanted, place)
        log.info("tasks.cancel_asked", tenant=caller.tenant, asked=answer.asked, already=answer.already)
        return json_response(answer)

    async def _count(self, tenant: str, wanted: CancelRequest, place: _Place) -> CancelAnswer:
        counts: Counter[Status] = Counter()
        sample: list[TaskRecord] = []
        cursor: _Place | None = None
        async for tasks, behind in self._pages(tenant, wanted, place):
            counts.update(task.status for task in tasks)
            sample += tasks[: SAMPLE_MAX - len(sample)]
            cursor = behind
            if counts.total() >= COUNTED_MAX:
                break
        return _answer(place, counts, 0, 0, sample, cursor)

    async def _cancel(self, request: AnyRequest, caller: Caller, wanted: CancelRequest, place: _Place) -> CancelAnswer:
        loop = asyncio.get_running_loop()
        counts: Counter[Status] = Counter()
        asked = already = 0
        cursor: _Place | None = place
        give_up_at = loop.time() + WAITING_SECONDS_MAX
        async for tasks, behind in self._pages(caller.tenant, wanted, place):
            for start in range(0, len(tasks), SENT_AT_ONCE):
                some = tasks[start : start + SENT_AT_ONCE]
                began_at = loop.time()
                try:
                    await self._until_few_wait(give_up_at)
                    acks = await asyncio.gather(*(self._send(request, caller, wanted, task) for task in some))
                except RequestRefused:
                    if not counts:
                        raise
                    # What was done is told, and the page is met again: those of it that were asked know it.
                    return _answer(place, counts, asked, already, [], cursor)
                counts.update(task.status for task in some)
                already += sum(acks)
                asked += len(some) - sum(acks)
                await asyncio.sleep(began_at + len(some) / PER_SECOND_MAX - loop.time())
            cursor = behind
            if asked + already >= CANCELLED_AT_ONCE_MAX:
                break
        return _answer(place, counts, asked, already, [], cursor)

    async def _pages(
        self, tenant: str, wanted: CancelRequest, place: _Place
    ) -> AsyncIterator[tuple[list[TaskRecord], _Place | None]]:
        """Pages of tasks that fit, each with the place behind it; None behind the last one."""
        current: _Place | None = place
        while current is not None:
            status = OPEN[current.status]
            page = TaskFilter(
                status=status,
                metadata=tuple((key, scalar_text(value)) for key, value in wanted.metadata.items()),
                pool=wanted.pool,
                priority=wanted.priority,
                created_before=current.before,
            )
            is_wanted = wanted.status in (None, status)
            found = (
                await self._lists.tasks(tenant, page, limit=PAGE_TASKS, cursor=current.cursor) if is_wanted else None
            )
            cursor = found.cursor if found is not None else None
            if cursor is not None:
                current = replace(current, cursor=cursor)
            else:
                last = current.status + 1 == len(OPEN)
                current = None if last else _Place(current.before, current.status + 1)
            if found is not None:
                yield found.tasks, current

    async def _until_few_wait(self, give_up_at: float) -> None:
        """Wait while too many commands wait already. Raises `RequestRefused`, `BrokerUnavailable`, `BrokerError`."""
        loop = asyncio.get_running_loop()
        while True:
            info = await self._requests.api(f"STREAM.INFO.{CONTROL.name}")
            waiting = int(info["state"]["messages"])
            if waiting <= COMMANDS_WAITING_MAX:
                return
            if loop.time() >= give_up_at:
                detail = f"{waiting:,} commands wait for a steward"
                raise RequestRefused("queue-full", detail, retry_after_seconds=RETRY_SECONDS)
            await asyncio.sleep(WAITING_LOOK_SECONDS)

    async def _send(self, request: AnyRequest, caller: Caller, wanted: CancelRequest, task: TaskRecord) -> bool:
        """Ask for the end of one; whether that had been asked before."""
        command = CancelCommand(task=task.id, tenant=caller.tenant, by=caller.name, reason=wanted.reason)
        ack = await commands.send(self._requests, command, cancel_message_id(task.id), request, ROUTE)
        return ack.duplicate


def _within_rights(wanted: CancelRequest, caller: Caller) -> CancelRequest:
    """The filter, in the one pool that a caller may use. Raises `RequestRefused`."""
    own = caller.identity.pool
    if own is None:
        return wanted
    if wanted.pool not in (None, own):
        raise RequestRefused("forbidden", f"pool: these credentials are for the pool {own!r} alone")
    return replace(wanted, pool=own)


def _first_bound(wanted: CancelRequest) -> datetime:
    try:
        bound = now() - timedelta(seconds=wanted.older_than_seconds)
        return bound if wanted.created_before is None else min(bound, wanted.created_before)
    except OverflowError:
        raise InvalidPayload("older_than_seconds: that is longer ago than time goes") from None


def _told(wanted: CancelRequest) -> str:
    """A filter, for people."""
    named = {
        "status": wanted.status,
        "pool": wanted.pool,
        "priority": wanted.priority,
        "older_than_seconds": wanted.older_than_seconds or None,
        "created_before": wanted.created_before.isoformat() if wanted.created_before is not None else None,
        **{f"metadata.{key}": value for key, value in wanted.metadata.items()},
    }
    return ", ".join(f"{key}={value}" for key, value in named.items() if value is not None) or "all"


def _answer(
    begin: _Place, counts: Counter[Status], asked: int, already: int, sample: list[TaskRecord], place: _Place | None
) -> CancelAnswer:
    return CancelAnswer(
        matched=counts.total(),
        asked=asked,
        already=already,
        by_status=dict(counts),
        sample=sample,
        cursor=None if place is None else base64.urlsafe_b64encode(encode(place)).decode().rstrip("="),
        created_before=begin.before,
    )


def _parsed(cursor: str) -> _Place:
    try:
        return decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), _Place)
    except (InvalidPayload, binascii.Error, ValueError):
        raise InvalidPayload("cursor: not a cursor of this walk") from None


def mass_cancel_routes(mass_cancel: MassCancel) -> list[object]:
    """The one route."""

    # No id is like it: those have 26 characters.
    @post(ROUTE, status_code=200)
    async def cancel(request: AnyRequest) -> Response[bytes]:
        return await mass_cancel.cancel(request)

    return [cancel]

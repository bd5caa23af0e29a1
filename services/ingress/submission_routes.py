"""`POST /v1/tasks`: accept a task or refuse it, at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
from litestar import Response
from opentelemetry.trace import SpanKind

from contracts import headers
from contracts.records.status import QueueState, TaskAccepted, TaskLink, TaskRecord
from contracts.tasks import BODY_BYTES_MAX, TaskRequest
from ingress.budgets import Budgets, Reservation
from ingress.journals import read_journal
from ingress.known_tools import KnownTools
from ingress.lane_statistics import Lanes
from ingress.links import preferred_link, task_links, task_path
from ingress.parsing import (
    check_pool,
    parse_idempotency_key,
    parse_link_seconds,
    parse_task_request,
    parse_wait_seconds,
)
from ingress.pool_availability import Providers
from ingress.refusals import Refusals
from ingress.rights import within_rights
from ingress.storage import Storage
from ingress.task_records import TaskRecords
from ingress.waiting import PauseOf, Waits
from mesh.access.callers import caller_of
from mesh.access.link_keys import LinkSigning
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, QueueFull
from mesh.fleet.eta import begun
from mesh.journal.following import Following, TaskNotFound
from mesh.journal.submission import Admission, Submission, Submitted
from mesh.journal.warm import WarmJournals
from mesh.serving.http import AnyRequest, RequestRefused, http_code, json_response, quotas_in, read_json_body
from mesh.serving.rate_limit_fields import Quota, rate_limit_fields
from mesh.telemetry import metrics, traces

log = structlog.get_logger("ingress")

WAIT_POLL_SECONDS: Final = 15.0
_SPAN_ATTRIBUTES = {"http.request.method": "POST", "http.route": "/v1/tasks"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionParts:
    """What is asked, and told, when a task is accepted."""

    submission: Submission
    following: Following
    lanes: Lanes
    storage: Storage
    providers: Providers
    budgets: Budgets
    waits: Waits
    pause_of: PauseOf
    journals: WarmJournals
    records: TaskRecords
    signing: LinkSigning
    stopping: asyncio.Event


class Submissions:
    """What the route stands on."""

    def __init__(self, settings: Settings, requests: Requests, tools: KnownTools, parts: SubmissionParts) -> None:
        self._settings = settings
        self._requests = requests
        self._tools = tools
        self._parts = parts
        self._refusals = Refusals(parts.lanes, parts.pause_of)

    def take(self, settings: Settings, tools: KnownTools) -> None:
        """Go by these settings from the next request on."""
        self._settings = settings
        self._tools = tools
        self._parts.submission.configure(settings.configuration)

    async def submit(self, request: AnyRequest) -> Response[bytes]:
        """`POST /v1/tasks`"""
        try:
            return await self._submit(request)
        except Exception as error:
            metrics.submission_refused(http_code(error))
            raise

    async def _submit(self, request: AnyRequest) -> Response[bytes]:
        caller = caller_of(request, "submit")
        tenant = caller.tenant
        told = request.headers  # Once: the framework makes them anew each time.
        key = parse_idempotency_key(told.get(headers.HTTP_IDEMPOTENCY_KEY))
        prefer = told.get(headers.HTTP_PREFER)
        wait_seconds = parse_wait_seconds(prefer)
        body = await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX))
        allowed = within_rights(parse_task_request(body), body, caller.identity)
        task_request = check_pool(allowed, self._settings.pools)
        refusal = self._parts.storage.refusal
        if refusal is not None:
            raise self._refusals.storage(refusal, task_request)
        incoming = traces.parse_traceparent(told.get(headers.TRACEPARENT))
        with traces.span("POST /v1/tasks", incoming, SpanKind.SERVER, _SPAN_ATTRIBUTES) as span:
            traceparent = traces.current_traceparent() or incoming or traces.new_traceparent()
            try:
                with self._parts.budgets.reserving(tenant, task_request) as reservation:
                    submitted = await self._parts.submission.submit(
                        # For the door alone: it is not stored, where an older worker would not know it.
                        msgspec.structs.replace(task_request, unknown_tools="refuse"),
                        tenant,
                        key,
                        traceparent,
                        admit=lambda: self._admit(tenant, task_request, reservation),
                        by=caller.name,
                        pool_bound=caller.identity.pool is not None,
                    )
                    reservation.is_needed = not submitted.existing
            except QueueFull as error:
                raise self._refusals.queue_full(error, task_request, tenant) from None
            span.set_attribute("taskmesh.task", submitted.task)
            log.debug("task.accepted", task=submitted.task, tenant=tenant, existing=submitted.existing)
            if wait_seconds:
                finished = await self._wait(tenant, submitted.task, wait_seconds)
                if finished is not None:
                    applied = {"Preference-Applied": f"wait={wait_seconds}", "Location": task_path(submitted.task)}
                    return json_response(finished, 200, applied)
            link = await preferred_link(
                self._settings, self._parts.signing, caller, submitted.task, parse_link_seconds(prefer)
            )
            quotas = [*quotas_in(request.scope), *self._parts.budgets.quotas(tenant)]
            return await self._accepted(submitted, link, quotas)

    async def _accepted(self, submitted: Submitted, link: TaskLink | None, quotas: list[Quota]) -> Response[bytes]:
        known = None
        if submitted.existing:
            known = await self._parts.records.read(submitted.tenant, submitted.task, says_waiting=True)
        accepted = TaskAccepted(
            id=submitted.task,
            tenant=submitted.tenant,
            status=known.status if known is not None else "queued",
            pool=submitted.pool,
            priority=submitted.priority,  # type: ignore[arg-type]  # it was validated as one
            created_at=submitted.created_at,
            updated_at=known.updated_at if known is not None else submitted.created_at,
            sequence=known.sequence if known is not None else 0,
            queue=self._place(submitted, known),
            links=task_links(self._settings, submitted.task),
            link=link or msgspec.UNSET,
            pause=self._parts.pause_of(submitted.pool, submitted.priority, submitted.tenant) or msgspec.UNSET,
        )
        answer_headers = {"Location": task_path(submitted.task), **rate_limit_fields(quotas)}
        if link is not None:
            answer_headers["Preference-Applied"] = "link"
        return json_response(accepted, 202, answer_headers)

    def _place(self, submitted: Submitted, known: TaskRecord | None) -> QueueState:
        """Where an accepted task stands: a new one behind all that was seen, and one that was there where it is."""
        if known is not None:
            return known.queue or begun(self._parts.lanes.depth(known.pool, known.priority))
        place = self._parts.waits.place(submitted.pool, submitted.priority, tenant=submitted.tenant)
        self._parts.lanes.accepted(submitted.pool, submitted.priority, submitted.tenant)
        return place

    async def _wait(self, tenant: str, task: str, wait_seconds: int) -> TaskRecord | None:
        """The finished task; None if it does not end in time, or can't be seen: it is accepted all the same."""
        following = asyncio.create_task(self._end_of(tenant, task))
        stopping = asyncio.create_task(self._parts.stopping.wait())
        try:
            await asyncio.wait({following, stopping}, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else None
        except (BrokerUnavailable, TaskNotFound):
            return None
        finally:
            following.cancel()
            stopping.cancel()
            await asyncio.gather(following, stopping, return_exceptions=True)

    async def _end_of(self, tenant: str, task: str) -> TaskRecord:
        """The task, once it has ended."""
        follower = await self._parts.following.open(tenant, task, 0)
        if follower is not None:
            async with aclosing(follower.batches(WAIT_POLL_SECONDS)) as batches:
                async for _ in batches:
                    pass
        return await self._parts.records.read(tenant, task)

    async def _admit(self, tenant: str, request: TaskRequest, reservation: Reservation) -> Admission:
        """Refuse a task that none could run in time, names an unknown tool, continues no end, or is over the budget."""
        full = self._refusals.known_full(request, tenant)
        if full is not None:
            raise full
        refusal = self._parts.providers.refusal(request)
        if refusal is not None:
            raise self._refusals.pool_unavailable(refusal, request)
        unknown = await self._tools.refusal(request.tools or ()) if request.unknown_tools == "refuse" else None
        if unknown is not None:
            raise RequestRefused("tool-unknown", unknown)
        history_tokens = await self._history_tokens(tenant, request.continues) if request.continues else 0
        reservation.check()
        thought = self._parts.submission.estimate(request, history_tokens)
        return Admission(thought, await reservation.take(thought))

    async def _history_tokens(self, tenant: str, task: str) -> int:
        journal = await read_journal(self._parts.journals, tenant, task, lambda state: state.terminal is not None)
        if journal.state.terminal is None:
            raise RequestRefused(
                "conflict", f"task {task} is {journal.state.status}: only an ended one can be continued"
            )
        last = journal.state.last_completed
        return last.usage.input_tokens + last.usage.output_tokens if last is not None else 0

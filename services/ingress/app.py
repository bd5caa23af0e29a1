"""The HTTP face of the ingress: accept or refuse, at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import structlog
from litestar import Litestar, Response, get, post
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.api.inputs import MessageInput
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.generation.openapi import openapi
from contracts.messages.control import ApprovalCommand, CancelCommand, InputCommand, cancel_message_id
from contracts.records.status import ENDED, TaskAccepted, TaskLink, TaskRecord
from contracts.streams import TASKS_BUCKET
from contracts.tasks import BODY_BYTES_MAX, TaskRequest
from ingress import commands, input_decisions
from ingress.approving import Approving
from ingress.dead_letter_routes import DeadLetters, dead_letter_routes
from ingress.journals import checked_task, packed_record, read_journal
from ingress.known_tools import KnownTools
from ingress.lane_statistics import Lanes
from ingress.links import preferred_link, signed_link, task_links, task_path
from ingress.listing.lists import Lists
from ingress.mass_cancel import MassCancel, mass_cancel_routes
from ingress.parsing import (
    check_pool,
    parse_idempotency_key,
    parse_limit,
    parse_link_request,
    parse_link_seconds,
    parse_task_filter,
    parse_task_input,
    parse_task_request,
    parse_tool_cursor,
    parse_wait_seconds,
)
from ingress.pool_availability import Providers
from ingress.pool_load import PoolLoads
from ingress.rights import within_rights
from ingress.storage import RETRY_AFTER_SECONDS, Storage
from ingress.usage import UsageReports, usage_routes
from ingress.valve_routes import ValveRoutes, valve_routes
from ingress.waiting import Waits
from mesh.access.audit import acted
from mesh.access.callers import caller_of, tenant_of
from mesh.access.link_keys import LinkSigning
from mesh.broker import key_value
from mesh.broker.direct_get import find_sequence
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, QueueFull
from mesh.journal.following import Following, TaskNotFound
from mesh.journal.submission import Submission, Submitted
from mesh.journal.warm import WarmJournals
from mesh.serving.http import (
    EXCEPTION_HANDLERS,
    AnyRequest,
    Probe,
    RequestRefused,
    answer_directly,
    health_routes,
    http_code,
    json_response,
    read_json_body,
)
from mesh.task.records import record
from mesh.telemetry import audit, metrics, traces

log = structlog.get_logger("ingress")

WAIT_POLL_SECONDS = 15.0
_SPAN_ATTRIBUTES = {"http.request.method": "POST", "http.route": "/v1/tasks"}


class Ingress:
    """What the routes stand on."""

    def __init__(
        self,
        settings: Settings,
        requests: Requests,
        submission: Submission,
        following: Following,
        lanes: Lanes,
        storage: Storage,
        providers: Providers,
        stopping: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._requests = requests
        self._submission = submission
        self._following = following
        self._lanes = lanes
        self._storage = storage
        self._providers = providers
        self._stopping = stopping
        self._tools = KnownTools(requests, settings.configuration.tools)
        self._pool_loads = PoolLoads(requests, settings.worker_concurrency)
        self._journals = WarmJournals(requests)
        self.valves = ValveRoutes(requests, providers.valves, settings.configuration)
        self._waits = Waits(requests, lanes.fleet, providers, self.valves.pause_of)
        self._approving = Approving(requests, self._journals, settings.configuration)
        self.usage = UsageReports(requests)
        self.signing = LinkSigning(requests)
        self.lists = Lists(requests, settings.index_folder)
        self.mass_cancel = MassCancel(requests, self.lists)
        self.dead_letters = DeadLetters(settings, requests, self.lists, self._journals, self._approving)

    async def take(self, settings: Settings) -> None:
        """Go by these settings from the next request on."""
        self._settings = settings
        self._submission.configure(settings.configuration.pools)
        self._providers.configure(settings.configuration)
        self._tools = KnownTools(self._requests, settings.configuration.tools)
        self._approving.configure(settings.configuration)
        self.valves.configure(settings.configuration)

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
        key = parse_idempotency_key(request.headers.get(headers.HTTP_IDEMPOTENCY_KEY))
        prefer = request.headers.get(headers.HTTP_PREFER)
        wait_seconds = parse_wait_seconds(prefer)
        body = await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX))
        allowed = within_rights(parse_task_request(body), body, caller.identity)
        task_request = check_pool(allowed, self._settings.pools)
        refusal = self._storage.refusal
        if refusal is not None:
            raise RequestRefused("queue-full", refusal, retry_after_seconds=RETRY_AFTER_SECONDS)
        incoming = traces.parse_traceparent(request.headers.get(headers.TRACEPARENT))
        with traces.span("POST /v1/tasks", incoming, SpanKind.SERVER, _SPAN_ATTRIBUTES) as span:
            traceparent = traces.current_traceparent() or incoming or traces.new_traceparent()
            try:
                submitted = await self._submission.submit(
                    # For the door alone: it is not stored, where an older worker would not know it.
                    msgspec.structs.replace(task_request, unknown_tools="refuse"),
                    tenant,
                    key,
                    traceparent,
                    admit=lambda: self._admit(tenant, task_request),
                    by=caller.name,
                    pool_bound=caller.identity.pool is not None,
                )
            except QueueFull as error:
                retry_after = self._lanes.retry_after_seconds(task_request.pool, task_request.priority)
                raise RequestRefused(error.code, str(error), retry_after_seconds=retry_after) from None
            span.set_attribute("taskmesh.task", submitted.task)
            log.debug("task.accepted", task=submitted.task, tenant=tenant, existing=submitted.existing)
            if wait_seconds:
                finished = await self._wait(tenant, submitted.task, wait_seconds)
                if finished is not None:
                    applied = {"Preference-Applied": f"wait={wait_seconds}", "Location": task_path(submitted.task)}
                    return json_response(finished, 200, applied)
            link = await preferred_link(
                self._settings, self.signing, caller, submitted.task, parse_link_seconds(prefer)
            )
            return await self._accepted(submitted, link)

    async def task(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`GET /v1/tasks/{id}`"""
        tenant = tenant_of(request, "read")
        shown = await self._record(tenant, checked_task(task), says_waiting=True)
        return json_response(shown)

    async def link(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/tasks/{id}/links`"""
        caller = caller_of(request, "read")
        checked_task(task)
        wanted = parse_link_request(await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX), absent=b"{}"))
        await self._record(caller.tenant, task)  # Only of a task that is there is there anything to see.
        acted(request, caller, "link", task)
        made = await signed_link(self._settings, self.signing, caller, task, wanted.expires_in_seconds)
        return json_response(made)

    def events(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`GET /v1/tasks/{id}/events`: they are at the stream edge."""
        tenant_of(request, "read", named=request.query_params.get("tenant"))
        url = task_links(self._settings, checked_task(task)).events
        query = request.scope["query_string"].decode("latin-1")
        location = f"{url}?{query}" if query else url
        return Response(b"", status_code=307, headers={"Location": location, "Cache-Control": "no-store"})

    async def tasks(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/tasks`"""
        tenant = tenant_of(request, "read")
        query = request.query_params
        page = await self.lists.tasks(
            tenant,
            parse_task_filter(query.multi_items()),
            limit=parse_limit(query.get("limit")),
            cursor=query.get("cursor"),
        )
        linked = [self._linked(task) for task in page.tasks]
        return json_response(msgspec.structs.replace(page, tasks=linked))

    async def counts(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/tasks/counts`"""
        counts = await self.lists.counts(tenant_of(request, "read"))
        return json_response(counts)

    async def tools(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/tools`"""
        tenant_of(request, "read")
        query = request.query_params
        page = await self._tools.page(parse_limit(query.get("limit")), parse_tool_cursor(query.get("cursor")))
        return json_response(page)

    async def pool_load(self, request: AnyRequest, pool: str) -> Response[bytes]:
        """`GET /v1/pools/{pool}/load`"""
        tenant_of(request, "operate")
        load = await self._pool_loads.load(pool, self._settings.pools)
        return json_response(load)

    async def cancel(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/tasks/{id}/cancel`"""
        caller = caller_of(request, "submit")
        record = await self._record(caller.tenant, checked_task(task))
        if record.status in ENDED:
            return json_response(record)
        acted(request, caller, "cancel", record.id)
        command = CancelCommand(task=record.id, tenant=caller.tenant, by=caller.name)
        await commands.send(self._requests, command, cancel_message_id(record.id), request, "/v1/tasks/{task}/cancel")
        log.debug("task.cancel_asked", task=record.id, tenant=caller.tenant)
        return json_response(record, 202)

    async def input(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/tasks/{id}/inputs`"""
        caller = caller_of(request, "answer")
        tenant = caller.tenant
        checked_task(task)
        key = parse_idempotency_key(request.headers.get(headers.HTTP_IDEMPOTENCY_KEY))
        said = parse_task_input(await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX)))
        journal = await read_journal(self._journals, tenant, task, lambda state: input_decisions.shows(state, said))
        message_id = input_decisions.message_id(tenant, task, said, key)
        if not input_decisions.was_carried_out(journal.state, said, message_id):
            command = input_decisions.command_for(journal.state, said, message_id, caller.name)
            acted(request, caller, audit.what_of(command), task)
            await self._approving.check(caller, journal.state, command)
            route = "/v1/tasks/{task}/inputs"
            ack = await commands.send(self._requests, command, message_id, request, route)
            if ack.duplicate and isinstance(said, MessageInput):
                await self._check_duplicate(tenant, task, said, message_id, ack.seq)
            if ack.duplicate and isinstance(command, ApprovalCommand) and command.decision == "approved":
                await self._approving.send_again(journal.state, command, message_id, ack, request, route)
            log.debug("task.input_asked", task=task, tenant=tenant, kind=command.__struct_config__.tag)
        return json_response(self._linked(record(journal.state)), 202)

    async def _check_duplicate(
        self, tenant: str, task: str, said: MessageInput, message_id: str, sequence: int
    ) -> None:
        """Hold a message whose key is known against the one that CONTROL has, or had, at `sequence`."""
        stored = await find_sequence(self._requests, "CONTROL", sequence)
        if stored is not None:
            input_decisions.check_same(said, decode(stored.payload, InputCommand))
            return
        journal = await read_journal(self._journals, tenant, task, lambda state: message_id in state.commands)
        input_decisions.was_carried_out(journal.state, said, message_id)

    async def _admit(self, tenant: str, request: TaskRequest) -> None:
        """Refuse a task that no provider could run in time, that names an unknown tool, or continues what is no end."""
        refusal = self._providers.refusal(request)
        if refusal is not None:
            raise RequestRefused("pool-unavailable", refusal.reason, retry_after_seconds=refusal.retry_after_seconds)
        unknown = await self._tools.refusal(request.tools or ()) if request.unknown_tools == "refuse" else None
        if unknown is not None:
            raise RequestRefused("tool-unknown", unknown)
        if request.continues is None:
            return
        journal = await read_journal(
            self._journals, tenant, request.continues, lambda state: state.terminal is not None
        )
        if journal.state.terminal is None:
            raise RequestRefused(
                "conflict", f"task {request.continues} is {journal.state.status}: only an ended one can be continued"
            )

    async def _accepted(self, submitted: Submitted, link: TaskLink | None) -> Response[bytes]:
        known = await self._record(submitted.tenant, submitted.task) if submitted.existing else None
        accepted = TaskAccepted(
            id=submitted.task,
            tenant=submitted.tenant,
            status=known.status if known is not None else "queued",
            pool=submitted.pool,
            priority=submitted.priority,  # type: ignore[arg-type]  # it was validated as one
            created_at=submitted.created_at,
            updated_at=known.updated_at if known is not None else submitted.created_at,
            sequence=known.sequence if known is not None else 0,
            queue=self._lanes.queue(submitted.pool, submitted.priority),
            links=task_links(self._settings, submitted.task),
            link=link or msgspec.UNSET,
            pause=self.valves.pause_of(submitted.pool, submitted.priority, submitted.tenant) or msgspec.UNSET,
        )
        answer_headers = {"Location": task_path(submitted.task)}
        if link is not None:
            answer_headers["Preference-Applied"] = "link"
        return json_response(accepted, 202, answer_headers)

    async def _record(self, tenant: str, task: str, *, says_waiting: bool = False) -> TaskRecord:
        """A task's status, folded from its journal. That of one that has ended does not change any more.

        `says_waiting`: with what it waits for.
        """
        if not self._journals.is_warm(tenant, task):
            entry = await key_value.get(self._requests, TASKS_BUCKET.name, subjects.task_key(tenant, task))
            projected = _readable_record(entry.value) if entry is not None and entry.value else None
            if projected is not None and projected.status in ENDED:
                return self._linked(projected)
            packed = await packed_record(self._requests, tenant, task) if entry is None else None
            if packed is not None:
                return self._linked(packed)
        state = (await read_journal(self._journals, tenant, task)).state
        shown = self._linked(record(state))
        return await self._waits.told(shown, state) if says_waiting else shown

    async def _wait(self, tenant: str, task: str, wait_seconds: int) -> TaskRecord | None:
        """The finished task; None if it does not end in time, or can't be seen: it is accepted all the same."""
        following = asyncio.create_task(self._end_of(tenant, task))
        stopping = asyncio.create_task(self._stopping.wait())
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
        follower = await self._following.open(tenant, task, 0)
        if follower is not None:
            async with aclosing(follower.batches(WAIT_POLL_SECONDS)) as batches:
                async for _ in batches:
                    pass
        return await self._record(tenant, task)

    def _linked(self, task: TaskRecord) -> TaskRecord:
        return msgspec.structs.replace(task, links=task_links(self._settings, task.id))


def _readable_record(value: bytes) -> TaskRecord | None:
    """A record, if this version can read it; else the journal is asked."""
    try:
        return decode(value, TaskRecord)
    except InvalidPayload:
        return None


def create_app(ingress: Ingress, probe: Probe) -> ASGIApp:
    """The ASGI application."""
    app = _routes(ingress, probe)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        # The one route that has to be fast: past the framework, which would take a seventh of its time.
        if scope["type"] == ScopeType.HTTP and scope["path"] == "/v1/tasks" and scope["method"] == "POST":
            await answer_directly(ingress.submit, scope, receive, send)
        else:
            await app(scope, receive, send)

    return dispatch


def _routes(ingress: Ingress, probe: Probe) -> Litestar:
    document = encode(openapi())

    # `create_app` serves this one. It is here so that the framework knows what /v1/tasks takes.
    @post("/v1/tasks")
    async def submit(request: AnyRequest) -> Response[bytes]:
        return await ingress.submit(request)

    @get("/v1/tasks")
    async def tasks(request: AnyRequest) -> Response[bytes]:
        return await ingress.tasks(request)

    # No id is like it: those have 26 characters.
    @get("/v1/tasks/counts")
    async def counts(request: AnyRequest) -> Response[bytes]:
        return await ingress.counts(request)

    @get("/v1/tools")
    async def tools(request: AnyRequest) -> Response[bytes]:
        return await ingress.tools(request)

    @get("/v1/pools/{pool:str}/load")
    async def pool_load(request: AnyRequest, pool: str) -> Response[bytes]:
        return await ingress.pool_load(request, pool)

    @get("/v1/tasks/{task:str}")
    async def task(request: AnyRequest, task: str) -> Response[bytes]:
        return await ingress.task(request, task)

    @get("/v1/tasks/{task:str}/events")
    async def events(request: AnyRequest, task: str) -> Response[bytes]:
        return ingress.events(request, task)

    @post("/v1/tasks/{task:str}/links", status_code=200)
    async def links(request: AnyRequest, task: str) -> Response[bytes]:
        return await ingress.link(request, task)

    @post("/v1/tasks/{task:str}/cancel")
    async def cancel(request: AnyRequest, task: str) -> Response[bytes]:
        return await ingress.cancel(request, task)

    @post("/v1/tasks/{task:str}/inputs")
    async def inputs(request: AnyRequest, task: str) -> Response[bytes]:
        return await ingress.input(request, task)

    @get("/schema")
    async def schema() -> Response[bytes]:
        return Response(document, media_type="application/vnd.oai.openapi+json")

    handlers: list[object] = [
        *(submit, tasks, counts, tools, pool_load, task, events, links, cancel, inputs, schema),
        *dead_letter_routes(ingress.dead_letters),
        *valve_routes(ingress.valves),
        *mass_cancel_routes(ingress.mass_cancel),
        *usage_routes(ingress.usage),
        *health_routes("ingress", probe),
    ]
    return Litestar(
        route_handlers=handlers,  # type: ignore[arg-type]  # as the framework's own handlers are, mixed
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
        debug=False,
    )

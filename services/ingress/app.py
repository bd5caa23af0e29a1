"""The HTTP face of the ingress: accept or refuse, at once."""

from __future__ import annotations

import asyncio

import msgspec
import structlog
from litestar import Litestar, Response, get, post
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from contracts import headers
from contracts.api.inputs import MessageInput
from contracts.codec import decode, encode
from contracts.generation.openapi import openapi
from contracts.messages.control import ApprovalCommand, CancelCommand, InputCommand, cancel_message_id
from contracts.records.status import ENDED
from contracts.tasks import BODY_BYTES_MAX
from ingress import commands, input_decisions
from ingress.approving import Approving
from ingress.budgets import Budgets
from ingress.dead_letter_routes import DeadLetters, dead_letter_routes
from ingress.journals import checked_task, read_journal
from ingress.known_tools import KnownTools
from ingress.lane_statistics import Lanes
from ingress.links import signed_link, task_links
from ingress.listing.lists import Lists
from ingress.mass_cancel import MassCancel, mass_cancel_routes
from ingress.parsing import (
    parse_idempotency_key,
    parse_limit,
    parse_link_request,
    parse_task_filter,
    parse_task_input,
    parse_tool_cursor,
)
from ingress.pool_availability import Providers
from ingress.pool_routes import Pools, pool_routes
from ingress.storage import Storage
from ingress.submission_routes import SubmissionParts, Submissions
from ingress.task_records import TaskRecords
from ingress.usage import UsageReports, usage_routes
from ingress.valve_routes import ValveRoutes, valve_routes
from ingress.waiting import Waits
from mesh.access.audit import acted
from mesh.access.callers import caller_of, tenant_of
from mesh.access.link_keys import LinkSigning
from mesh.broker.direct_get import find_sequence
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.journal.following import Following
from mesh.journal.submission import Submission
from mesh.journal.warm import WarmJournals
from mesh.serving.http import (
    EXCEPTION_HANDLERS,
    AnyRequest,
    Probe,
    answer_directly,
    health_routes,
    json_response,
    read_json_body,
)
from mesh.task.records import record
from mesh.telemetry import audit

log = structlog.get_logger("ingress")


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
        self._providers = providers
        lanes.go_by(providers.valves.limits_of)
        self._tools = KnownTools(requests, settings.configuration.tools)
        self._journals = WarmJournals(requests)
        self.budgets = Budgets(requests, settings.configuration, providers.valves.limits_of, lanes)
        self.valves = ValveRoutes(requests, providers.valves, settings.configuration)
        waits = Waits(requests, lanes, providers, self.budgets, self.valves.pause_of)
        self.pools = Pools(settings, requests, lanes, providers, waits)
        self._records = TaskRecords(settings, requests, self._journals, waits)
        self.signing = LinkSigning(requests)
        self.submissions = Submissions(
            settings,
            requests,
            self._tools,
            SubmissionParts(
                submission=submission,
                following=following,
                lanes=lanes,
                storage=storage,
                providers=providers,
                budgets=self.budgets,
                waits=waits,
                pause_of=self.valves.pause_of,
                journals=self._journals,
                records=self._records,
                signing=self.signing,
                stopping=stopping,
            ),
        )
        self._approving = Approving(requests, self._journals, settings.configuration)
        self.usage = UsageReports(requests)
        self.lists = Lists(requests, settings.index_folder)
        self.mass_cancel = MassCancel(requests, self.lists)
        self.dead_letters = DeadLetters(settings, requests, self.lists, self._journals, self._approving)

    async def take(self, settings: Settings) -> None:
        """Go by these settings from the next request on."""
        self._settings = settings
        self._tools = KnownTools(self._requests, settings.configuration.tools)
        self._records.take(settings)
        self.submissions.take(settings, self._tools)
        self._providers.configure(settings.configuration)
        self.budgets.configure(settings.configuration)
        self.pools.take(settings)
        self._approving.configure(settings.configuration)
        self.valves.configure(settings.configuration)

    async def task(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`GET /v1/tasks/{id}`"""
        tenant = tenant_of(request, "read")
        shown = await self._records.read(tenant, checked_task(task), says_waiting=True)
        return json_response(shown)

    async def link(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/tasks/{id}/links`"""
        caller = caller_of(request, "read")
        checked_task(task)
        wanted = parse_link_request(await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX), absent=b"{}"))
        await self._records.read(caller.tenant, task)  # Only of a task that is there is there anything to see.
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
        linked = [self._records.linked(task) for task in page.tasks]
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

    async def cancel(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/tasks/{id}/cancel`"""
        caller = caller_of(request, "submit")
        record = await self._records.read(caller.tenant, checked_task(task))
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
        return json_response(self._records.linked(record(journal.state)), 202)

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


def create_app(ingress: Ingress, probe: Probe) -> ASGIApp:
    """The ASGI application."""
    app = _routes(ingress, probe)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        # The one route that has to be fast: past the framework, which would take a seventh of its time.
        if scope["type"] == ScopeType.HTTP and scope["path"] == "/v1/tasks" and scope["method"] == "POST":
            await answer_directly(ingress.submissions.submit, scope, receive, send)
        else:
            await app(scope, receive, send)

    return dispatch


def _routes(ingress: Ingress, probe: Probe) -> Litestar:
    document = encode(openapi())

    # `create_app` serves this one. It is here so that the framework knows what /v1/tasks takes.
    @post("/v1/tasks")
    async def submit(request: AnyRequest) -> Response[bytes]:
        return await ingress.submissions.submit(request)

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
        *(submit, tasks, counts, tools, task, events, links, cancel, inputs, schema),
        *pool_routes(ingress.pools),
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

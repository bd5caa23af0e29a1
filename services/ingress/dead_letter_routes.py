"""Dead letters over HTTP: list them, look at one task's, replay them, give them up."""

from __future__ import annotations

import structlog
from litestar import Response, delete, get, post
from msgspec.structs import replace

from contracts.api.dead_letters import ReplayAccepted, ReplayRequest, ShownDeadLetter, TaskDeadLetters
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id
from contracts.journal.events import TaskReplayed, decode_event
from contracts.journal.parts import StepGen
from contracts.messages.control import CancelCommand, Edits, ReplayCommand, cancel_message_id, replay_message_id
from contracts.streams import CONTROL, DEAD_LETTERS
from contracts.tasks import BODY_BYTES_MAX
from ingress import commands, replay_decisions
from ingress.approving import Approving
from ingress.dead_letter_reading import read_dead_letters, read_malformed
from ingress.journals import checked_task, read_journal
from ingress.links import task_links
from ingress.listing.lists import Lists
from ingress.parsing import (
    parse_dead_letter_filter,
    parse_limit,
    parse_record_sequence,
    parse_replay_request,
)
from ingress.rights import check_edits
from mesh.access.audit import acted
from mesh.access.callers import caller_of, tenant_of
from mesh.broker.direct_get import sequence_from_leader
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import QueueFull
from mesh.journal import dead_letter_records
from mesh.journal.reading import milestones_of
from mesh.journal.warm import WarmJournals
from mesh.serving.http import AnyRequest, RequestRefused, json_response, read_json_body
from mesh.task.records import record
from mesh.task.replays import after_replay
from mesh.task.state import TaskState
from mesh.tools.arguments import checker_of
from mesh.tools.toolbox import read_declaration

log = structlog.get_logger("ingress.dead_letter_routes")

DROPPED = "given up: its dead letters were dropped"
"""The reason of the `task.cancelled` of a task that nobody will repair."""
FULL_SECONDS = 2
"""When to put a message back again whose lane is full."""


class DeadLetters:
    """What the routes stand on."""

    def __init__(
        self, settings: Settings, requests: Requests, lists: Lists, journals: WarmJournals, approving: Approving
    ) -> None:
        self._settings = settings
        self._lists = lists
        self._requests = requests
        self._journals = journals
        self._approving = approving

    async def page(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/dead-letters`"""
        query = request.query_params
        page = await self._lists.dead_letters(
            tenant_of(request, "read"),
            parse_dead_letter_filter(query),
            limit=parse_limit(query.get("limit")),
            cursor=query.get("cursor"),
        )
        return json_response(page)

    async def task(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`GET /v1/dead-letters/{id}`"""
        state = (await read_journal(self._journals, tenant_of(request, "read"), checked_task(task))).state
        open_now = record(state).dead_letters or []
        records, more = await read_dead_letters(self._requests, state.tenant, task, open_now)
        shown = TaskDeadLetters(
            id=task,
            tenant=state.tenant,
            status=state.status,
            open=open_now,
            records=records,
            more=more,
            links=task_links(self._settings, task),
        )
        return json_response(shown)

    async def replay(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`POST /v1/dead-letters/{id}/replay`"""
        caller = caller_of(request, "operate")
        tenant = caller.tenant
        checked_task(task)
        wanted = parse_replay_request(
            await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX), absent=b"{}")
        )
        check_edits(wanted.edits, caller.identity)
        state = (
            await read_journal(self._journals, tenant, task, lambda each: replay_decisions.shows(each, wanted))
        ).state
        steps, replayed = replay_decisions.steps_of(state, wanted)
        if replayed:
            await self._check_recorded(state, wanted, steps)
            return self._accepted(state, steps)
        replay_decisions.check_edits(state, steps, wanted.edits, self._settings.pools)
        await self._check_arguments(state, wanted.edits)
        after = after_replay(state, steps, wanted.edits)
        replay_decisions.check_size(after, self._requests.fitting(BODY_BYTES_MAX))
        if wanted.dry_run:
            return json_response(replay_decisions.plan(state, after, steps, task_links(self._settings, task)))
        command = ReplayCommand(
            task=task, tenant=tenant, by=caller.name, steps=steps, edits=wanted.edits, reason=wanted.reason
        )
        acted(request, caller, "replay", task)
        await self._approving.check(caller, state, command)
        await self._send(request, command, state)
        log.info("task.replay_asked", task=task, tenant=tenant, steps=len(steps))
        return self._accepted(state, steps)

    async def drop(self, request: AnyRequest, task: str) -> Response[bytes]:
        """`DELETE /v1/dead-letters/{id}`"""
        caller = caller_of(request, "operate")
        tenant = caller.tenant
        checked_task(task)
        wanted = ReplayRequest()
        state = (
            await read_journal(self._journals, tenant, task, lambda each: replay_decisions.shows(each, wanted))
        ).state
        found = replace(record(state), links=task_links(self._settings, task))
        if state.terminal is not None:
            return json_response(found)
        if not state.open_dead_letters:
            raise RequestRefused("conflict", f"task {task} is {state.status}, and has no open dead letter")
        acted(request, caller, "drop", task)
        command = CancelCommand(task=task, tenant=tenant, by=caller.name, reason=DROPPED)
        await commands.send(self._requests, command, cancel_message_id(task), request, "/v1/dead-letters/{task}")
        log.info("task.drop_asked", task=task, tenant=tenant)
        return json_response(found, 202)

    async def malformed(self, request: AnyRequest, number: str) -> Response[bytes]:
        """`GET /v1/dead-letters/malformed/{record_sequence}`"""
        return json_response(await self._malformed(tenant_of(request, "read"), number))

    async def drop_malformed(self, request: AnyRequest, number: str) -> Response[bytes]:
        """`DELETE /v1/dead-letters/malformed/{record_sequence}`"""
        caller = caller_of(request, "operate")
        found = await self._malformed(caller.tenant, number)
        acted(request, caller, "delete", found.task)
        await self._requests.delete_message(DEAD_LETTERS.name, found.record_sequence)
        log.info("dead_letter.deleted", tenant=found.tenant, record=found.record_sequence)
        return json_response(found)

    async def requeue_malformed(self, request: AnyRequest, number: str) -> Response[bytes]:
        """`POST /v1/dead-letters/malformed/{record_sequence}/requeue`"""
        caller = caller_of(request, "operate")
        found = await self._malformed(caller.tenant, number)
        acted(request, caller, "requeue", found.task)
        try:
            await dead_letter_records.requeue(self._requests, found)
        except QueueFull as error:
            raise RequestRefused(error.code, str(error), retry_after_seconds=FULL_SECONDS, cause=error.cause) from None
        await self._requests.delete_message(DEAD_LETTERS.name, found.record_sequence)
        log.info("dead_letter.requeued", tenant=found.tenant, record=found.record_sequence, subject=found.subject)
        return json_response(found)

    async def _malformed(self, tenant: str, number: str) -> ShownDeadLetter:
        sequence = parse_record_sequence(number)
        found = await read_malformed(self._requests, tenant, sequence) if sequence is not None else None
        if found is None:
            raise RequestRefused("not-found", "there is no such dead letter of a malformed message")
        return found

    async def _check_arguments(self, state: TaskState, edits: Edits | None) -> None:
        """Hold edited arguments against what their tools declare. Raises `InvalidPayload`."""
        for call, arguments in ((edits.arguments if edits else None) or {}).items():
            asked = state.asked_for(call)
            declared = await read_declaration(self._requests, asked.tool) if asked is not None else None
            if asked is None or declared is None:
                continue
            try:
                reason = checker_of(declared.parameters)(arguments)
            except ValueError:
                continue  # No schema at all: the runner says what it thinks of them.
            if reason is not None:
                raise InvalidPayload(f"edits.arguments: call {call}: not what {asked.tool} takes: {reason}")

    async def _check_recorded(self, state: TaskState, wanted: ReplayRequest, steps: list[StepGen]) -> None:
        """A replay that the journal has: the same as once, if it is the same. Raises `RequestRefused`."""
        if wanted.dry_run:
            raise RequestRefused("conflict", "these dead letters are replayed already")
        events = [
            decode_event(message.payload) for message in await milestones_of(self._requests, state.tenant, state.task)
        ]
        replayed = [event for event in events if isinstance(event, TaskReplayed)]
        replay_decisions.check_recorded(wanted.edits, steps, replayed)

    async def _send(self, request: AnyRequest, command: ReplayCommand, state: TaskState) -> None:
        """Give the replay to the steward, once. Raises `RequestRefused` if there is one with other edits."""
        steps, edits = command.steps, command.edits
        route = "/v1/dead-letters/{task}/replay"
        message_id = replay_message_id(state.task, steps)
        ack = await commands.send(self._requests, command, message_id, request, route)
        if not ack.duplicate:
            return
        stored = await sequence_from_leader(self._requests, CONTROL.name, ack.seq)
        if stored is not None:
            replay_decisions.check_same(edits, decode(stored.payload, ReplayCommand).edits)
            return
        named = ReplayRequest(edits=edits, steps=steps)
        journal = await read_journal(
            self._journals, state.tenant, state.task, lambda each: replay_decisions.steps_of(each, named)[1]
        )
        if replay_decisions.steps_of(journal.state, named)[1]:
            await self._check_recorded(journal.state, named, steps)
            return
        # It was refused, for what it wanted to change. This one is another, and must not be taken for it.
        await commands.send(self._requests, command, f"{message_id}.{new_id()}", request, route)

    def _accepted(self, state: TaskState, steps: list[StepGen]) -> Response[bytes]:
        accepted = ReplayAccepted(
            id=state.task,
            status=state.status,
            steps=replay_decisions.gone_on(steps),
            links=task_links(self._settings, state.task),
        )
        return json_response(accepted, 202)


def dead_letter_routes(dead_letters: DeadLetters) -> list[object]:
    """The routes below `/v1/dead-letters`."""

    @get("/v1/dead-letters")
    async def listing(request: AnyRequest) -> Response[bytes]:
        return await dead_letters.page(request)

    @get("/v1/dead-letters/{task:str}")
    async def task(request: AnyRequest, task: str) -> Response[bytes]:
        return await dead_letters.task(request, task)

    @post("/v1/dead-letters/{task:str}/replay")
    async def replay(request: AnyRequest, task: str) -> Response[bytes]:
        return await dead_letters.replay(request, task)

    @delete("/v1/dead-letters/{task:str}", status_code=200)
    async def drop(request: AnyRequest, task: str) -> Response[bytes]:
        return await dead_letters.drop(request, task)

    @get("/v1/dead-letters/malformed/{number:str}")
    async def malformed(request: AnyRequest, number: str) -> Response[bytes]:
        return await dead_letters.malformed(request, number)

    @delete("/v1/dead-letters/malformed/{number:str}", status_code=200)
    async def drop_malformed(request: AnyRequest, number: str) -> Response[bytes]:
        return await dead_letters.drop_malformed(request, number)

    @post("/v1/dead-letters/malformed/{number:str}/requeue", status_code=200)
    async def requeue_malformed(request: AnyRequest, number: str) -> Response[bytes]:
        return await dead_letters.requeue_malformed(request, number)

    return [listing, task, replay, drop, malformed, drop_malformed, requeue_malformed]

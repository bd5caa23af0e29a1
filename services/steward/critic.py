"""The critic: dead letters of chosen codes become tasks of an agent that may propose how to repair them.

It only ever proposes: what it asks for by `propose_replay` waits for a person like any other call. Off unless
`[critic]` is in mesh.toml. All that it does is in the journals of its own tasks, and of those that are replayed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog
from msgspec.structs import replace
from opentelemetry.trace import SpanKind

from contracts import subjects
from contracts.actors import BY_CRITIC
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.identifiers import derived_id
from contracts.journal.events import TaskQueued
from contracts.messages.work import DeadLetter
from contracts.records.tools import PROPOSE_REPLAY
from contracts.streams import CRITIC_CONSUMER, DEAD_LETTERS
from contracts.tasks import Message, TaskRequest
from mesh.background import Replaceable
from mesh.broker.answers import NOT_VISIBLE_YET, Ack, Answer, Nak
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.clock import now
from mesh.configuration.critic_table import CriticConfiguration
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantOf
from mesh.errors import QueueFull
from mesh.journal.journal import Journal
from mesh.journal.submission import Admission, Submission
from mesh.task.state import TaskState
from mesh.telemetry import traces
from steward.critic_pace import admit

log = structlog.get_logger("steward.critic")

TURNS_MAX = 2
"""One that proposes, and one that says what came of it: who has denied a proposal is not asked again."""
RECORD_CHARACTERS_MAX = 64_000
"""Of a record as the critic's input: some 16,000 tokens."""
PART_CHARACTERS_MAX = 8_000
"""Of each long text in a record that is cut."""
ROOM_SECONDS = 30.0
"""Delay of a record while the lane of the critic's pool is full."""
AT_ONCE_MAX = 8

CLOSED = "closed"
"""Somebody has repaired or ended it already."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The critic is to get this record, as this task."""

    task: str
    request: TaskRequest


@dataclass(frozen=True, slots=True)
class Leave:
    """The record is left to people. `reason` is a code, for the log."""

    reason: str


class HourlyLimitReached(TaskmeshError):
    """The critic has got as many tasks in the last hour as it may."""

    code = "critic-hour-spent"


def chosen(configuration: CriticConfiguration, record: DeadLetter) -> bool:
    """Whether a record is of those that the operator names, as far as it tells by itself."""
    return (
        record.task is not None
        and record.step is not None
        and record.gen is not None
        and record.errors[-1].code in configuration.codes
        and (configuration.tenants is None or record.tenant in configuration.tenants)
    )


def decide(configuration: CriticConfiguration, record: DeadLetter, state: TaskState) -> Ask | Leave:
    """What becomes of a chosen record, by the journal of its task."""
    step, gen = record.step, record.gen
    if step is None or gen is None or state.queued is None:
        return Leave(CLOSED)
    if is_critics(state.queued):
        return Leave("critics-own")
    if state.terminal is not None or not any((each.step, each.gen) == (step, gen) for each in state.open_dead_letters):
        return Leave(CLOSED)
    if gen >= configuration.proposals_max:
        return Leave("proposals-spent")
    request = TaskRequest(
        input=input_of(record),
        instructions=configuration.instructions,
        pool=configuration.pool,
        model=configuration.model,
        tools=[PROPOSE_REPLAY],
        max_turns=TURNS_MAX,
        metadata={"critic_of": state.task, "critic_step": step, "critic_gen": gen},
    )
    return Ask(critics_task(state.task, step, gen), request)


def critics_task(task: str, step: str, gen: int) -> str:
    """The id of the critic's task for a dead letter."""
    return derived_id("critic", task, step, str(gen))


def is_critics(queued: TaskQueued) -> bool:
    """Whether a task is one of the critic's own. By its id: anybody may set metadata."""
    metadata = queued.request.metadata or {}
    of, step, gen = (str(metadata.get(f"critic_{name}", "")) for name in ("of", "step", "gen"))
    return queued.task == derived_id("critic", of, step, gen)


def input_of(record: DeadLetter) -> str:
    """A record as JSON text. A large one is cut, and says so: first its longest texts, then its end."""
    text = encode(record).decode()
    if len(text) <= RECORD_CHARACTERS_MAX:
        return text
    note = (
        f"\n\nNote: this record of {len(text)} characters was cut to fit. Don't propose an edit of a text that is cut."
    )
    request = record.request
    if request is not None:
        whole = request.input if isinstance(request.input, str) else _as_text(request.input)
        request = replace(
            request, input=_cut(whole), instructions=_cut(request.instructions) if request.instructions else None
        )
    shortened = encode(replace(record, message=_cut(record.message), request=request)).decode()
    return shortened[: RECORD_CHARACTERS_MAX - len(note)] + note


def _as_text(messages: list[Message]) -> str:
    return encode(messages).decode()


def _cut(text: str) -> str:
    if len(text) <= PART_CHARACTERS_MAX:
        return text
    return f"{text[:PART_CHARACTERS_MAX]}… [cut: {len(text) - PART_CHARACTERS_MAX} more characters]"


class Critic:
    """Reads DEAD_LETTERS, and starts the critic's tasks."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        configuration: CriticConfiguration,
        tenant_of: TenantOf | None = None,
    ) -> None:
        """`tenant_of`: what holds for a tenant at present, if that is more than the settings say."""
        self._requests = connection.requests
        self._configuration = configuration
        self._deliveries_max = settings.max_deliver
        self._admitting = asyncio.Lock()
        self._submission = Submission(
            connection.requests,
            settings.configuration.pools,
            settings.configuration.tenants,
            tenant_of=tenant_of,
        )
        self._consumption = Consumption.of_one(
            connection, settings, DEAD_LETTERS.name, CRITIC_CONSUMER, self._handle, AT_ONCE_MAX
        )

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            await self._consumption.run()
        finally:
            await self._submission.close()

    async def _handle(self, delivery: Delivery) -> Answer:
        try:
            record = decode(delivery.payload, DeadLetter)
        except TaskmeshError as error:
            # No dead letter of a dead letter: it lies where people look already.
            log.error("critic.unreadable", message=delivery.sequence, error=str(error))
            return Ack()
        if not chosen(self._configuration, record) or not _is_where_it_belongs(record, delivery.subject):
            return Ack()
        tenant, task = subjects.parse_dead_letter(delivery.subject)
        with (
            structlog.contextvars.bound_contextvars(task=task, tenant=tenant, step=record.step, gen=record.gen),
            traces.span("critic", record.traceparent, SpanKind.CONSUMER, {"taskmesh.task": task}),
        ):
            return await self._consider(record, tenant, task, delivery)

    async def _consider(self, record: DeadLetter, tenant: str, task: str, delivery: Delivery) -> Answer:
        journal = await Journal.load(self._requests, tenant, task)
        outcome = decide(self._configuration, record, journal.state)
        if isinstance(outcome, Leave):
            if await journal.is_behind():
                return NOT_VISIBLE_YET
            return _leave(outcome.reason)
        try:
            started = await self._submission.start(
                outcome.request,
                tenant,
                outcome.task,
                traces.current_traceparent(),
                by=BY_CRITIC,
                admit=partial(self._admit, outcome.task),
            )
        except HourlyLimitReached as spent:
            return _leave(spent.code)
        except QueueFull as full:
            if delivery.deliveries >= self._deliveries_max:
                return _leave(full.code)
            return Nak(ROOM_SECONDS)
        if not started.existing:
            log.info("critic.asked", critics_task=started.task, code=record.errors[-1].code)
        return Ack()

    async def _admit(self, task: str) -> Admission:
        per_hour_max = self._configuration.per_hour_max
        async with self._admitting:  # Only other stewards contend.
            admitted = await admit(self._requests, task, per_hour_max, now().timestamp())
        if not admitted:
            raise HourlyLimitReached(f"the critic gets {per_hour_max} tasks in an hour")
        return Admission()


class Critics:
    """The critic that is configured, if one is; another one where the configuration changes."""

    def __init__(self, connection: Connection, settings: Settings, tenant_of: TenantOf | None = None) -> None:
        self._connection = connection
        self._tenant_of = tenant_of
        self._configured: tuple[object, ...] = ()
        self._job = Replaceable()
        self.take(settings)

    async def run(self) -> None:
        """Keep it running until cancelled."""
        await self._job.run()

    def take(self, settings: Settings) -> None:
        """Go by these settings."""
        configured = settings.configuration.critic
        # Its tasks have the limits of its pool.
        depends_on = (configured, settings.configuration.pools)
        if depends_on == self._configured:
            return
        self._configured = depends_on
        if configured is None:
            self._job.put(None)
        else:
            self._job.put(lambda: Critic(self._connection, settings, configured, self._tenant_of).run())


def _leave(reason: str) -> Ack:
    (log.info if reason == CLOSED else log.warning)("critic.left", reason=reason)
    return Ack()


def _is_where_it_belongs(record: DeadLetter, subject: str) -> bool:
    """Whether the subject is that of the record's own task: anybody who may publish can write one."""
    return (
        record.tenant is not None
        and record.task is not None
        and subject == subjects.dead_letter(record.tenant, record.task)
    )

"""Triggers: signals, and schedules that fire, become tasks by the rules of their tenant.

One signal starts one task for each rule. The task's id is derived from the signal's sequence, so that a steward may die
between any two steps, and any number of them may run: who comes second finds the journal, or the broker finds the
message id. Where a rule has no room in this minute, or its lane none at all, the signal is given back with a delay.
"""

from __future__ import annotations

import asyncio
import random

import structlog
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.actors import by_rule
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.journal.parts import Reserved
from contracts.tasks import TaskRequest
from contracts.triggers import rules
from contracts.triggers.local_times import comes_again
from contracts.triggers.rules import Signal, TriggerPace, TriggerRefused, TriggerRule
from mesh.background import background
from mesh.broker.answers import Ack, Answer, Nak
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.budgets.holding import Holding
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantOf
from mesh.errors import MessageTooLarge, NoRoom, QueueFull
from mesh.journal import dead_letter_records
from mesh.journal.giving_up import left_seconds
from mesh.journal.submission import Admission, Submission
from mesh.rules.trigger_bucket import RuleBook, admit
from mesh.telemetry import metrics, traces

log = structlog.get_logger("steward.trigger_firing")

LANE_FULL_SECONDS = 2.0
"""How long a signal waits, at least, for a lane that has no room."""
SPREAD_SECONDS = 1.0
"""Those that wait come back over so long, and not all at once."""
DONE_MAX = 10_000
"""Rules that are done with a signal which waits for another rule: so many are remembered."""


class _Waits(Exception):
    """There is no room for the task at present."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no room for {seconds:.1f} s")
        self.seconds = seconds


class Triggers:
    """Everything between SIGNALS, the schedules that fire, and TASKS, in one process."""

    def __init__(
        self, connection: Connection, settings: Settings, worker: str, tenant_of: TenantOf | None = None
    ) -> None:
        """`tenant_of`: what holds for a tenant at present, if that is more than the settings say."""
        self._requests = connection.requests
        self._settings = settings
        self._worker = worker
        self._submission = Submission(
            connection.requests,
            settings.configuration.pools,
            settings.configuration.tenants,
            tenant_of=tenant_of,
        )
        self._holding = Holding(
            connection.requests, tenant_of or settings.configuration.tenants.of, settings.configuration
        )
        self._book = RuleBook(connection.requests)
        self._paced: dict[str, float] = {}
        """Rules without room in this minute: until when, on the loop's clock."""
        self._done: dict[tuple[int, float, str], None] = {}
        self._signals = Consumption.of_one(connection, settings, "SIGNALS", "steward", self.handle_signal)
        self._firings = Consumption.of_one(connection, settings, "TIMERS", "cron", self.handle_firing)

    def configure(self, configuration: Configuration) -> None:
        """Give tasks other limits, and tenants other shares and budgets, from now on."""
        self._submission.configure(configuration)
        self._holding.configure(configuration)

    async def run(self) -> None:
        """Start tasks until cancelled."""
        try:
            async with background(self._firings.run()):
                await self._signals.run()
        finally:
            await self._submission.close()

    async def handle_signal(self, delivery: Delivery) -> Answer:
        """Hold a signal against its tenant's rules. Raises `BrokerUnavailable`."""
        try:
            tenant, signal = rules.read_signal(
                delivery.subject,
                delivery.payload,
                delivery.sequence,
                delivery.stored_at,
                delivery.headers.get(headers.TRIGGER_CHAIN),
            )
        except TaskmeshError as error:
            metrics.trigger_refused("malformed-message")
            malformed = ErrorInfo("malformed-message", str(error))
            # A signal is no work: it stays where it is, and only this consumer is done with it.
            return await dead_letter_records.refuse(self._requests, delivery, malformed, self._worker)
        # A rule that was there before the signal was stored must not be missed: nothing older than this will do.
        await self._book.refresh()
        waits = [
            await self._fire(rule, signal, delivery) for rule in self._book.of(tenant) if rules.takes(rule, signal)
        ]
        if self._may_be_anothers(delivery, tenant):
            waits.append(left_seconds(delivery.deliveries))
        return _answer(min((seconds for seconds in waits if seconds is not None), default=None))

    async def handle_firing(self, delivery: Delivery) -> Answer:
        """Start the task of a schedule that has fired. Raises `BrokerUnavailable`."""
        await self._book.refresh()
        try:
            tenant, name = subjects.parse_cron(delivery.subject)
            rule = self._book.get(tenant, name)
        except TaskmeshError as error:
            malformed = ErrorInfo("malformed-message", str(error))
            return await dead_letter_records.refuse(self._requests, delivery, malformed, self._worker)
        if rule is not None and rule.on.schedule is not None:
            if comes_again(rule.on.schedule, rule.on.time_zone, delivery.stored_at):
                log.info("trigger.comes_again", rule=rule.name, tenant=rule.tenant, firing=delivery.sequence)
            else:
                firing = Signal(delivery.subject, {}, delivery.sequence, delivery.stored_at)
                seconds = await self._fire(rule, firing, delivery)
                if seconds is not None:
                    return _answer(seconds)
        if rule is None and self._may_be_anothers(delivery, tenant):
            return _answer(left_seconds(delivery.deliveries))
        # Firings come again and again: left there, they would in the end crowd out the timers they lie among.
        if delivery.lease_held:
            await self._requests.delete_message(delivery.stream, delivery.sequence)
        return Ack()

    def _may_be_anothers(self, delivery: Delivery, tenant: str) -> bool:
        """Whether a steward of another version may know a rule that this one can't read: it is left to that."""
        return self._book.has_unreadable(tenant) and delivery.deliveries < self._settings.max_deliver

    async def _fire(self, rule: TriggerRule, signal: Signal, delivery: Delivery) -> float | None:
        """Start a rule's task, if that has not been done; the seconds to wait where there is no room for it.

        None: the rule is done with the signal.
        """
        done = (signal.sequence, signal.time.timestamp(), subjects.trigger_key(rule.tenant, rule.name))
        if done in self._done:
            return None
        try:
            await self._start(rule, signal, delivery)
        except _Waits as wait:
            return wait.seconds
        except MessageTooLarge as error:
            await self._refuse(rule, signal, delivery, TriggerRefused(str(error), code="trigger-request-invalid"))
        except (QueueFull, NoRoom) as error:
            log.info("trigger.waits", rule=rule.name, tenant=rule.tenant, signal=signal.sequence, reason=str(error))
            return LANE_FULL_SECONDS
        self._done[done] = None
        if len(self._done) > DONE_MAX:
            del self._done[next(iter(self._done))]
        return None

    async def _start(self, rule: TriggerRule, signal: Signal, delivery: Delivery) -> None:
        try:
            request = self._request(rule, signal)
        except TaskmeshError as error:
            await self._refuse(rule, signal, delivery, error)
            return
        self._check_pace(rule)
        task = rules.task_id(rule, signal.sequence)
        incoming = delivery.headers.get(headers.TRACEPARENT)

        reserved: Reserved | None = None

        async def room() -> Admission:
            nonlocal reserved
            await self._admit(rule, signal)
            reserved = await self._holding.hold(rule.tenant, request)
            return Admission(reserved=reserved)

        with traces.span("trigger", incoming, SpanKind.CONSUMER, {"taskmesh.task": task}):
            traceparent = traces.current_traceparent() or incoming
            trigger = rules.trigger_for(rule, signal)
            submitted = await self._submission.start(
                request, rule.tenant, task, traceparent, trigger, room, by=by_rule(rule.name)
            )
        if not submitted.existing:
            metrics.trigger_started()
        elif reserved is not None:
            await self._holding.give_back(rule.tenant, reserved)
        log.debug(
            "trigger.started",
            rule=rule.name,
            tenant=rule.tenant,
            signal=signal.sequence,
            task=task,
            existing=submitted.existing,
        )

    def _request(self, rule: TriggerRule, signal: Signal) -> TaskRequest:
        request = rules.request_for(rule, signal)
        if request.pool not in self._settings.pools:
            raise TriggerRefused(f"there is no pool {request.pool!r}", code="trigger-request-invalid")
        return request

    async def _refuse(self, rule: TriggerRule, signal: Signal, delivery: Delivery, error: TaskmeshError) -> None:
        metrics.trigger_refused(error.code)
        log.error(
            "trigger.refused",
            rule=rule.name,
            tenant=rule.tenant,
            signal=signal.sequence,
            code=error.code,
            error=str(error),
        )
        reason = ErrorInfo(error.code, f"rule {rule.name}: {error}")
        await dead_letter_records.write_message(self._requests, delivery, reason, self._worker, rule.name)

    # Pace

    def _check_pace(self, rule: TriggerRule) -> None:
        """Spare the broker the question while the answer is known. Raises `_Waits`."""
        until = self._paced.get(subjects.trigger_key(rule.tenant, rule.name), 0.0)
        seconds = until - asyncio.get_running_loop().time()
        if seconds > 0:
            raise _Waits(seconds)

    async def _admit(self, rule: TriggerRule, signal: Signal) -> None:
        """Take a place in this minute. Raises `_Waits`."""
        key = subjects.trigger_key(rule.tenant, rule.name)
        outcome = await admit(self._requests, rule, signal.sequence, now().timestamp())
        if isinstance(outcome, TriggerPace):
            self._paced.pop(key, None)
            return
        if key not in self._paced:
            log.info("trigger.waits", rule=rule.name, tenant=rule.tenant, signal=signal.sequence, reason="pace")
        self._paced[key] = asyncio.get_running_loop().time() + outcome
        raise _Waits(outcome)


def _answer(wait_seconds: float | None) -> Answer:
    """Be done with a delivery, or have it again once there may be room."""
    return Ack() if wait_seconds is None else Nak(wait_seconds + random.random() * SPREAD_SECONDS)

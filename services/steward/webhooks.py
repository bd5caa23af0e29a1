"""Notifications: milestones that operators want to know of, posted to endpoints, one durable consumer for each.

A notification waits in its consumer until it was taken (ack), is to be tried again (nak with a delay) or is given up
(a dead letter, then ack). Whoever dies in between has it sent again, under the same id: the event's.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from functools import partial

import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo, InvalidPayload, TaskmeshError
from contracts.journal.events import decode_head
from contracts.journal.heads import EventHead
from contracts.messages.notifications import notification
from contracts.records.status import links_of
from contracts.retries import WEBHOOK_POLICY
from contracts.streams import EVENTS, webhook_consumer
from mesh.background import Replaceable
from mesh.broker.answers import Ack, Answer, Nak
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery, while_leased
from mesh.configuration.secret_sources import signing_keys
from mesh.configuration.settings import Settings
from mesh.configuration.webhook_tables import WebhookConfiguration
from mesh.errors import BrokerError
from mesh.journal import dead_letter_records
from mesh.serving.service import Service
from steward.endpoints import Endpoint, Failure
from steward.provisioning_check import create_missing

log = structlog.get_logger("steward.webhooks")

NOTIFICATIONS_AT_ONCE_MAX = 32
"""In hand for one webhook in one steward. Each is an event, so this bounds memory as well."""
FULL_SECONDS = 10.0
"""Delay of what can be neither delivered nor written down: DEAD_LETTERS takes nothing at present."""
_EXHAUSTED = Failure("webhook-exhausted", "no try is left: stewards ended in mid-try", retryable=False)


@dataclass(frozen=True, slots=True)
class Again:
    """Try it again after a delay."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further try."""


def decide_failure(failure: Failure, tries: int, random_fraction: float) -> Again | GiveUp:
    """What follows a failed try, the `tries`-th. The endpoint may ask for more time, not for less."""
    if not failure.retryable or tries >= WEBHOOK_POLICY.tries_max:
        return GiveUp()
    own = WEBHOOK_POLICY.delay_seconds(tries, random_fraction)
    return Again(max(own, WEBHOOK_POLICY.delay_seconds(tries, random_fraction, failure.retry_after_seconds)))


@dataclass(frozen=True, slots=True)
class Wish:
    """What a webhook is told of: event types, and whose tasks; no tenants are all."""

    types: frozenset[str]
    tenants: frozenset[str]

    def takes(self, head: EventHead) -> bool:
        """Whether it is told of an event."""
        return head.type in self.types and (not self.tenants or head.tenant in self.tenants)


def wish_of(webhook: WebhookConfiguration) -> Wish:
    """What is configured, for quick looks."""
    return Wish(webhook.types, frozenset(webhook.tenants or ()))


class WebhookLoop:
    """One webhook: its consumer, and its endpoint."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        name: str,
        webhook: WebhookConfiguration,
        keys: tuple[bytes, ...],
        worker: str,
    ) -> None:
        self._name = name
        self._wish = wish_of(webhook)
        self._endpoint = Endpoint(webhook, keys)
        self._worker = worker
        self._requests = connection.requests
        self._base_urls = (settings.events_base_url, settings.ingress_base_url)
        self._consumer = webhook_consumer(name)
        self._consumption = Consumption.of_one(
            connection, settings, EVENTS.name, self._consumer, self._handle, NOTIFICATIONS_AT_ONCE_MAX
        )

    async def run(self) -> None:
        """Notify until cancelled; then let what is in hand end, within `MESH_DRAIN_SECONDS`."""
        try:
            await self._consumption.run()
        finally:
            await self._endpoint.close()

    async def _handle(self, delivery: Delivery) -> Answer:
        try:
            head = _head(delivery)
            if not self._wish.takes(head):
                return Ack(confirmed=False)
            body = encode(notification(delivery.payload, delivery.sequence, links_of(head.task, *self._base_urls)))
        except TaskmeshError as error:
            log.error("webhook.unreadable", webhook=self._name, message=delivery.sequence, error=str(error))
            return Ack(confirmed=False)
        with structlog.contextvars.bound_contextvars(
            webhook=self._name, task=head.task, tenant=head.tenant, event_type=head.type, notification=head.id
        ):
            return await self._notify(delivery, head.id, body)

    async def _notify(self, delivery: Delivery, message_id: str, body: bytes) -> Answer:
        tries = delivery.deliveries
        if tries > WEBHOOK_POLICY.tries_max:
            return await self._give_up(delivery, _EXHAUSTED)
        failure = await self._endpoint.post(message_id, body)
        if failure is None:
            # One that arrives at once is one of many.
            (log.debug if tries == 1 else log.info)("webhook.delivered", tries=tries)
            return Ack()
        match decide_failure(failure, tries, random.random()):
            case Again(delay_seconds):
                log.warning(
                    "webhook.failed",
                    code=failure.code,
                    error=failure.message,
                    tries=tries,
                    delay_seconds=round(delay_seconds, 3),
                )
                return Nak(delay_seconds)
            case GiveUp():
                return await self._give_up(delivery, failure)

    async def _give_up(self, delivery: Delivery, failure: Failure) -> Answer:
        error = ErrorInfo(failure.code, f"webhook {self._name}: {failure.message}")
        log.error("webhook.given_up", code=error.code, error=error.message, tries=delivery.deliveries)

        async def write_down() -> None:
            await dead_letter_records.write_notification(self._requests, delivery, error, self._consumer, self._worker)

        try:
            # Only this is repeated while the broker is silent: not the notification.
            await while_leased(delivery, write_down)
        except BrokerError as refused:
            log.error("webhook.not_written_down", error=str(refused))
            return Nak(FULL_SECONDS)
        return Ack()


class Webhooks:
    """All that are configured."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running: dict[str, tuple[WebhookConfiguration, tuple[bytes, ...], Replaceable]] = {}
        self._jobs: asyncio.Queue[Replaceable] = asyncio.Queue()
        self._start(service.settings)

    async def run(self) -> None:
        """Notify until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task((await self._jobs.get()).run())

    async def take(self, settings: Settings) -> None:
        """Notify as these settings say. What an endpoint is being sent is waited for, one that stays goes on."""
        try:
            await create_missing(self._service.requests, settings)
        except TaskmeshError as error:
            # The provisioning check makes it within a minute; until then its loop waits for it.
            log.warning("webhook.no_consumer_yet", error=str(error))
        self._start(settings)

    def _start(self, settings: Settings) -> None:
        configuration = settings.configuration
        keys = signing_keys(configuration, settings.secrets)
        for name in self._running.keys() - configuration.webhooks.keys():
            self._running.pop(name)[2].put(None)
        for name, webhook in configuration.webhooks.items():
            known = self._running.get(name)
            if known is not None and known[:2] == (webhook, keys[name]):
                continue
            job = partial(self._loop, settings, name, webhook, keys[name])
            if known is None:
                replaceable = Replaceable(job)
                self._jobs.put_nowait(replaceable)
            else:
                replaceable = known[2]
                replaceable.put(job)
            self._running[name] = (webhook, keys[name], replaceable)

    async def _loop(
        self, settings: Settings, name: str, webhook: WebhookConfiguration, keys: tuple[bytes, ...]
    ) -> None:
        service = self._service
        await WebhookLoop(service.connection, settings, name, webhook, keys, service.worker).run()


def _head(delivery: Delivery) -> EventHead:
    head = decode_head(delivery.payload)
    journal = subjects.parse_journal(delivery.subject)
    if (head.tenant, head.task) != (journal.tenant, journal.task):
        raise InvalidPayload("an event of another task than its subject's")
    return head

"""A durable pull consumer, asked for no more than this process has room for.

nats-py's `fetch` hides what went wrong with a pull, and a pull that is pending when the server restarts is
lost until its timeout; here both are seen at once. One pull is open at a time. None is published while the broker is
away: the client would send it after the reconnect, and the broker would answer each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers
from contracts.codec import encode
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery

log = structlog.get_logger("mesh.broker.pull_consumer")

TAKE_SECONDS = 2.0
"""How long the answer to a pull that does not wait may take, its way there and back included."""
GRACE_SECONDS = 1.0
_NANOSECONDS = 1_000_000_000
# 404: no messages. 408: the pull has ended. Both are the ordinary end of a pull.
_ORDINARY = ("404", "408")


class ConsumerUnavailable(Exception):
    """The consumer does not answer pulls: it, its stream or the broker is not there at present."""


class PullConsumer:
    """One durable consumer. `on_delivery` gets each message as it comes."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumer: str,
        ack_wait_seconds: float,
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self._connection = connection
        self._ack_wait_seconds = ack_wait_seconds
        self._on_delivery = on_delivery
        self._numbers = itertools.count()
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._pull: _Pull | None = None
        connection.on_disconnected(self._forget)
        connection.renewal.on_leaving(self._give_back)

    async def take(self, batch: int) -> int:
        """Ask for up to `batch` of the messages that are there; returns how many came. Raises `ConsumerUnavailable`."""
        return await self._ask(batch, {"batch": batch, "no_wait": True}, TAKE_SECONDS)

    async def wait(self, seconds: float) -> int:
        """Wait for one message, so long at most; returns how many came. The broker forgets the pull then.

        Raises `ConsumerUnavailable`.
        """
        return await self._ask(1, {"batch": 1, "expires": int(seconds * _NANOSECONDS)}, seconds + GRACE_SECONDS)

    def end_pull(self) -> None:
        """Wait no longer for the pull that is open, and have the broker forget it."""
        if self._pull is not None:
            self._pull.is_withdrawn = True
            self._pull.end()

    async def close(self) -> None:
        """Take no more deliveries; what the broker has sent by then is handed on: it counts as delivered."""
        self._connection.off_disconnected(self._forget)
        self._connection.renewal.off_leaving(self._give_back)
        if not self._connection.is_connected:
            self._subscription = None
            return
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self._withdraw()

    async def _ask(self, batch: int, request: dict[str, object], timeout_seconds: float) -> int:
        pull = self._pull = _Pull(str(next(self._numbers)), batch)
        try:
            await self._connection.connected()
            await self._open()
            if pull.is_withdrawn or not self._connection.is_connected:
                return 0
            await self._connection.client.publish(
                self._connection.requests.api_subject(f"CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}"),
                encode(request),
                reply=f"{self._inbox}.{pull.number}",
            )
            if not await self._ended(pull, timeout_seconds):
                await self._withdraw()
        except (nats.errors.Error, OSError) as error:
            raise self._unavailable(str(error)) from None
        finally:
            self._pull = None
        return pull.received

    async def _ended(self, pull: _Pull, timeout_seconds: float) -> bool:
        """Wait for the pull's end; False if the broker may still have it."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await pull.ended
        except TimeoutError:
            # The pull was lost, or its end was. On a line that is dead and not known to be, the next one would only
            # come to lie behind it, and all be answered once the line is back.
            await self._connection.answers()
            return False
        return not pull.is_withdrawn

    async def _withdraw(self) -> None:
        """Have the broker forget the pull; what it has sent by then is handed on.

        It gives no message to a pull whose inbox nobody listens to.
        """
        subscription = self._subscription
        if subscription is None:
            return
        try:
            await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py's
        finally:
            # Not before: a subscription that is being drained when the connection breaks is to be forgotten, too.
            if self._subscription is subscription:
                self._subscription = None

    async def _give_back(self) -> None:
        """The connection is about to be given up: take what the broker has sent by then, and nothing more."""
        self.end_pull()
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self._withdraw()

    async def _open(self) -> None:
        """Subscribe the inbox that deliveries come to, if it is not."""
        if self._subscription is None:
            self._inbox = self._connection.client.new_inbox()
            self._subscription = await self._connection.client.listen(f"{self._inbox}.*", self._on_message)

    def _on_message(self, message: Msg) -> None:
        status = message.headers.get(headers.STATUS) if message.headers else None
        if status is None:
            # Also of a pull that is over here: the broker counts it as delivered.
            self._on_delivery(
                Delivery(self._connection.client, self._connection.requests, message, self._ack_wait_seconds)
            )
        pull = self._pull
        if pull is None or not message.subject.endswith(f".{pull.number}"):
            # Deliveries come on their stream's subject, not on the inbox: count them for the pull that is open.
            if status is None and pull is not None:
                pull.count()
            return
        if status in _ORDINARY:
            pull.end()
        elif status is not None:
            description = message.headers.get(headers.DESCRIPTION, "") if message.headers else ""
            pull.fail(self._unavailable(f"{status} {description}"))

    async def _forget(self) -> None:
        """The connection broke. The next one has a new inbox: a pull that the broker may have kept brings nothing."""
        subscription, self._subscription = self._subscription, None
        self.end_pull()
        if subscription is not None:
            await subscription.unsubscribe()

    def _unavailable(self, reason: str) -> ConsumerUnavailable:
        return ConsumerUnavailable(f"{self.stream}/{self.consumer}: {reason}")


class _Pull:
    def __init__(self, number: str, batch: int) -> None:
        self.number = number
        self.batch = batch
        self.received = 0
        self.is_withdrawn = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def count(self) -> None:
        self.received += 1
        if self.received >= self.batch:
            self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: ConsumerUnavailable) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

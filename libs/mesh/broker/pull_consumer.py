"""A durable pull consumer, asked for no more than this process has room for.

nats-py's `fetch` hides what went wrong with a pull, and a pull that is pending when the server restarts is
lost until its timeout; here both are seen at once.
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

IDLE_PULL_SECONDS = 5.0
"""How long a pull waits for a first message; the server forgets it then."""
_GRACE_SECONDS = 1.0
_NANOSECONDS = 1_000_000_000
# 404: no messages. 408: the pull has ended. Both are the ordinary end of a pull.
_ORDINARY = ("404", "408")


class ConsumerUnavailable(Exception):
    """The consumer does not answer pulls: it, its stream or the broker is not there at present."""


class PullConsumer:
    """One durable consumer. `batch_max` is its weight: how much one pull may take while there is more."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumer: str,
        batch_max: int,
        ack_wait_seconds: float,
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self.batch_max = batch_max
        self._connection = connection
        self._ack_wait_seconds = ack_wait_seconds
        self._on_delivery = on_delivery
        self._numbers = itertools.count()
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._pull: _Pull | None = None
        connection.on_reconnected(self._on_reconnected)

    async def open(self) -> None:
        """Subscribe the inbox that deliveries come to, if it is not."""
        if self._subscription is not None:
            return
        self._inbox = self._connection.client.new_inbox()
        self._subscription = await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._on_message)

    def end_pull(self) -> None:
        """Wait no longer for the pull that is open. The broker still has it, until `withdraw`."""
        if self._pull is not None:
            self._pull.end()

    async def withdraw(self) -> None:
        """Have the broker forget the pull that is open; what it has sent by then is handed on. Open again after it.

        The broker gives no message to a pull whose inbox nobody listens to. Raises `ConsumerUnavailable`.
        """
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py's
        except (nats.errors.Error, OSError) as error:
            raise ConsumerUnavailable(f"{self.stream}/{self.consumer}: {error}") from None

    async def close(self) -> None:
        """Take no more deliveries; what the broker has sent by then is handed on: it counts as delivered."""
        if not self._connection.is_connected:
            self._subscription = None
            return
        with contextlib.suppress(ConsumerUnavailable, TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await self.withdraw()

    async def pull(self, batch: int, *, wait: bool) -> int:
        """Ask for up to `batch` messages, each handed to `on_delivery` as it comes; returns how many came.

        With `wait` the pull stays open up to `IDLE_PULL_SECONDS`; without, it takes what is there.
        Raises `ConsumerUnavailable`.
        """
        number = str(next(self._numbers))
        request: dict[str, object] = {"batch": batch}
        if wait:
            request["expires"] = int(IDLE_PULL_SECONDS * _NANOSECONDS)
        else:
            request["no_wait"] = True
        pull = _Pull(number, batch)
        self._pull = pull
        try:
            await self._connection.client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}",
                encode(request),
                reply=f"{self._inbox}.{number}",
            )
            timeout = _GRACE_SECONDS + (IDLE_PULL_SECONDS if wait else 0)
            async with asyncio.timeout(timeout):
                await pull.ended
        except TimeoutError:
            pass  # The pull was lost, or its end was: the next one will tell.
        except (nats.errors.Error, OSError) as error:
            raise ConsumerUnavailable(f"{self.stream}/{self.consumer}: {error}") from None
        finally:
            self._pull = None
        return pull.received

    async def _on_message(self, message: Msg) -> None:
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
            pull.fail(ConsumerUnavailable(f"{self.stream}/{self.consumer}: {status} {description}"))

    def _on_reconnected(self) -> None:
        self.end_pull()


class _Pull:
    def __init__(self, number: str, batch: int) -> None:
        self.number = number
        self.batch = batch
        self.received = 0
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

"""The broker's word that a message was delivered as often as it may be (rule 8).

The stream ADVISORIES keeps it, also while no steward runs. Where it is lost all the same, the sweep in
`steward.stranded` finds the message, a little later.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from contracts.codec import decode
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.fields import Count, Ordinal
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.configuration.settings import Settings
from mesh.journal import dead_letter_records
from steward.stranded import QUEUES, Stranded

log = structlog.get_logger("steward.advisories")


class Advisory(msgspec.Struct, frozen=True):
    """What is read of an advisory of the type `io.nats.jetstream.advisory.v1.max_deliver`."""

    stream: Annotated[str, Meta(min_length=1)]
    stream_seq: Ordinal
    deliveries: Count


class Advisories:
    """Reads ADVISORIES, and hands on which messages nobody will get any more."""

    def __init__(self, connection: Connection, settings: Settings, stranded: Stranded, worker: str) -> None:
        self._requests = connection.requests
        self._stranded = stranded
        self._worker = worker
        self._consumption = Consumption.of_one(connection, settings, "ADVISORIES", "steward", self._handle)

    async def run(self) -> None:
        """Read until cancelled."""
        await self._consumption.run()

    async def _handle(self, delivery: Delivery) -> Answer:
        try:
            advisory = decode(delivery.payload, Advisory)
        except TaskmeshError as error:
            malformed = ErrorInfo("malformed-message", str(error))
            return await dead_letter_records.refuse(self._requests, delivery, malformed, self._worker)
        if advisory.stream in QUEUES:
            log.warning(
                "message.exhausted",
                stream=advisory.stream,
                message=advisory.stream_seq,
                deliveries=advisory.deliveries,
            )
            await self._stranded.exhausted(advisory.stream, advisory.stream_seq, advisory.deliveries)
        return Ack()

"""Acts of operators at the broker itself: they are told here, so that the audit log has a line of each."""

from __future__ import annotations

import asyncio

import structlog
from nats.aio.msg import Msg

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.messages.acts import OperatorAct
from contracts.subjects import OPERATOR_ACTS
from mesh.broker.connection import Connection
from mesh.telemetry import audit

log = structlog.get_logger("steward.operator_acts")

QUEUE = "steward"
"""Of several stewards one writes the line."""


class OperatorActs:
    """Writes what operators tell of themselves into the log."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run(self) -> None:
        """Listen until cancelled."""
        subscription = await self._connection.client.subscribe(OPERATOR_ACTS, queue=QUEUE, cb=self._heard)
        try:
            await asyncio.Event().wait()
        finally:
            await subscription.unsubscribe()

    async def _heard(self, message: Msg) -> None:
        try:
            act = decode(message.data, OperatorAct)
        except InvalidPayload as error:
            log.warning("audit.unreadable", error=str(error))
            return
        audit.tell(
            what=act.what, by=act.by, tenant=act.tenant, task=act.task, source=audit.BROKER, result=audit.ACCEPTED
        )
        if message.reply:
            await message.respond(b"")

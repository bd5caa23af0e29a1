"""Orders to one process, over the broker: `process.<worker>.drain`. Core NATS, a request with an answer.

They are endpoints of its NATS micro service, so that `nats micro info` shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from nats.micro.request import Request
from nats.micro.service import EndpointConfig

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.records.orders import DrainAnswer, DrainOrder

log = structlog.get_logger("mesh.serving.orders")

DRAIN: Final = "drain"

Drain = Callable[[DrainOrder], DrainAnswer]


def drain_endpoint(worker: str, drain: Drain) -> EndpointConfig:
    """The endpoint by which a process is told to drain, and to stay away."""

    async def handle(request: Request) -> None:
        try:
            order = decode(request.data or b"{}", DrainOrder)
        except InvalidPayload as error:
            await request.respond_error("400", str(error))
            return
        await request.respond(encode(drain(order)))

    return EndpointConfig(name=DRAIN, subject=subjects.process_order(worker, DRAIN), handler=handle)

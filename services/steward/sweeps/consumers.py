"""Consumers of webhooks and tools that are gone. Each takes memory; one of a webhook keeps tasks from being packed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import structlog

from contracts.streams import EVENTS, TOOLS, WEBHOOK_CONSUMER_PREFIX, tool_consumer
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.requests import Requests
from mesh.telemetry import metrics

log = structlog.get_logger("steward.sweeps")

GONE_AFTER = timedelta(days=7)
"""How long a consumer that nobody asks for stays: a mesh of two configurations is one that is being deployed."""
_TOOL_PREFIX = tool_consumer("x").removesuffix("x")


def is_gone(consumer: dict[str, Any], wanted: Collection[str]) -> bool:
    """Whether a consumer (a `CONSUMER.INFO` answer) is of a webhook or tool that nobody has, or asks for, any more."""
    name = str(consumer["name"])
    if name in wanted or not name.startswith((WEBHOOK_CONSUMER_PREFIX, _TOOL_PREFIX)):
        return False
    if consumer["num_waiting"] or consumer["num_ack_pending"]:
        return False
    since = max(
        datetime.fromisoformat(time)
        for time in (
            consumer["created"],
            consumer["delivered"].get("last_active"),
            consumer["ack_floor"].get("last_active"),
        )
        if time
    )
    return datetime.fromisoformat(str(consumer["ts"])) - since >= GONE_AFTER


class GoneConsumers:
    """Deletes them. `wanted`: names of those that this mesh has by its configuration."""

    wanted: Collection[str]

    def __init__(self, requests: Requests, wanted: Collection[str]) -> None:
        self._requests = requests
        self.wanted = wanted

    async def round(self) -> None:
        """Look at all of them. Raises `TaskmeshError`."""
        for stream in (EVENTS.name, TOOLS.name):
            gone = [each for each in await all_consumers(self._requests, stream) if is_gone(each, self.wanted)]
            for consumer in gone:
                await self._requests.api(f"CONSUMER.DELETE.{stream}.{consumer['name']}")
                log.warning("consumer.swept", stream=stream, consumer=consumer["name"])
            metrics.kept("swept_consumers", len(gone))

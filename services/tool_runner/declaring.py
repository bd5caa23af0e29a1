"""Making tools known: their declarations in the bucket `tools`, and the consumers of those that are not built in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from contracts.records.tools import ToolDeclaration
from contracts.streams import (
    BUILT_IN_TOOLS,
    TOOL_CONSUMER_IDLE_SECONDS,
    TOOLS,
    TOOLS_BUCKET,
    consumers,
    tool_consumer,
)
from mesh.broker import key_value
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import BrokerError
from mesh.telemetry import metrics

log = structlog.get_logger("tool_runner.declaring")

AT_ONCE_MAX = 32
"""Tools that are declared at the same time: with 1,000 of them one after another would take two minutes at 120 ms."""

_IDLE_NANOSECONDS = TOOL_CONSUMER_IDLE_SECONDS * 1_000_000_000


async def declare(requests: Requests, settings: Settings, declarations: Iterable[ToolDeclaration]) -> set[str]:
    """Create what consumers are missing, and write the declarations, each time: the bucket forgets them.

    In this order: a tool that a worker can see is one whose calls are waited for. Returns the tools that the broker
    refused; they take nobody else's away. Raises `BrokerUnavailable`.
    """
    declarations = list(declarations)
    own = [declared.name for declared in declarations if declared.name not in BUILT_IN_TOOLS]
    existing = {each["name"]: each["config"] for each in await all_consumers(requests, TOOLS.name)} if own else {}
    places = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(declared: ToolDeclaration) -> str | None:
        async with places:
            try:
                if declared.name not in BUILT_IN_TOOLS:
                    await _bind(requests, settings, declared.name, existing.get(tool_consumer(declared.name)))
                await key_value.put_json(requests, TOOLS_BUCKET.name, declared.name, declared)
            except BrokerError as error:
                metrics.tool_refused()
                log.error("tool.refused", tool=declared.name, error=str(error))
                return declared.name
        return None

    outcomes = await asyncio.gather(*map(one, declarations), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return {outcome for outcome in outcomes if isinstance(outcome, str)}


async def _bind(requests: Requests, settings: Settings, tool: str, existing: dict[str, Any] | None) -> None:
    """Create a tool's consumer. One that is there keeps its settings; it only learns to go by itself."""
    if existing is None:
        [config] = [
            consumer.as_config()
            for consumer in consumers((), (tool,), settings.ack_wait_seconds, settings.max_deliver)
            if consumer.stream == TOOLS.name
        ]
    elif not existing.get("inactive_threshold"):
        config = existing | {"inactive_threshold": _IDLE_NANOSECONDS}
    else:
        return
    name = tool_consumer(tool)
    body = {"stream_name": TOOLS.name, "config": config, "action": ""}
    await requests.api(f"CONSUMER.DURABLE.CREATE.{TOOLS.name}.{name}", body)
    if existing is None:
        log.info("tool.consumer_created", consumer=f"{TOOLS.name}/{name}")

"""Making tools known: their declarations in the bucket `tools`, and the consumers of those that are not built in."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from contracts.records.tools import ToolDeclaration
from contracts.streams import BUILT_IN_TOOLS, TOOLS, TOOLS_BUCKET, consumers
from mesh.broker import key_value
from mesh.broker.provisioning import Declared, apply
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings

log = structlog.get_logger("tool_runner.declaring")

_PREFIX = "tool-"


async def declare(requests: Requests, settings: Settings, declarations: Iterable[ToolDeclaration]) -> None:
    """Create what consumers are missing, and write the declarations, each time: the bucket forgets them.

    In this order: a tool that a worker can see is one whose calls are waited for. Raises `BrokerUnavailable`,
    `BrokerError`.
    """
    declarations = list(declarations)
    own = tuple(declared.name for declared in declarations if declared.name not in BUILT_IN_TOOLS)
    wanted = [
        consumer
        for consumer in consumers((), own, settings.ack_wait_seconds, settings.max_deliver)
        if consumer.stream == TOOLS.name
    ]
    for created in await apply(requests, Declared(streams=[], consumers=wanted), update=False):
        log.info("tool.consumer_created", consumer=created.name)
    for declared in declarations:
        await key_value.put_json(requests, TOOLS_BUCKET.name, declared.name, declared)


async def consumers_of_tools(requests: Requests) -> list[str]:
    """The tools that have a consumer, whoever made it. Raises `BrokerUnavailable`, `BrokerError`."""
    names: list[str] = []
    while True:
        # The stream has room for fewer consumers than a page has for names; yet the server may answer in pages.
        page = await requests.api(f"CONSUMER.NAMES.{TOOLS.name}", {"offset": len(names)})
        found = page.get("consumers") or []
        names += found
        if not found or len(names) >= int(page.get("total", 0)):
            return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

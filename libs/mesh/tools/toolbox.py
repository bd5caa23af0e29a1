"""The tools of a mesh as workers read them: declarations in the bucket `tools`, and the operator's word on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from contracts import subjects
from contracts.records.tools import ToolDeclaration
from contracts.streams import TOOLS, TOOLS_BUCKET
from contracts.tasks import ApprovalMode
from mesh.broker import key_value
from mesh.broker.consumer_lists import all_consumer_names
from mesh.broker.requests import Requests
from mesh.configuration.tool_tables import ToolsConfiguration

log = structlog.get_logger("mesh.tools.toolbox")

CACHE_SECONDS = 5.0
"""How old a declaration may be: a turn reads up to 64 of them."""
CACHE_TOOLS_MAX = 1_024
"""More than a mesh has consumers for: beyond it the cache begins anew."""

_PREFIX = "tool-"
"""Of the names of consumers of tools (`contracts.streams.tool_consumer`)."""


class Toolbox:
    """Reads declarations over one connection."""

    def __init__(self, requests: Requests, configuration: ToolsConfiguration) -> None:
        self._requests = requests
        self._configuration = configuration
        self._cache: dict[str, tuple[float, ToolDeclaration]] = {}

    def configure(self, configuration: ToolsConfiguration) -> None:
        """Go by another word of the operator's."""
        self._configuration = configuration
        self._cache.clear()

    async def declarations(self, names: Sequence[str]) -> dict[str, ToolDeclaration]:
        """The declarations of these tools, with the operator's settings applied, in the order of the names.

        A tool that nobody declares is not in it. Raises `BrokerUnavailable`.
        """
        found = await asyncio.gather(*(self._declaration(name) for name in names))
        return {name: declared for name, declared in zip(names, found, strict=True) if declared is not None}

    def operator_approval(self, name: str) -> ApprovalMode | None:
        """The operator's approval mode for a tool, which outranks all (`contracts.records.tools.needs_approval`)."""
        return self._configuration.of(name).approval

    async def _declaration(self, name: str) -> ToolDeclaration | None:
        now = asyncio.get_running_loop().time()
        cached = self._cache.get(name)
        if cached is not None and now - cached[0] < CACHE_SECONDS:
            return cached[1]
        declared = await read_declaration(self._requests, name)
        if declared is None:
            # Not kept: the next turn sees a tool as soon as somebody declares it.
            self._cache.pop(name, None)
            return None
        declared = self._configuration.of(name).applied_to(declared)
        if len(self._cache) >= CACHE_TOOLS_MAX:
            self._cache.clear()
        self._cache[name] = (now, declared)
        return declared


async def read_declaration(requests: Requests, name: str) -> ToolDeclaration | None:
    """A tool's declaration as it is in the bucket; None if there is none, or none that can be read."""
    entry = await key_value.get(requests, TOOLS_BUCKET.name, subjects.check_tool(name))
    declared = key_value.record_of(entry, ToolDeclaration, log, "tool.declaration_invalid", tool=name)
    if declared is not None and declared.name != name:
        log.warning("tool.declaration_invalid", tool=name, error=f"it is that of {declared.name}")
        return None
    return declared


async def consumers_of_tools(requests: Requests) -> list[str]:
    """The tools that have a consumer, whoever made it: it stays for a day after the last runner.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    names = await all_consumer_names(requests, TOOLS.name)
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

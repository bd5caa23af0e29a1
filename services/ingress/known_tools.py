"""Whether the tools that a task names can be there: a misspelt name is refused at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from contracts.codec import encode
from contracts.records.tools import ASK_USER, ASK_USER_DECLARATION, ToolDeclaration, ToolList
from contracts.streams import BUILT_IN_TOOLS, TOOLS_BUCKET
from contracts.subjects import LANE_NAME_PATTERN
from mesh.broker import key_value
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.configuration.tool_tables import ToolsConfiguration
from mesh.tools.toolbox import Toolbox, consumers_of_tools

AT_ONCE = 16
"""Declarations that are read at the same time."""
PAGE_BYTES_MAX = 1024 * 1024
"""A page ends with the tool that goes beyond it."""
SIMILAR_FROM = 0.6
"""From which likeness on (0 to 1, as `difflib` measures it) a name is one that may have been meant."""

_NAME = re.compile(f"(?:{LANE_NAME_PATTERN})")


def is_tool(name: str) -> bool:
    """Whether it can be a tool's name: anybody may write into the bucket."""
    return _NAME.fullmatch(name) is not None


class KnownTools:
    """The names of tools: those of the configuration, those that are declared, and those that lately were."""

    def __init__(self, requests: Requests, configuration: ToolsConfiguration) -> None:
        self._requests = requests
        self._toolbox = Toolbox(requests, configuration)
        self._named = {ASK_USER, *BUILT_IN_TOOLS, *configuration.tools}
        # What a server offers, nobody knows before it is there.
        self._prefixes = tuple(f"{server}_" for server in configuration.mcp)

    async def refusal(self, names: Sequence[str]) -> str | None:
        """Why tools can't be asked for: which of them nobody knows. None if all are known.

        A name costs nothing that the configuration knows, a look into the bucket that is declared. Raises
        `BrokerUnavailable`.
        """
        doubtful = [name for name in dict.fromkeys(names) if not self._is_configured(name)]
        if not doubtful:
            return None
        declared = await key_value.get_many(self._requests, TOOLS_BUCKET.name, doubtful)
        doubtful = [name for name in doubtful if name not in declared or declared[name].value is None]
        if not doubtful:
            return None
        served = await consumers_of_tools(self._requests)
        unknown = [name for name in doubtful if name not in served]
        return _refusal(unknown, {*served, *self._named}) if unknown else None

    async def page(self, limit: int, after: str) -> ToolList:
        """The declared tools whose names come after one. Raises `BrokerUnavailable`."""
        prefix = f"$KV.{TOOLS_BUCKET.name}."
        stored = await subjects_of(self._requests, TOOLS_BUCKET.stream_name, f"{prefix}>")
        found = {ASK_USER, *(each.removeprefix(prefix) for each in stored)}
        names = sorted(name for name in found if name > after and is_tool(name))
        tools: list[ToolDeclaration] = []
        page_bytes, last = 0, after
        for at in range(0, len(names), AT_ONCE):
            group = names[at : at + AT_ONCE]
            declared = await self._toolbox.declarations([name for name in group if name != ASK_USER])
            for name in group:
                if len(tools) == limit or page_bytes > PAGE_BYTES_MAX:
                    return ToolList(tools=tools, cursor=last)
                tool = ASK_USER_DECLARATION if name == ASK_USER else declared.get(name)
                if tool is not None:
                    tools.append(tool)
                    page_bytes += len(encode(tool))
                last = name
        return ToolList(tools=tools, cursor=None)

    def _is_configured(self, name: str) -> bool:
        return name in self._named or name.startswith(self._prefixes)


def _refusal(unknown: Sequence[str], known: Iterable[str]) -> str:
    """What is said of the unknown names, with what may have been meant. Pure."""
    [*nearest] = difflib.get_close_matches(unknown[0], sorted(known), n=1, cutoff=SIMILAR_FROM)
    sentences = [
        f"nobody has declared a tool {unknown[0]}" + (f" (nor {', '.join(unknown[1:])})" if len(unknown) > 1 else ""),
        *([f"did you mean {nearest[0]}?"] if nearest else []),
        'with "unknown_tools": "allow" the task is taken all the same',
    ]
    return "; ".join(sentences)

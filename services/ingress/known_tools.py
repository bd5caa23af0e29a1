"""Whether the tools that a task names can be there: a misspelt name is refused at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from contracts.records.tools import ASK_USER
from contracts.streams import BUILT_IN_TOOLS, TOOLS_BUCKET
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.configuration.tool_tables import ToolsConfiguration
from mesh.tools.toolbox import consumers_of_tools

SIMILAR_FROM = 0.6
"""From which likeness on (0 to 1, as `difflib` measures it) a name is one that may have been meant."""


class KnownTools:
    """The names of tools: those of the configuration, those that are declared, and those that lately were."""

    def __init__(self, requests: Requests, configuration: ToolsConfiguration) -> None:
        self._requests = requests
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

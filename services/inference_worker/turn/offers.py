"""The tools that a task may use: as their runners declare them, with the operator's word on each."""

from __future__ import annotations

from collections.abc import Sequence

from inference_worker.turn.calls import OfferedTool
from mesh.tools.toolbox import Toolbox


class DeclaredTools:
    """What the mesh's tools are to a turn."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    async def offered(self, names: Sequence[str]) -> dict[str, OfferedTool]:
        """Those of the names that are declared now. Raises `BrokerUnavailable`."""
        declared = await self._toolbox.declarations(list(dict.fromkeys(names)))
        return {
            name: OfferedTool(declaration, self._toolbox.operator_approval(name))
            for name, declaration in declared.items()
        }

"""The tools that a task may use: as their runners declare them, with the operator's word on each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from contracts.records.tools import ASK_USER
from contracts.tasks import Message
from inference_worker.turn.calls import OfferedTool
from mesh.task.conversation import ConversationItem
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


def missing_from(names: Sequence[str] | None, offered: Collection[str]) -> list[str]:
    """The tools of a request that nobody serves, in its order. `ask_user` is always there."""
    return [name for name in dict.fromkeys(names or ()) if name not in offered and name != ASK_USER]


def with_note_of_missing(entries: list[ConversationItem], missing: Sequence[str]) -> list[ConversationItem]:
    """A conversation, with a line behind its instructions that says which tools of the task are not served."""
    if not missing:
        return entries
    note = (
        f"These tools of the task are not available at present: {', '.join(missing)}. "
        "Do what can be done without them, and say in the answer what could not be done."
    )
    at = next(
        (at for at, each in enumerate(entries) if not (isinstance(each, Message) and each.role == "system")),
        len(entries),
    )
    return [*entries[:at], Message("system", note), *entries[at:]]

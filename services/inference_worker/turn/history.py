"""The conversation that a task goes on with: that of the ended task that its request names, and of those before it.

It is bounded: the newest entries are kept, up to `HISTORY_BYTES_MAX` of text, from a message of the user on. The
instructions of earlier tasks are not part of it; a task brings its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from contracts.tasks import Message
from mesh.broker.requests import Requests
from mesh.journal.journal import Journal
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer, whole_conversation
from mesh.task.state import TaskState

HISTORY_BYTES_MAX = 256 * 1024
CHAIN_MAX = 100
"""Ended tasks that one conversation goes back over."""
KEPT_MAX = 64
"""Conversations of ended tasks kept in memory: those don't change any more."""


class History:
    """Reads conversations of ended tasks."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._kept: OrderedDict[tuple[str, str], tuple[list[ConversationItem], str | None]] = OrderedDict()

    async def before(self, state: TaskState) -> list[ConversationItem]:
        """What the task that this one continues has said and heard; empty without one. Raises `BrokerUnavailable`."""
        entries: list[ConversationItem] = []
        task = state.queued.request.continues if state.queued else None
        for _ in range(CHAIN_MAX):
            if task is None or text_bytes(entries) > HISTORY_BYTES_MAX:
                break
            earlier, task = await self._of(state.tenant, task)
            entries = earlier + entries
        return newest(entries)

    async def _of(self, tenant: str, task: str) -> tuple[list[ConversationItem], str | None]:
        key = (tenant, task)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        state = (await Journal.load(self._requests, tenant, task)).state
        if state.queued is None:
            return [], None  # Purged since: the conversation begins behind it.
        told = [entry for entry in whole_conversation(state) if not _is_system(entry)]
        found = (told, state.queued.request.continues)
        if state.terminal is not None:
            self._kept[key] = found
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return found


def newest(entries: list[ConversationItem], bytes_max: int = HISTORY_BYTES_MAX) -> list[ConversationItem]:
    """The newest entries that fit, from a message of the user on: an answer without its question confuses a model."""
    left = bytes_max
    begin = len(entries)
    for index in range(len(entries) - 1, -1, -1):
        left -= text_bytes([entries[index]])
        if left < 0:
            break
        entry = entries[index]
        if isinstance(entry, Message) and entry.role == "user":
            begin = index
    return entries[begin:]


def text_bytes(entries: Sequence[ConversationItem]) -> int:
    """About how much text it is, in bytes of UTF-8."""
    total = 0
    for entry in entries:
        match entry:
            case Message() | ToolAnswer():
                total += len(entry.content.encode("utf-8", "surrogatepass"))
            case AssistantTurn():
                total += len(entry.text.encode("utf-8", "surrogatepass")) + len(str(entry.calls))
    return total


def _is_system(entry: ConversationItem) -> bool:
    return isinstance(entry, Message) and entry.role == "system"

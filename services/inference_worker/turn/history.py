"""The conversation that a task goes on with: that of the ended task that its request names, and of those before it.

It is bounded: the newest entries are kept, up to `HISTORY_BYTES_MAX` of text, from a message of the user on. The
instructions of earlier tasks are not part of it; a task brings its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.tasks import Message
from mesh.broker.requests import Requests
from mesh.journal.journal import Journal
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer, whole_conversation
from mesh.task.state import TaskState

HISTORY_BYTES_MAX = 256 * 1024
CHAIN_MAX = 100
"""Ended tasks that are read for one conversation."""
KEPT_BYTES_MAX = 16 * 1024 * 1024
"""Of conversations kept in memory: those of ended tasks don't change any more."""

Conversation = tuple[ConversationItem, ...]


@dataclass(frozen=True, slots=True)
class _Link:
    """A task that a conversation goes back over."""

    task: str
    told: Conversation
    ended: bool


class History:
    """Reads conversations of ended tasks.

    A conversation is kept up to the task that is continued: each turn of the next one finds it at once, and the task
    after that reads one journal more, however long the chain is.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._kept: OrderedDict[tuple[str, str], Conversation] = OrderedDict()
        self._kept_bytes = 0

    async def before(self, state: TaskState) -> list[ConversationItem]:
        """What the task that this one continues has said and heard; empty without one. Raises `BrokerUnavailable`."""
        task = state.queued.request.continues if state.queued else None
        return list(await self._up_to(state.tenant, task)) if task is not None else []

    async def _up_to(self, tenant: str, task: str) -> Conversation:
        """The conversation of a task and of those before it, the newest that fits."""
        links: list[_Link] = []
        earlier: str | None = task
        known: Conversation | None = None
        size = 0
        while earlier is not None and len(links) < CHAIN_MAX and size <= HISTORY_BYTES_MAX:
            known = self._known(tenant, earlier)
            if known is not None:
                break
            link, earlier = await self._read(tenant, earlier)
            links.append(link)
            size += text_bytes(link.told)
        # Cut off by a bound: of the tasks behind the first one not all is here that belongs to them.
        is_whole = known is not None or earlier is None
        told: Conversation = known or ()
        for at, link in reversed(list(enumerate(links))):
            told = tuple(newest([*told, *link.told]))
            if link.ended and (is_whole or at == 0):
                self._keep(tenant, link.task, told)
        return told

    async def _read(self, tenant: str, task: str) -> tuple[_Link, str | None]:
        state = (await Journal.load(self._requests, tenant, task)).state
        if state.queued is None:
            return _Link(task, (), ended=False), None  # Purged since: the conversation begins behind it.
        told = tuple(entry for entry in whole_conversation(state) if not _is_system(entry))
        return _Link(task, told, ended=state.terminal is not None), state.queued.request.continues

    def _known(self, tenant: str, task: str) -> Conversation | None:
        known = self._kept.get((tenant, task))
        if known is not None:
            self._kept.move_to_end((tenant, task))
        return known

    def _keep(self, tenant: str, task: str, told: Conversation) -> None:
        self._kept_bytes += text_bytes(told) - text_bytes(self._kept.pop((tenant, task), ()))
        self._kept[tenant, task] = told
        while self._kept_bytes > KEPT_BYTES_MAX and len(self._kept) > 1:
            self._kept_bytes -= text_bytes(self._kept.popitem(last=False)[1])


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

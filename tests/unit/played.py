"""A provider that plays back what it is given, and turns that are claimed without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from contracts.journal import events
from contracts.journal.parts import Usage
from contracts.records.tools import ToolDeclaration
from contracts.tasks import TaskRequest
from inference_worker.models.candidates import Candidates, Provider
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.turn.calls import OfferedTool, Offers
from inference_worker.turn.turns import TurnHandler
from mesh.task.conversation import ConversationItem
from mesh.task.state import TaskState
from tests.unit.journals import FoldedStep, HandMadeJournal, turn_work

STOP = Finished(finish_reason="stop", usage=Usage(3, 4))
HEAD = ["task.queued", "step.claimed"]
END = ["turn.completed", "task.completed"]

Event = Chunk | BaseException | Callable[[], Awaitable[object]]


class PlayedProvider:
    """Plays back chunks, raises exceptions and awaits functions, in order; remembers what it was asked."""

    def __init__(
        self, *chunks: Event, continues_prefix: bool = True, named: tuple[str, str] = ("played", "played-1")
    ) -> None:
        self.name, self.default_model = named
        self._continues = continues_prefix
        self.asked: list[TurnInput] = []
        self.closed = asyncio.Event()
        self._chunks = chunks

    def continues(self, text: str) -> bool:
        return self._continues

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        self.asked.append(turn)
        try:
            for chunk in self._chunks:
                if isinstance(chunk, BaseException):
                    raise chunk
                if callable(chunk):
                    await chunk()
                else:
                    yield chunk
        finally:
            self.closed.set()


class Declared:
    """Tools that are declared; `wipe` changes what can't be changed back."""

    def __init__(self, *declarations: ToolDeclaration) -> None:
        self._declarations = declarations

    async def offered(self, names: Sequence[str]) -> dict[str, OfferedTool]:
        return {each.name: OfferedTool(each) for each in self._declarations if each.name in names}


DECLARED = Declared(
    ToolDeclaration(name="add", description="", parameters={}, destructive=False),
    ToolDeclaration(name="wipe", description="", parameters={}, destructive=True),
)


class NothingBefore:
    """No task continues another one."""

    async def before(self, state: TaskState) -> list[ConversationItem]:
        return []


def turn_handler(
    provider: Provider | Candidates, tools: Offers | None = None, *, fallbacks: Sequence[Provider] = (), **options: Any
) -> TurnHandler:
    """A handler of a pool with these models."""
    candidates = provider if isinstance(provider, Candidates) else Candidates.of_providers([provider, *fallbacks])
    return TurnHandler(candidates, tools or Declared(), NothingBefore(), **options)


def claimed_step(
    journal: HandMadeJournal | None = None, request: TaskRequest | None = None, **options: Any
) -> FoldedStep:
    """Turn 1, claimed: in a new journal, or anew in one that is there."""
    if journal is None:
        journal = HandMadeJournal()
        journal.queued(request)
    work = turn_work(journal.state.queued.request if journal.state.queued else None, gen=journal.state.gen("1"))
    return FoldedStep(journal, work, journal.claimed(gen=work.gen), **options)


def last(step: FoldedStep, kind: type[events.Event]) -> Any:
    found = [event for event in step.journal.events if isinstance(event, kind)]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def deltas(step: FoldedStep) -> str:
    """The text that a step has streamed."""
    return "".join(event.text for event in step.journal.events if isinstance(event, events.OutputDelta))

"""What goes into a provider, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from contracts.journal.parts import FinishReason, Usage
from contracts.records.tools import ToolDeclaration
from inference_worker.models.prompt_size import NO_SIZE, PromptSize
from mesh.task.budget import total
from mesh.task.conversation import ConversationItem


@dataclass(frozen=True, slots=True)
class Shown:
    """A conversation as a single request shows it. `sent` is called, any number of times, once the request has gone."""

    messages: Sequence[ConversationItem]
    sent: Callable[[], None]


class Sight(Protocol):
    """What is read for a request right before it is made, and is held no longer than until it is sent."""

    async def show(self, messages: Sequence[ConversationItem]) -> Shown | None:
        """The conversation with all that a model is shown of it; None if that is the conversation alone."""
        ...


class Meter:
    """What a provider has told so far of what a turn uses, over all requests that are made for it.

    A request that is refused uses nothing. One that was taken has used something, told or not.
    """

    def __init__(self) -> None:
        self._told: list[Usage] = []
        self._open = False

    def ask(self) -> None:
        """A request goes out."""
        self._told.append(Usage())
        self._open = True

    def refused(self) -> None:
        """It was answered by an error, or did not arrive: nothing was generated."""
        self._told.pop()
        self._open = False

    def tell(self, usage: Usage) -> None:
        """What the provider says that the request has used up to now."""
        self._told[-1] = usage

    def over(self) -> None:
        """The answer is whole, and all is told if anything was."""
        self._open = False

    @property
    def spent(self) -> Usage | None:
        """What was told, and how many requests have not told all; None if nothing was asked."""
        if not self._told:
            return None
        # Each has read something: whoever does not tell that has not told all.
        untold = sum(not usage.input_tokens for usage in self._told)
        # The last one is broken off: its last word need not have been its provider's.
        untold += self._open and self._told[-1].input_tokens > 0
        return msgspec.structs.replace(total(self._told), untold_calls=untold or msgspec.UNSET)


class TurnInput(msgspec.Struct, frozen=True, kw_only=True):
    """One turn to be generated."""

    messages: Sequence[ConversationItem]
    """The conversation, instructions first."""
    model: str
    tools: tuple[ToolDeclaration, ...] = ()
    """The tools that the model may call."""
    max_output_tokens: int | None = None
    """The most tokens of the whole output, the part in `prefix` included."""
    temperature: float | None = None
    prefix: str = ""
    """Text of this turn that is in the journal already; a provider that continues prefixes goes on right behind it."""
    tries: int = 0
    """Failed tries of this turn before, over all its replays."""
    deliveries: int = 1
    """How often this turn was claimed, this time included, over all its replays."""
    size: PromptSize = NO_SIZE
    """How large the prompt is, about: what its time is held against."""
    sight: Sight | None = None
    """Where the images of the conversation come from; a model without one is shown none."""
    on_headers: Callable[[Mapping[str, str]], None] | None = None
    """Told the headers of each answer, whatever it is."""
    meter: Meter = msgspec.field(default_factory=Meter)
    """Where is told what this uses."""


class Begun(msgspec.Struct, frozen=True, gc=False):
    """The first token has come, and is no text: a call is being written."""

    text: ClassVar[str] = ""


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the output."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the reasoning."""

    text: str


class RequestedCall(msgspec.Struct, frozen=True):
    """A call as the model asked for it. `arguments` is None if they are no JSON object: then `error` says why."""

    name: str
    arguments: dict[str, Any] | None
    error: str | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The last chunk: a stream that ends without one was cut off. `usage` is of the whole turn, prefix included."""

    finish_reason: FinishReason
    usage: Usage
    calls: tuple[RequestedCall, ...] = ()
    blocks: list[Any] | None = None
    """What the provider wants to see again with this turn, as it is: `AssistantTurn.blocks` of later turns."""


Chunk = Begun | TextDelta | ReasoningDelta | Finished

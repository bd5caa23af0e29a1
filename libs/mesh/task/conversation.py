"""The conversation of a task, folded from its journal: what the model is shown before a turn. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from contracts.codec import encode
from contracts.journal import events, parts
from contracts.records.tools import RESULTS_BUCKET
from contracts.result_objects import parse_result_name
from contracts.tasks import Message, TaskRequest
from mesh.task.images import Image, are_told
from mesh.task.state import CallResult, TaskState, TurnState


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What the model said in a turn, and the calls it asked for.

    `blocks` is its provider's own, opaque; they and the reasoning are for nobody but the provider that made them, the
    one of the name `maker`. None: it is not known, as in journals of before.
    """

    text: str
    calls: tuple[parts.ToolCall, ...] = ()
    reasoning: str | None = None
    blocks: tuple[Any, ...] | None = None
    maker: str | None = None


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What came of a call, as text for the model.

    `kept`: where its images lie in the bucket `results`, if it has any. `images`: those of them that a
    model is given beside the text, which only the input of a single request has; a conversation stays small.
    """

    call: str
    tool: str
    content: str
    is_error: bool = False
    kept: parts.ObjectReference | None = None
    images: tuple[Image, ...] = ()


ConversationItem = Message | AssistantTurn | ToolAnswer
"""One entry of a conversation. A `Message` is of the system, the user, or an assistant that the request quotes."""


def conversation(state: TaskState, before_turn: int, provider: str | None = None) -> list[ConversationItem]:
    """What the model is shown before a turn: the request, the turns so far, what came of their calls, and inputs.

    An input stands before the first turn that was begun after it. A `provider` gets its own blocks back, and nobody
    else's.
    """
    if state.request is None:
        raise ValueError("there is no journal to make a conversation of")
    so_far = _said_so_far(state, state.request, before_turn, provider)
    entries, last = list(so_far.entries), _Place(so_far.turns, so_far.seen, so_far.heard)
    for number in range(so_far.turns + 1, before_turn + 1):
        turn = state.turn(number)
        entries += last.inputs_of(state, turn)
        if number < before_turn and turn.completed is not None:
            entries += _told(state, turn, turn.completed, provider)
    return entries


@dataclass(slots=True)
class _Place:
    """How far a conversation has come: its turns, and the inputs that were heard by then."""

    turns: int = 0
    seen: int = -1
    heard: int = 0

    def inputs_of(self, state: TaskState, turn: TurnState) -> list[ConversationItem]:
        """The inputs that stand before a turn, the next one."""
        begun = turn.base_n if turn.turn in state.turns and turn.claims else state.next_n
        told: list[ConversationItem] = []
        while self.heard < len(state.inputs) and state.inputs[self.heard].n < begun:
            if state.inputs[self.heard].n > self.seen:
                told.append(Message("user", state.inputs[self.heard].text))
            self.heard += 1
        self.seen = max(self.seen, begun)
        return told


@dataclass(slots=True)
class _SaidSoFar(_Place):
    """The beginning of a conversation that does not change any more: a long run need not tell it anew at each turn."""

    request: TaskRequest | None = None
    entries: list[ConversationItem] = field(default_factory=list)


def _said_so_far(state: TaskState, request: TaskRequest, before_turn: int, provider: str | None) -> _SaidSoFar:
    """The turns before one, as far as they are completed and all of their calls have results."""
    kept = state.said.get(provider)
    if kept is None or kept.request is not request or kept.turns >= before_turn:
        kept = _SaidSoFar(request=request, entries=[*opening(request)])
    while kept.turns + 1 < before_turn:
        turn = state.turn(kept.turns + 1)
        completed = turn.completed
        if completed is None or any(asked.call not in state.call_results for asked in completed.calls):
            break
        kept.entries += kept.inputs_of(state, turn)
        kept.entries += _told(state, turn, completed, provider)
        kept.turns += 1
    state.said[provider] = kept
    return kept


def whole_conversation(state: TaskState) -> list[ConversationItem]:
    """All of an ended task's conversation: what a task that continues it begins with."""
    last = max(state.turns, default=0)
    entries = conversation(state, last + 1)
    turn = state.turn(last)
    if last and turn.completed is None and turn.text:
        # It was stopped in mid-turn: what there was counts as said.
        entries.append(AssistantTurn(turn.text))
    return entries


def continued(before: list[ConversationItem], entries: list[ConversationItem]) -> list[ConversationItem]:
    """A conversation that goes on with another: its own instructions come first all the same."""
    begin = next((at for at, entry in enumerate(entries) if not _is_system(entry)), len(entries))
    return [*entries[:begin], *before, *entries[begin:]]


def shown_to(entries: Iterable[ConversationItem], provider: str) -> list[ConversationItem]:
    """A conversation without what other providers want to see again: they alone know what it means."""
    return [_shown_to(entry, provider) if isinstance(entry, AssistantTurn) else entry for entry in entries]


def _shown_to(turn: AssistantTurn, provider: str) -> AssistantTurn:
    return turn if turn.maker in (None, provider) else replace(turn, reasoning=None, blocks=None)


def _is_system(entry: ConversationItem) -> bool:
    return isinstance(entry, Message) and entry.role == "system"


def opening(request: TaskRequest) -> list[Message]:
    """What a request begins its conversation with: its instructions, then its input."""
    instructions = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*instructions, Message("user", request.input)]
    return [*instructions, *request.input]


def _told(
    state: TaskState, turn: TurnState, completed: events.TurnCompleted, provider: str | None
) -> list[ConversationItem]:
    """What a turn has said and heard."""
    maker = turn.model[0] if turn.model else None
    blocks = tuple(completed.blocks) if completed.blocks is not None else None
    said = AssistantTurn(completed.text, tuple(completed.calls), completed.reasoning, blocks, maker)
    told: list[ConversationItem] = [said if provider is None else _shown_to(said, provider)]
    for asked in completed.calls:
        result = state.call_results.get(asked.call)
        if result is None:
            # The task was stopped, or went on without it. A model's server wants an answer for each call.
            told.append(ToolAnswer(asked.call, asked.tool, "not carried out", is_error=True))
        else:
            told.append(tool_answer(asked, result))
    return told


def tool_answer(asked: parts.ToolCall, result: CallResult) -> ToolAnswer:
    """A call's result as the model reads it."""
    match result:
        case events.ToolCompleted():
            text = result.result if isinstance(result.result, str) else encode(result.result).decode()
            if result.object is not None:
                # A result with images and the like is told as a list of what it holds, any other by its beginning.
                part = "the beginning" if isinstance(result.result, str) else "what can be told"
                text += f"\n[{part} of {result.object.size} bytes]"
            return ToolAnswer(asked.call, asked.tool, text, kept=_images_of(result))
        case events.ToolFailed():
            unknown = " (it may have had its effect)" if result.outcome == "unknown" else ""
            text = f"{result.error.code}: {result.error.message}{unknown}"
        case events.ApprovalResolved():
            why = f": {result.reason}" if result.reason else ""
            text = f"{result.decision} by {result.by}{why}"
        case events.InputReceived():
            return ToolAnswer(asked.call, asked.tool, result.text)
        case events.SubtaskCompleted():
            if result.status == "completed":
                # Half an answer must not read as a whole one.
                cut = f"\n[incomplete: {result.incomplete}]" if result.incomplete else ""
                return ToolAnswer(asked.call, asked.tool, (result.output or "") + cut)
            why = f": {result.error.code}: {result.error.message}" if result.error else ""
            text = f"the sub-task is {result.status}{why}" + (f"\n{result.output}" if result.output else "")
    return ToolAnswer(asked.call, asked.tool, text, is_error=True)


def _images_of(completed: events.ToolCompleted) -> parts.ObjectReference | None:
    """Where the images of a result lie; None without any, and for an object that is not its tenant's."""
    kept = completed.object
    if kept is None or kept.bucket != RESULTS_BUCKET or not are_told(completed.result):
        return None
    name = parse_result_name(kept.name)
    return kept if name is not None and name.tenant == completed.tenant else None

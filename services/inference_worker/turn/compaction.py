"""Compacting a conversation that is too long for its model: what is left of it within a bound. Pure.

The instructions stay, and the newest entries that fit, from a message of the user on. Where not even the newest such
message fits with all that follows, it stays all the same, and behind it the newest turns that fit, with the answers to
their calls; of a last turn that does not fit the answers are cut.
"""

from __future__ import annotations

from dataclasses import replace

from contracts.tasks import Message
from inference_worker.turn.history import newest, text_bytes
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer

COMPACTIONS_MAX = 6
"""How often a task's conversation is halved: to a sixty-fourth of what was too long."""
CUT = " [cut]"


def compacted(entries: list[ConversationItem], bytes_max: int | None) -> list[ConversationItem]:
    """What is left of a conversation, instructions first; all of it without a bound, or if it fits."""
    if bytes_max is None or text_bytes(entries) <= bytes_max:
        return entries
    begin = next((at for at, entry in enumerate(entries) if not _is_of(entry, "system")), len(entries))
    instructions, rest = entries[:begin], entries[begin:]
    left = max(0, bytes_max - text_bytes(instructions))
    return [*instructions, *(newest(rest, left) or _from_last_question(rest, left))]


def _from_last_question(entries: list[ConversationItem], bytes_max: int) -> list[ConversationItem]:
    asked = max((at for at, entry in enumerate(entries) if _is_of(entry, "user")), default=-1)
    question, said = entries[max(asked, 0) : asked + 1], entries[asked + 1 :]
    left = max(0, bytes_max - text_bytes(question))
    turns = [at for at, entry in enumerate(said) if isinstance(entry, AssistantTurn)]
    fitting = next((at for at in turns if text_bytes(said[at:]) <= left), None)
    if fitting is not None:
        return [*question, *said[fitting:]]
    return [*question, *_cut(said[turns[-1] :], left)] if turns else question


def _cut(turn: list[ConversationItem], bytes_max: int) -> list[ConversationItem]:
    """A turn, and its answers, each cut to an equal share of what is left. The turn itself stays whole."""
    answers = [entry for entry in turn if isinstance(entry, ToolAnswer)]
    share = max(0, bytes_max - text_bytes(turn[:1])) // max(1, len(answers))
    return [_cut_answer(entry, share) if isinstance(entry, ToolAnswer) else entry for entry in turn]


def _cut_answer(answer: ToolAnswer, bytes_max: int) -> ToolAnswer:
    content = answer.content.encode("utf-8", "surrogatepass")
    if len(content) <= bytes_max:
        return answer
    kept = content[: max(0, bytes_max - len(CUT))].decode("utf-8", "ignore")
    return replace(answer, content=kept + CUT)


def _is_of(entry: ConversationItem, role: str) -> bool:
    return isinstance(entry, Message) and entry.role == role

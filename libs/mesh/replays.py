"""Replays: which steps one names, and what it may change. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.errors import ErrorInfo
from contracts.events import RecordedEdits, StepGen
from mesh.fold import TaskState


def to_repair(state: TaskState) -> list[StepGen]:
    """The dead letters of a task that a replay of all of it names."""
    return [StepGen(letter.step, letter.gen) for letter in state.open_dead_letters]


def edits_error(state: TaskState, edits: RecordedEdits | None, steps: Sequence[str]) -> ErrorInfo | None:
    """What is wrong with the edits of a replay of these steps, as far as the journal can tell; None if nothing is."""
    for call in (edits.arguments or {}) if edits is not None else {}:
        if call not in steps or state.asked_for(call) is None:
            return ErrorInfo("edits-invalid", f"arguments: call {call} is none of the steps that are replayed")
    return None

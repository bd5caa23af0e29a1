"""Replays: which steps one names, and what it may change. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from contracts.errors import ErrorInfo
from contracts.journal.events import Stamp, TaskReplayed
from contracts.journal.parts import RecordedEdits, StepGen
from mesh.task.fold import fold
from mesh.task.state import TaskState


def to_repair(state: TaskState) -> list[StepGen]:
    """The dead letters of a task that a replay of all of it names."""
    return [StepGen(letter.step, letter.gen) for letter in state.open_dead_letters]


def edits_error(state: TaskState, edits: RecordedEdits | None, steps: Sequence[str]) -> ErrorInfo | None:
    """What is wrong with the edits of a replay of these steps, as far as the journal can tell; None if nothing is."""
    for call in (edits.arguments or {}) if edits is not None else {}:
        if call not in steps or state.asked_for(call) is None:
            return ErrorInfo("edits-invalid", f"arguments: call {call} is none of the steps that are replayed")
    return None


def after_replay(state: TaskState, steps: Sequence[StepGen], edits: RecordedEdits | None) -> TaskState:
    """The state as the fold will have it once these dead letters are replayed. The one given stays as it is."""
    copied = replace(
        state,
        dead_letters=dict(state.dead_letters),
        repaired=dict(state.repaired),
        gens=dict(state.gens),
        edited_by=list(state.edited_by),
        said={},
        turns={number: replace(turn) for number, turn in state.turns.items()},
    )
    at = state.changed_at or datetime.fromtimestamp(0, UTC)
    stamp = Stamp(state.task, state.task, state.tenant, state.next_n, at)
    fold(copied, state.revision + 1, TaskReplayed(*stamp, steps=list(steps), by="nobody", edits=edits))
    return copied

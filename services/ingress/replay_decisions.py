"""What a client's replay comes to: which dead letters it repairs, or why it is refused. Pure.

It is judged by what the ingress can see. The journal decides, and the steward carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contracts.api.dead_letters import ArgumentsChange, ReplayPlan, ReplayRequest, RequestChange
from contracts.codec import encode
from contracts.errors import InvalidPayload
from contracts.journal.events import TaskReplayed
from contracts.journal.parts import RecordedEdits, StepGen
from contracts.messages.control import REPLAYED_STEPS_MAX, Edits
from contracts.records.status import Links
from contracts.tasks import BODY_BYTES_MAX
from mesh.serving.http import RequestRefused
from mesh.task.replays import edits_error, to_repair
from mesh.task.state import TaskState


def shows(state: TaskState, wanted: ReplayRequest) -> bool:
    """Whether as much of the journal is folded as it takes to judge: what is not there yet might still come."""
    if not state.exists:
        return False
    if wanted.steps is None:
        return state.terminal is not None or bool(state.open_dead_letters)
    return all(_is_open(state, each) or _is_replayed(state, each) for each in wanted.steps)


def steps_of(state: TaskState, wanted: ReplayRequest) -> tuple[list[StepGen], bool]:
    """The dead letters that are to be repaired, and whether that has happened already.

    Raises `RequestRefused`: there are none, or not those.
    """
    if wanted.steps is not None:
        steps = list(dict.fromkeys(wanted.steps))
        if all(_is_replayed(state, each) for each in steps):
            return steps, True
    else:
        steps = to_repair(state)[:REPLAYED_STEPS_MAX]
    if state.terminal is not None:
        raise RequestRefused("conflict", f"task {state.task} is {state.status}: an ended task does not go on")
    if not steps:
        raise RequestRefused("conflict", f"task {state.task} is {state.status}, and has no open dead letter")
    missing = [f"{each.step} (gen {each.gen})" for each in steps if not _is_open(state, each)]
    if missing:
        raise RequestRefused("conflict", f"no dead letter of step {', '.join(missing)} is open")
    return steps, False


def check_edits(state: TaskState, steps: Sequence[StepGen], edits: Edits | None, pools: Sequence[str]) -> None:
    """Hold edits against the journal and the pools. Raises `InvalidPayload`."""
    error = edits_error(state, edits, [each.step for each in steps])
    if error is not None:
        raise InvalidPayload(f"edits.{error.message}")
    if edits is not None and edits.pool is not None and edits.pool not in pools:
        raise InvalidPayload(f"edits.pool: there is no pool {edits.pool!r}; there is {', '.join(pools)}")


def check_size(after: TaskState, bytes_max: int = BODY_BYTES_MAX) -> None:
    """What a task asks for has to fit where a request fits, edits and all. Raises `RequestRefused`."""
    size = len(encode(after.request))
    if size > bytes_max:
        raise RequestRefused(
            "payload-too-large", f"with the edits the request has {size} bytes; it may have {bytes_max}"
        )


def check_same(wanted: Edits | None, before: RecordedEdits | None) -> None:
    """Hold a replay against the one that these dead letters had. Raises `RequestRefused`."""
    if _plain(wanted) != _plain(before):
        raise RequestRefused("conflict", "these dead letters are replayed already, with other edits")


def check_recorded(wanted: Edits | None, steps: Sequence[StepGen], replayed: Sequence[TaskReplayed]) -> None:
    """The same, against what the journal has of it. Raises `RequestRefused`."""
    for event in replayed:
        if any(each in event.steps for each in steps):
            check_same(wanted, event.edits)


def gone_on(steps: Sequence[StepGen]) -> list[StepGen]:
    """The steps as they go on."""
    return [StepGen(each.step, each.gen + 1) for each in steps]


def plan(before: TaskState, after: TaskState, steps: Sequence[StepGen], links: Links) -> ReplayPlan:
    """What a replay of these dead letters would do."""
    if before.request is None or after.request is None:
        raise TypeError("not the state of a task that exists")
    arguments = {}
    for each in steps:
        asked, edited = (state.asked_for(each.step) if "-" in each.step else None for state in (before, after))
        if asked is not None and edited is not None:
            arguments[each.step] = ArgumentsChange(tool=asked.tool, before=asked.arguments, after=edited.arguments)
    return ReplayPlan(
        id=before.task,
        status=before.status,
        steps=gone_on(steps),
        request=RequestChange(before=before.request, after=after.request),
        arguments=arguments,
        links=links,
    )


def _is_open(state: TaskState, named: StepGen) -> bool:
    return any((letter.step, letter.gen) == (named.step, named.gen) for letter in state.open_dead_letters)


def _is_replayed(state: TaskState, named: StepGen) -> bool:
    return state.gen(named.step) > named.gen


def _plain(edits: RecordedEdits | None) -> object:
    """Edits that change nothing are none."""
    return (msgspec.to_builtins(edits) if edits is not None else None) or None

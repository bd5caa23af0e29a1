"""Folding a journal into the state of its task: pure, and the same for everybody who reads the same events."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from contracts.errors import ErrorInfo
from contracts.identifiers import turn_of
from contracts.journal import events, parts
from contracts.journal.events import DELTAS, JournalEvent, TerminalEvent, UnknownEvent
from contracts.retries import AWAY_CODES, PAUSE_CODES
from mesh.errors import JournalCorrupt
from mesh.task.state import FAILURES_MAX, Away, TaskState, TurnState

DELAY_SECONDS_MAX = 366 * 24 * 3600.0
"""What is longer is rubbish, and must not stop who folds it."""


def fold(
    state: TaskState,
    sequence: int,
    event: JournalEvent | UnknownEvent,
    *,
    holes_allowed: bool = False,
    payload_bytes: int = 0,
) -> None:
    """Fold one event into the state. `payload_bytes`: of the event as it is stored.

    Raises `JournalCorrupt` on a hole in n; `holes_allowed` is for the part of a journal that is read, or kept,
    without its deltas.
    """
    head = event.head if isinstance(event, UnknownEvent) else event
    if head.n != state.next_n and not (holes_allowed and head.n > state.next_n):
        raise JournalCorrupt(f"task {state.task}: expected n={state.next_n}, read n={head.n} at sequence {sequence}")
    before = state.revision
    state.revision = sequence
    state.first_sequence = state.first_sequence or sequence
    state.next_n = head.n + 1
    if not isinstance(event, DELTAS):
        state.milestone_bytes += payload_bytes
    if isinstance(event, UnknownEvent):
        state.unknown_events += 1
        return
    if state.terminal is not None:
        state.events_after_end += 1
        return
    state.changed_at = event.time
    if isinstance(event, TerminalEvent):
        state.terminal = event
        # Not the n of the last event that is there: tokens that came right before the end may be gone.
        state.before_end = before, head.n - 1
    else:
        _apply(state, event)


def _turn(state: TaskState, turn: int) -> TurnState:
    found = state.turns.get(turn)
    if found is None:
        found = state.turns[turn] = TurnState(turn)
    return found


def _apply(state: TaskState, event: events.Event) -> None:  # noqa: C901, PLR0912, PLR0915 - one case for each event type
    match event:
        case events.OutputDelta() | events.ReasoningDelta():
            turn = _turn(state, event.turn)
            (turn.parts if isinstance(event, events.OutputDelta) else turn.reasoning).append((event.n, event.text))
            turn.model_of_text = turn.model
        case events.TaskQueued():
            state.queued = event
            state.request = event.request
        case events.StepClaimed():
            _claim(state, event)
        case events.StepReleased():
            step_gen = (event.step, event.gen)
            state.bindings.pop(step_gen, None)
            state.retry_at.pop(step_gen, None)  # It was about to be claimed: its timer has fired, and won't again.
            state.releases[step_gen] = state.releases.get(step_gen, 0) + 1
            state.released.add(step_gen)
        case events.TurnRestarted():
            turn = _turn(state, event.turn)
            turn.parts = [part for part in turn.parts if part[0] < event.discard_from]
            turn.reasoning = [part for part in turn.reasoning if part[0] < event.discard_from]
            turn.base_n = event.n
            turn.outdated = False
            turn.discarded_tokens += event.discarded_tokens or 0
            turn.told_output_tokens = 0
            _open_call(state, turn)
        case events.TurnCompleted():
            turn = _turn(state, event.turn)
            turn.completed = event
            turn.milestone_bytes = state.milestone_bytes
            # The whole text is in the event: the deltas are not needed again, nor what hung on whether there are any.
            turn.parts.clear()
            turn.reasoning.clear()
            turn.outdated, turn.model_of_text, turn.switched = False, None, None
            turn.open_calls.clear()
        case events.ToolCompleted() | events.ToolFailed() | events.SubtaskCompleted():
            state.call_results.setdefault(event.call, event)
        case events.ApprovalRequested():
            state.approvals[event.call] = event
        case events.ApprovalResolved():
            state.resolutions.setdefault(event.call, event)
            if event.decision != "approved":
                state.call_results.setdefault(event.call, event)
        case events.InputRequested():
            state.questions[event.call or ""] = event
        case events.InputReceived():
            _receive(state, event)
        case events.SubtaskStarted():
            state.children.setdefault(event.call, event)
        case events.ModelSwitched():
            _switch(state, event)
        case events.ContextCompacted():
            state.context_bytes_max = event.bytes_before // 2
            state.compactions += 1
            _open_call(state, _turn(state, event.turn))
        case events.ModelHedged():
            turn = _turn(state, event.turn)
            turn.open_calls.append(_call(state, turn, event.provider, event.model))
        case events.ModelSpent():
            _spend(_turn(state, event.turn), event)
        case events.TaskRetrying():
            _retry(state, event)
        case events.TaskDeadLettered():
            state.dead_letters[event.step, event.gen] = event
            _close_calls(state, event.step)
        case events.TaskReplayed():
            _replay(state, event)
        case _:
            pass  # Told to clients; no decision hangs on it.


def _claim(state: TaskState, event: events.StepClaimed) -> None:
    step_gen = (event.step, event.gen)
    state.claims[step_gen] = event
    state.claim_counts[step_gen] = state.claim_counts.get(step_gen, 0) + 1
    state.bindings.setdefault(step_gen, event.message)
    state.retry_at.pop(step_gen, None)
    state.released.discard(step_gen)
    if event.call is None:
        state.last_turn_claim = event
        turn = _turn(state, event.turn)
        turn.claims += 1
        turn.model = (event.provider, event.model)
        turn.left.clear()
        turn.lost_calls += len(event.lost or ())
        _open_call(state, turn)
        if turn.completed is None:
            # Versions before 0.2 do not say it. An input is rather shown twice than never.
            turn.base_n = event.base if event.base is not None else turn.base_n or event.n


def _switch(state: TaskState, event: events.ModelSwitched) -> None:
    if event.turn is None:
        return
    turn = _turn(state, event.turn)
    turn.switched = event
    if turn.model is not None:
        turn.left.add(turn.model)
    turn.model = (event.provider, event.to_model)
    _open_call(state, turn)
    if event.reason == "context":
        state.switched = event


def _open_call(state: TaskState, turn: TurnState) -> None:
    """Whoever has the turn asks its model now, and no other: what was under way before has been told, or cost nothing.

    A turn that is completed is not asked for again, whoever takes it over.
    """
    turn.open_calls = [] if turn.completed is not None else [_call(state, turn, *(turn.model or (None, None)))]


def _call(state: TaskState, turn: TurnState, provider: str | None, model: str | None) -> parts.ModelCall:
    return parts.ModelCall(turn=turn.turn, provider=provider, model=model, pool=state.pool or None)


def _spend(turn: TurnState, event: events.ModelSpent) -> None:
    turn.spent.append(event.usage)
    turn.told_output_tokens += event.usage.output_tokens
    named = [each for each in turn.open_calls if (each.provider, each.model) == (event.provider, event.model)]
    # Where only one is under way it is that, also if its claim named another model than its worker then asked.
    if named or len(turn.open_calls) == 1:
        turn.open_calls.remove(named[0] if named else turn.open_calls[0])


def _close_calls(state: TaskState, step: str) -> None:
    """A try that has failed has told what it used before, if anything."""
    turn = state.turns.get(turn_of(step)) if "-" not in step else None
    if turn is not None:
        turn.open_calls.clear()


def _retry(state: TaskState, event: events.TaskRetrying) -> None:
    step_gen = (event.step, event.gen)
    _close_calls(state, event.step)
    _note_absence(state, event)
    state.tries[step_gen] = event.tries
    failures = state.failures.setdefault(step_gen, [])
    failures.append(ErrorInfo(event.reason, event.message or ""))
    del failures[:-FAILURES_MAX]
    if event.timer:
        # Its message is gone: the one that the timer brings may be claimed, and no other.
        state.bindings.pop(step_gen, None)
        state.timer_tries[step_gen] = event.tries
        state.retry_at[step_gen] = event.time + timedelta(seconds=min(event.delay_seconds, DELAY_SECONDS_MAX))
    turn = state.turns.get(turn_of(event.step)) if "-" not in event.step else None
    if turn is not None and not turn.parts and not turn.reasoning:
        turn.switched = None  # What was slow or unavailable may not be so any more.


def _note_absence(state: TaskState, event: events.TaskRetrying) -> None:
    """Note whether the try failed as its provider was away, or its tenant's budget used up.

    One that has no number of its own counts nowhere.
    """
    step_gen = (event.step, event.gen)
    before = state.away.get(step_gen)
    numbered = event.tries > state.tries.get(step_gen, 0)
    if event.reason in PAUSE_CODES:
        since = before.since if before is not None else event.time
        state.away[step_gen] = Away((before.tries if before else 0) + numbered, since, event.n, lasts=False)
    elif event.reason in AWAY_CODES:
        since = state.away_since(*step_gen) or event.time
        state.away[step_gen] = Away((before.tries if before else 0) + numbered, since, event.n)
    elif before is not None:
        state.away[step_gen] = before._replace(lasts=False)


def _replay(state: TaskState, event: events.TaskReplayed) -> None:
    for replayed in event.steps:
        letter = state.dead_letters.pop((replayed.step, replayed.gen), None)
        if letter is not None:
            state.repaired[replayed.step, replayed.gen] = letter
        state.gens[replayed.step] = max(state.gen(replayed.step), replayed.gen + 1)
    edits, request = event.edits, state.request
    if edits is None or request is None:
        return
    state.said.clear()
    state.edited_by.append((event.n, event.by))
    for call, arguments in (edits.arguments or {}).items():
        turn = state.turn(turn_of(call))
        if turn.completed is not None:
            calls = [replace(each, arguments=arguments) if each.call == call else each for each in turn.completed.calls]
            turn.completed = replace(turn.completed, calls=calls)
    changes = {name: getattr(edits, name) for name in ("instructions", "input", "model", "pool")}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        state.request = replace(request, **changes)
        # Another request may fit where the old one did not.
        state.switched, state.context_bytes_max, state.compactions = None, None, 0
        for turn in state.turns.values():
            turn.switched = None
            turn.outdated = turn.completed is None and bool(turn.parts or turn.reasoning)


def _receive(state: TaskState, event: events.InputReceived) -> None:
    if event.command is not None:
        state.commands.add(event.command)
    if event.call is not None:
        state.call_results.setdefault(event.call, event)
        return
    state.inputs.append(event)
    if "" in state.questions:
        state.call_results.setdefault("", event)

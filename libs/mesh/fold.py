"""Folding a journal into the state of its task: pure, and the same for everybody who reads the same events."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from msgspec.structs import replace

from contracts import events
from contracts.errors import ErrorInfo
from contracts.events import JournalEvent, TerminalEvent, UnknownEvent
from contracts.identifiers import turn_of, turn_step
from contracts.status import Metadata, OpenApproval, OpenDeadLetter, OpenQuestion, Status, TaskRecord
from contracts.tasks import TaskRequest
from mesh.errors import JournalCorrupt

StepGen = tuple[str, int]
CallResult = (
    events.ToolCompleted | events.ToolFailed | events.ApprovalResolved | events.InputReceived | events.SubtaskCompleted
)
"""What ends a call: its result, a refusal, the user's answer, the end of its sub-task."""

ModelName = tuple[str | None, str | None]
"""A provider's name, and the name of a model there."""

FAILURES_MAX = 16
DELAY_SECONDS_MAX = 366 * 24 * 3600.0
"""What is longer is rubbish, and must not stop who folds it."""

_STATUS_BY_END: dict[type[events.Event], Status] = {
    events.TaskCompleted: "completed",
    events.TaskFailed: "failed",
    events.TaskCancelled: "cancelled",
    events.TaskExpired: "expired",
}


@dataclass(slots=True)
class TurnState:
    """A turn as far as its journal goes. `parts` and `reasoning` hold (n, text) of each delta."""

    turn: int
    parts: list[tuple[int, str]] = field(default_factory=list)
    reasoning: list[tuple[int, str]] = field(default_factory=list)
    claims: int = 0
    outdated: bool = False
    """An edit has changed what there is of it was made from: it begins again."""
    base_n: int = 0
    """n of the event from which on the turn was generated: inputs before it are in its prompt, later ones are not."""
    model: ModelName | None = None
    """Which model has the turn: that of its last claim, or of a switch since."""
    model_of_text: ModelName | None = None
    """Which model made what there is of it."""
    switched: events.ModelSwitched | None = None
    """The last switch: whoever takes the turn over goes on with that model."""
    completed: events.TurnCompleted | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return self.completed.text if self.completed else "".join(text for _, text in self.parts)

    @property
    def reasoning_text(self) -> str | None:
        """The reasoning so far; None if there is none."""
        if self.completed:
            return self.completed.reasoning
        return "".join(text for _, text in self.reasoning) or None


@dataclass(slots=True)
class TaskState:
    """What a journal says of its task, up to stream sequence `revision`."""

    tenant: str
    task: str
    revision: int = 0
    """Stream sequence of the last event folded: the fence of the next append. 0: there is no journal."""
    first_sequence: int = 0
    """Stream sequence of the first event."""
    next_n: int = 0
    changed_at: datetime | None = None
    queued: events.TaskQueued | None = None
    request: TaskRequest | None = None
    """What is asked for, with the edits of replays."""
    turns: dict[int, TurnState] = field(default_factory=dict)
    claims: dict[StepGen, events.StepClaimed] = field(default_factory=dict)
    """The last claim of each (step, gen)."""
    claim_counts: dict[StepGen, int] = field(default_factory=dict)
    """How often each (step, gen) was claimed."""
    bindings: dict[StepGen, int] = field(default_factory=dict)
    """Stream sequence of the work message that each (step, gen) is bound to by its first claim."""
    gens: dict[str, int] = field(default_factory=dict)
    """Number of replays of each step; absent is 0."""
    tries: dict[StepGen, int] = field(default_factory=dict)
    """Failed tries of each (step, gen)."""
    failures: dict[StepGen, list[ErrorInfo]] = field(default_factory=dict)
    """What the failed tries of each (step, gen) came to, the last `FAILURES_MAX` of them."""
    timer_tries: dict[StepGen, int] = field(default_factory=dict)
    """How many tries of each (step, gen) had failed when a timer last took its message's place."""
    retry_at: dict[StepGen, datetime] = field(default_factory=dict)
    """When a timer brings the next try of each (step, gen) whose message is gone."""
    dead_letters: dict[StepGen, events.TaskDeadLettered] = field(default_factory=dict)
    """Steps that gave up and were not replayed since."""
    repaired: dict[StepGen, events.TaskDeadLettered] = field(default_factory=dict)
    """Steps that gave up and were replayed: their records may still have to be written."""
    call_results: dict[str, CallResult] = field(default_factory=dict)
    approvals: dict[str, events.ApprovalRequested] = field(default_factory=dict)
    resolutions: dict[str, events.ApprovalResolved] = field(default_factory=dict)
    questions: dict[str, events.InputRequested] = field(default_factory=dict)
    """By call; a question without one is under the empty name."""
    switched: events.ModelSwitched | None = None
    """The last switch for a context that was too long: later turns begin with that model."""
    context_bytes_max: int | None = None
    """How much of the conversation the model is shown; None as long as all of it."""
    compactions: int = 0
    """How often that was halved."""
    children: dict[str, events.SubtaskStarted] = field(default_factory=dict)
    inputs: list[events.InputReceived] = field(default_factory=list)
    """Messages of the user in mid-run that answer no question."""
    commands: set[str] = field(default_factory=set)
    """Message ids of the inputs that were carried out."""
    terminal: TerminalEvent | None = None
    before_end: tuple[int, int] = (0, 0)
    """Revision and n of the last event before the terminal one."""
    unknown_events: int = 0
    """Events of types that this version does not know."""
    events_after_end: int = 0
    """Must stay 0: nothing follows a terminal event."""

    @property
    def exists(self) -> bool:
        """Whether the journal has begun."""
        return self.queued is not None

    @property
    def pool(self) -> str:
        """The pool of the turns to come; the one that a replay names, if any does."""
        return self.request.pool if self.request is not None else ""

    @property
    def open_dead_letters(self) -> list[events.TaskDeadLettered]:
        """What waits to be repaired. A call that was called off since does not."""
        return [letter for letter in self.dead_letters.values() if letter.step not in self.call_results]

    @property
    def status(self) -> Status:
        """The task's status; the order of these lines is its definition."""
        if self.terminal is not None:
            return _STATUS_BY_END[type(self.terminal)]
        if self.open_dead_letters:
            return "dead_lettered"
        if self.open_approvals or self.open_questions:
            return "waiting"
        if self.open_calls and all(asked.call in self.children for asked in self.open_calls):
            return "waiting"
        return "running" if self.claims else "queued"

    @property
    def open_approvals(self) -> list[events.ApprovalRequested]:
        """Calls that wait for a person's decision."""
        return [asked for call, asked in self.approvals.items() if call not in self.resolutions]

    @property
    def open_questions(self) -> list[events.InputRequested]:
        """Questions that wait for the user, the oldest first."""
        return [asked for call, asked in self.questions.items() if call not in self.call_results]

    @property
    def last_completed(self) -> events.TurnCompleted | None:
        """The last turn that was completed."""
        return self.turn(max(self.turns, default=0)).completed or self.turn(max(self.turns, default=1) - 1).completed

    @property
    def open_calls(self) -> list[events.ToolCall]:
        """Calls of the last completed turn that have no result yet."""
        completed = self.last_completed
        return [asked for asked in completed.calls if asked.call not in self.call_results] if completed else []

    @property
    def called_off(self) -> list[str]:
        """Calls of the last completed turn that a person or the clock has refused: their joins may be due."""
        completed = self.last_completed
        refused = (events.ApprovalResolved, events.ToolFailed)
        return (
            [each.call for each in completed.calls if isinstance(self.call_results.get(each.call), refused)]
            if completed
            else []
        )

    def asked_for(self, call: str) -> events.ToolCall | None:
        """What a turn asked for under a call's id."""
        completed = self.turn(turn_of(call)).completed
        return next((asked for asked in completed.calls if asked.call == call), None) if completed else None

    def unseen_inputs(self, turn: int) -> list[events.InputReceived]:
        """Inputs that came too late for a turn's prompt."""
        return [told for told in self.inputs if told.n > self.turn(turn).base_n]

    def gen(self, step: str) -> int:
        """How often the step was replayed."""
        return self.gens.get(step, 0)

    def turn(self, turn: int) -> TurnState:
        """A turn, empty if nothing is known of it."""
        return self.turns.get(turn) or TurnState(turn)

    def has_result(self, step: str) -> bool:
        """Whether a turn or call has its recorded result."""
        if step in self.call_results:
            return True
        return any(turn_step(turn.turn) == step and turn.completed for turn in self.turns.values())

    @property
    def output_so_far(self) -> str | None:
        """The text of the last turn that has any: what a task that is stopped now leaves behind."""
        texts = (self.turns[turn].text for turn in sorted(self.turns, reverse=True))
        return next(filter(None, texts), None)

    def is_last_claim(self, claim: events.StepClaimed) -> bool:
        """Whether nobody else has claimed the (step, gen) since."""
        last = self.claims.get((claim.step, claim.gen))
        return last is not None and last.id == claim.id

    def owns(self, claim: events.StepClaimed) -> bool:
        """Whether a claim is still the last one of its (step, gen), in a task that goes on."""
        return (
            self.terminal is None
            and self.is_last_claim(claim)
            and (claim.step, claim.gen) not in self.dead_letters
            and self.gen(claim.step) == claim.gen
        )


def fold(state: TaskState, sequence: int, event: JournalEvent | UnknownEvent, *, holes_allowed: bool = False) -> None:
    """Fold one event into the state.

    Raises `JournalCorrupt` on a hole in n; `holes_allowed` is for the part of a journal that is read, or kept,
    without its deltas.
    """
    head = event.head if isinstance(event, UnknownEvent) else event
    if head.n != state.next_n and not (holes_allowed and head.n > state.next_n):
        raise JournalCorrupt(f"task {state.task}: expected n={state.next_n}, read n={head.n} at sequence {sequence}")
    before = (state.revision, state.next_n - 1)
    state.revision = sequence
    state.first_sequence = state.first_sequence or sequence
    state.next_n = head.n + 1
    if isinstance(event, UnknownEvent):
        state.unknown_events += 1
        return
    if state.terminal is not None:
        state.events_after_end += 1
        return
    state.changed_at = event.time
    if isinstance(event, TerminalEvent):
        state.terminal = event
        state.before_end = before
    else:
        _apply(state, event)


def _turn(state: TaskState, turn: int) -> TurnState:
    return state.turns.setdefault(turn, TurnState(turn))


def _apply(state: TaskState, event: events.Event) -> None:  # noqa: C901, PLR0912 - one case for each event type
    match event:
        case events.OutputDelta() | events.ReasoningDelta():
            turn = _turn(state, event.turn)
            (turn.parts if isinstance(event, events.OutputDelta) else turn.reasoning).append((event.n, event.text))
            turn.model_of_text = turn.model
        case events.TaskQueued():
            state.queued = event
            state.request = event.request
        case events.StepClaimed():
            step_gen = (event.step, event.gen)
            state.claims[step_gen] = event
            state.claim_counts[step_gen] = state.claim_counts.get(step_gen, 0) + 1
            state.bindings.setdefault(step_gen, event.message)
            state.retry_at.pop(step_gen, None)
            if event.call is None:
                turn = _turn(state, event.turn)
                turn.claims += 1
                turn.model = (event.provider, event.model)
                if not turn.parts and not turn.reasoning and turn.completed is None:
                    turn.base_n = event.n
        case events.TurnRestarted():
            turn = _turn(state, event.turn)
            turn.parts = [part for part in turn.parts if part[0] < event.discard_from]
            turn.reasoning = [part for part in turn.reasoning if part[0] < event.discard_from]
            turn.base_n = event.n
            turn.outdated = False
        case events.TurnCompleted():
            turn = _turn(state, event.turn)
            turn.completed = event
            # The whole text is in the event: the deltas are not needed again.
            turn.parts.clear()
            turn.reasoning.clear()
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
        case events.TaskRetrying():
            _retry(state, event)
        case events.TaskDeadLettered():
            state.dead_letters[event.step, event.gen] = event
        case events.TaskReplayed():
            _replay(state, event)
        case _:
            pass  # Told to clients; no decision hangs on it.


def _switch(state: TaskState, event: events.ModelSwitched) -> None:
    if event.turn is None:
        return
    turn = _turn(state, event.turn)
    turn.switched = event
    turn.model = (event.provider, event.to_model)
    if event.reason == "context":
        state.switched = event


def _retry(state: TaskState, event: events.TaskRetrying) -> None:
    step_gen = (event.step, event.gen)
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


def _replay(state: TaskState, event: events.TaskReplayed) -> None:
    for replayed in event.steps:
        letter = state.dead_letters.pop((replayed.step, replayed.gen), None)
        if letter is not None:
            state.repaired[replayed.step, replayed.gen] = letter
        state.gens[replayed.step] = max(state.gen(replayed.step), replayed.gen + 1)
    edits, request = event.edits, state.request
    if edits is None or request is None:
        return
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


def record(state: TaskState) -> TaskRecord:
    """The status record of a task whose journal has begun."""
    queued = state.queued
    if queued is None or state.changed_at is None:
        raise ValueError("there is no journal to make a record of")
    end = state.terminal
    turn_claims = [claim for claim in state.claims.values() if claim.call is None]
    last_claim = max(turn_claims, key=lambda claim: claim.n, default=None)
    dead_letters = state.open_dead_letters if end is None else []
    completed = end if isinstance(end, events.TaskCompleted) else None
    stopped = end if isinstance(end, events.TaskCancelled | events.TaskExpired) else None
    metadata: Metadata | None = queued.request.metadata
    failure = end.error if isinstance(end, events.TaskFailed) else None
    return TaskRecord(
        id=state.task,
        tenant=state.tenant,
        status=state.status,
        pool=state.pool,
        priority=queued.priority,
        created_at=queued.accepted_at,
        updated_at=state.changed_at,
        sequence=state.revision,
        turn=max(state.turns, default=None),
        output=completed.output if completed else (stopped.output if stopped else None),
        incomplete=completed.incomplete if completed else None,
        usage=completed.usage if completed else None,
        error=failure or (dead_letters[0].error if dead_letters else None),
        timings=completed.timings if completed else None,
        model=(state.turn(last_claim.turn).model or (None, None))[1] if last_claim else None,
        deadline=queued.deadline,
        metadata=metadata,
        approvals=[_open_approval(asked) for asked in state.open_approvals if end is None] or None,
        questions=[_open_question(asked) for asked in state.open_questions if end is None] or None,
        dead_letters=[OpenDeadLetter(step=each.step, gen=each.gen, code=each.error.code) for each in dead_letters]
        or None,
        parent=queued.parent,
    )


def _open_approval(asked: events.ApprovalRequested) -> OpenApproval:
    return OpenApproval(call=asked.call, tool=asked.tool, arguments=asked.arguments, expires_at=asked.expires_at)


def _open_question(asked: events.InputRequested) -> OpenQuestion:
    return OpenQuestion(question=asked.question, call=asked.call, expires_at=asked.expires_at)


def snapshot_turns(state: TaskState) -> list[events.SnapshotTurn]:
    """The turns' texts so far, for a client that missed some of the journal."""
    return [
        events.SnapshotTurn(
            turn=number,
            text=turn.text,
            reasoning=turn.reasoning_text,
            completed=turn.completed is not None,
        )
        for number, turn in sorted(state.turns.items())
    ]
